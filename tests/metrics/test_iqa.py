"""Metrics of pyiqa: with a stand-in for the package, and with the package itself where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchsr.base.errors import BenchsrError, InputError, UnavailableError, UnknownIdError
from benchsr.base.shrinking import bicubic_downscale
from benchsr.evaluation.protocol import Protocol, load_protocol
from benchsr.metrics import iqa
from benchsr.metrics.quality import METRICS, MetricSettings, Scores, psnr, score


def made(name: str, device: Any) -> Any:
    """Metrics of the stand-in: one draws, one needs 32 pixels, one cannot be had."""
    if name == "far":
        raise ConnectionError("no route")

    def network(sr: Tensor, hr: Tensor | None = None) -> Tensor:
        if hr is not None:
            return psnr(sr, hr)
        if min(sr.shape[2:]) < 32:
            raise AssertionError("too small")
        return sr.mean((1, 2, 3)) + torch.rand(1)

    return network


@pytest.fixture
def _pyiqa(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    configs: Any = ModuleType("pyiqa.default_model_configs")
    configs.DEFAULT_CONFIGS = {
        "psnr": {"metric_mode": "FR"},
        "noise+": {"metric_mode": "NR", "lower_better": True},
        "far": {"metric_mode": "NR"},
    }
    package: Any = ModuleType("pyiqa")
    package.create_metric = made
    monkeypatch.setitem(sys.modules, "pyiqa", package)
    monkeypatch.setitem(sys.modules, "pyiqa.default_model_configs", configs)
    monkeypatch.setattr(iqa, "version", lambda name: "9.8.7")
    iqa._network.cache_clear()
    yield
    iqa._network.cache_clear()


def scored(*names: str, side: int = 48) -> Scores:
    gen = torch.Generator().manual_seed(0)
    sr, hr = torch.rand(2, 2, 3, side, side, generator=gen)
    return score(sr, hr, bicubic_downscale(hr), MetricSettings(names=names, quantise_sr=False, border=0))


@pytest.mark.usefixtures("_pyiqa")
def test_a_metric_of_pyiqa_is_one_of_ours() -> None:
    found = scored("psnr", "iqa:psnr", "iqa:noise+").figures
    assert torch.equal(found["iqa:psnr"], found["psnr"])
    assert found["iqa:noise+"].shape == (2,)
    assert METRICS["iqa:psnr"].higher_is_better
    assert METRICS["iqa:psnr"].reference
    assert not METRICS["iqa:noise+"].higher_is_better
    assert not METRICS["iqa:noise+"].reference


@pytest.mark.usefixtures("_pyiqa")
def test_what_pyiqa_draws_repeats_and_leaves_other_draws_alone() -> None:
    torch.manual_seed(5)
    first = scored("iqa:noise+").figures["iqa:noise+"]
    after = torch.rand(1)
    assert torch.equal(first, scored("iqa:noise+").figures["iqa:noise+"])
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.usefixtures("_pyiqa")
def test_its_version_is_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = load_protocol("quick").model_dump()
    fields["metrics"]["names"] = ("psnr", "iqa:noise+")
    chosen = Protocol.model_validate(fields)
    assert chosen.metrics.versions == {"iqa:noise+": "pyiqa 9.8.7"}
    before = chosen.fingerprint
    monkeypatch.setattr(iqa, "version", lambda name: "9.8.8")
    assert chosen.fingerprint != before


def test_our_own_metrics_have_no_version_in_the_fingerprint() -> None:
    assert load_protocol("quick").metrics.versions == {}
    assert "versions" not in load_protocol("quick").figures()


@pytest.mark.usefixtures("_pyiqa")
def test_what_it_refuses_stays_empty_and_what_cannot_be_had_fails() -> None:
    found = scored("psnr", "iqa:noise+", side=24)
    assert list(found.figures) == ["psnr"]
    assert found.lacking == {"iqa:noise+": "pyiqa's noise+ cannot score an image of 24 x 24 pixels (too small)"}
    with pytest.raises(UnavailableError, match="'iqa:far': pyiqa cannot make it here"):
        scored("iqa:far")


@pytest.mark.usefixtures("_pyiqa")
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("iqa:fid", InputError, "compares sets of images"),
        ("iqa:noise", UnknownIdError, "unknown metric of pyiqa 'noise'; did you mean 'noise\\+'"),
    ],
)
def test_names_that_it_has_not_are_refused(name: str, error: type[BenchsrError], message: str) -> None:
    with pytest.raises(error, match=message):
        METRICS[name]


def test_without_the_extra_one_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    monkeypatch.delitem(sys.modules, "pyiqa.default_model_configs", raising=False)
    with pytest.raises(ValueError, match=r"'iqa:niqe' needs pyiqa .*pip install 'benchsr\[iqa\]'"):
        MetricSettings(names=("iqa:niqe",))


@pytest.mark.slow
def test_the_package_itself() -> None:
    pytest.importorskip("pyiqa")
    found = scored("psnr", "iqa:psnr", "iqa:piqe", side=96).figures
    torch.testing.assert_close(found["iqa:psnr"], found["psnr"], atol=1e-3, rtol=0)
    assert ((found["iqa:piqe"] >= 0) & (found["iqa:piqe"] <= 100)).all()
