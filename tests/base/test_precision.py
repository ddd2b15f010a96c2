from __future__ import annotations

import pytest
import torch

from benchsr.base import precision
from benchsr.base.errors import InputError
from benchsr.base.precision import bf16_speedup, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("speedup", "expected"), [(0.1, "fp32"), (1.9, "bf16")])
def test_auto_takes_what_the_device_is_fast_with(
    monkeypatch: pytest.MonkeyPatch, speedup: float, expected: str
) -> None:
    monkeypatch.setattr(precision, "bf16_speedup", lambda device: speedup)
    assert pick_precision("auto", CPU) == expected
    assert pick_precision("fp32", CPU) == "fp32"
    assert pick_precision("bf16", CPU) == "bf16"


def test_the_trial_gives_a_ratio() -> None:
    assert 0 < bf16_speedup(CPU) < 100


def test_unknown_precisions_are_named() -> None:
    with pytest.raises(InputError, match="'fp16'; use auto, fp32 or bf16"):
        pick_precision("fp16", CPU)
