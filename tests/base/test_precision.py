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


def test_a_trial_that_loses_the_core_to_other_work_still_finds_the_faster_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bfloat16 takes half as long here, but three of four of its convolutions are interrupted for ten milliseconds."""
    clock, calls = 0.0, 0

    def convolve(x: torch.Tensor, weight: torch.Tensor, padding: int) -> None:
        nonlocal clock, calls
        calls += 1
        bf16 = x.dtype == torch.bfloat16
        assert torch.get_num_threads() == 1
        clock += 1e-4 if bf16 else 2e-4
        clock += 1e-2 if bf16 and calls % 8 else 0.0

    monkeypatch.setattr("time.perf_counter", lambda: clock)
    monkeypatch.setattr("torch.nn.functional.conv2d", convolve)
    threads = torch.get_num_threads()
    assert bf16_speedup.__wrapped__(CPU) == pytest.approx(2.0)
    assert torch.get_num_threads() == threads


def test_unknown_precisions_are_named() -> None:
    with pytest.raises(InputError, match="'fp16'; use auto, fp32 or bf16"):
        pick_precision("fp16", CPU)
