"""Submissions: what is checked, what is written, and what makes one not ready."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from toys import FakeLpips, changed, photos, protocol, toy_card
from typer.testing import CliRunner

from benchsr.base.errors import CardError, IntegrityError
from benchsr.cli import app
from benchsr.commands.run import evaluate
from benchsr.commands.submit import compare, submit
from benchsr.evaluation.options import RunOptions
from benchsr.models.network import load_network
from benchsr.models.zoo import load_card, network_key
from benchsr.results.records import Record, Status, read_results, write_results


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_submission_has_its_row_its_hash_and_its_checks(folder: Path) -> None:
    card = toy_card(folder, "toy-a")
    Path(card).write_text(Path(card).read_text().replace('paper = "none"', 'paper = "| <b>bold</b>"'))
    toy = protocol(folder, photos(folder / "photos"))
    result = submit(Path(card), toy, device="cpu")
    text = (folder / "toy-a-pull-request.md").read_text()
    assert text == result.text
    assert result.failures == []
    assert network_key(load_card(card)) in text
    evaluate(card, "all", toy, RunOptions(out=folder / "out", device="cpu"))
    expected = pd.read_csv(folder / "out" / "toy" / "results.csv").query("status == 'ok'").groupby("threat").psnr.mean()
    for threat, title in (("clean", "Clean LR"), ("pgd", "PGD")):
        assert f"| {title} | {expected[threat]:.2f} [" in text
    assert "unavailable: " in text  # of the data set that is not here
    assert "to the last digit" in text
    assert "<b>" not in text


def test_figures_that_do_not_repeat_are_named() -> None:
    first = Record("toy", "photos", "a", "pgd", "cat", Status.OK, scores={"psnr": 20.0, "ssim": 0.5})
    assert compare([first], [first]) == []
    [found] = compare([first], [changed(first, psnr=20.000001)])
    assert found.startswith("pgd / cat: psnr 20.0")


def test_a_model_that_draws_unseeded_noise_is_not_ready(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dice(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sr: torch.Tensor = self.network(x)
            return sr + 0.01 * torch.rand(1)

    monkeypatch.setattr(
        "benchsr.evaluation.worker.load_network", lambda *args, **options: Dice(load_network(*args, **options))
    )
    result = submit(Path(toy_card(folder, "toy-a")), protocol(folder, photos(folder / "photos")), device="cpu")
    assert result.differences
    assert "**Not deterministic**" in result.text


def test_a_taken_id_and_tampered_weights_are_refused(folder: Path) -> None:
    toy = protocol(folder, photos(folder / "photos"))
    with pytest.raises(CardError, match="taken"):
        submit(Path(toy_card(folder, "certsr")), toy)
    card = toy_card(folder, "toy-a")
    with (folder / "toy-a.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(IntegrityError, match="sha256"):
        submit(Path(card), toy)


def test_report_check_fails_loudly_and_names_the_cell(folder: Path) -> None:
    toy = protocol(folder, photos(folder / "photos"))
    for name in ("fresh", "committed"):
        evaluate("bicubic", "clean,noise", toy, RunOptions(out=folder / name, device="cpu"))
    command = ["report", "--protocol", str(toy), "--out", "fresh", "--check", "committed", "--issue", "moved.md"]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0
    assert "0 figures moved, 0 are new" in answer.output  # the nightly workflow looks for the end
    assert not (folder / "moved.md").exists()
    results = folder / "committed" / "toy" / "results.csv"
    records, _ = read_results(results)
    write_results(results, [changed(r, psnr=r.scores["psnr"] + 1) if r.threat == "noise" else r for r in records])
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 1
    assert "bicubic / noise / psnr" in answer.output
    assert "clean" not in answer.output
    assert "| `bicubic` | `noise` | `psnr` |" in (folder / "moved.md").read_text()
