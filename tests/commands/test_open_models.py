"""Models without a card in whole runs: from the command line, from Python, in worker processes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import tiny_rrdb
from safetensors.torch import save_file
from torch import Tensor
from toys import Dropping, FakeLpips, Upscale, call, net, photos, tiny_dat

import benchsr
from benchsr.base.errors import InputError
from benchsr.models.live import Model

PROTOCOL = """
id = "toy"
title = "Toy"
dataset = "{photos}"
crop = 16
threats = ["clean", "pgd", "pgd-transfer", "pgd-eot"]
[objective]
l1_weight = 1.0
perceptual_weight = 0.0
[settings]
pgd = {{ steps = 2 }}
pgd-transfer = {{ steps = 2, restarts = 1 }}
pgd-eot = {{ steps = 2, restarts = 1, draws = 2 }}
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(PROTOCOL.format(photos=photos(tmp_path / "photos", n=1)))
    return tmp_path


def test_weights_alone_are_run_from_the_command_line(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(tiny_rrdb().state_dict(), toy / "w.safetensors")
    torch.save(tiny_dat().state_dict(), toy / "dat.pth")
    models = "w.safetensors,dat.pth,mine=w.safetensors,bicubic"
    assert call(monkeypatch, f"run --models {models} --threats clean,pgd --protocol toy.toml --workers 1") == 0
    lines = pd.read_csv(toy / "leaderboards/toy/results.csv").set_index(["model", "threat"])
    assert set(lines.index) == {(m, t) for m in ("w", "dat", "mine", "bicubic") for t in ("clean", "pgd")}
    assert (lines.status == "ok").all()
    assert lines.psnr["w", "pgd"] == lines.psnr["mine", "pgd"] < lines.psnr["w", "clean"]


@pytest.mark.parametrize("command", ["show my:net", "submit my:net", "run --models my:net --protocol toy.toml"])
def test_code_is_refused(
    toy: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert ("brings a card (.toml)" if "submit" in command else "--trust-code") in said


@pytest.mark.slow
def test_a_live_network_gets_the_same_figures_here_and_in_workers(toy: Path) -> None:
    own = tiny_rrdb(seed=3)
    figures = [
        benchsr.run({"mine": own, "floor": "bicubic"}, "clean,pgd", toy / "toy.toml", out=out, cache=out, workers=n)
        for out, n in ((toy / "here", None), (toy / "there", 2))
    ]
    assert all((frame.status == "ok").all() for frame in figures), figures[1].reason.tolist()
    assert set(figures[0].model) == {"mine", "floor"}
    here, there = (frame[["model", "threat", "psnr", "ssim"]] for frame in figures)
    pd.testing.assert_frame_equal(here, there)


class Refining(Upscale):
    """Steps from its answer along a gradient that it takes itself."""

    def forward(self, x: Tensor) -> Tensor:
        sr = super().forward(x)
        with torch.enable_grad():
            here = sr.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(here.square().mean(), here)
        return sr - gradient


def test_a_network_that_takes_gradients_itself_is_flagged_under_every_threat(toy: Path) -> None:
    networks: dict[str, Model] = {"plain": net(), "refining": net(Refining)}
    frame = benchsr.run(networks, "clean,pgd", toy / "toy.toml", out=toy / "o", cache=toy / "c")
    flagged = {(r.model, r.threat) for r in frame.itertuples() if "inner-gradient" in str(r.health)}
    assert flagged == {("refining", "clean"), ("refining", "pgd")}
    assert "| refining | clean | inner-gradient |" in (toy / "o" / "toy" / "report.md").read_text()


def test_attacks_on_a_network_that_draws_noise_are_not_taken_for_one(toy: Path) -> None:
    own = benchsr.Seeded(net(Dropping))
    runs = [
        benchsr.run({"mine": own}, "pgd-transfer,pgd-eot", toy / "toy.toml", out=toy / f"{i}", cache=toy / f"{i}")
        for i in range(2)
    ]
    assert (runs[0].status == "ok").all(), runs[0].reason.tolist()
    assert runs[0].attack_l2.nunique() == 2
    pd.testing.assert_series_equal(runs[0].psnr, runs[1].psnr)


def test_a_network_of_this_function_stays_in_this_process(toy: Path) -> None:
    class Local(Upscale):
        pass

    models = {"mine": Local().eval()}
    assert (benchsr.run(models, "clean", toy / "toy.toml").status == "ok").all()
    with pytest.raises(InputError, match="cannot be sent to workers"):
        benchsr.run(models, "clean", toy / "toy.toml", workers=2)
