"""The command line: exit codes, messages, and what each command leaves behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image
from toys import FakeLpips, photos, protocol, toy_card

from benchsr.base.errors import InputError
from benchsr.cli.main import main, parse_settings


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with toy.toml (protocol), toy-a.toml (model), photos/; made the working directory."""
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    monkeypatch.chdir(tmp_path)
    toy_card(tmp_path, "toy-a", seed=1)
    protocol(tmp_path, photos(tmp_path / "photos"))
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, command: str) -> int:
    """Run a command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["benchsr", *command.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


RUN = "run --models toy-a.toml,bicubic --protocol toy.toml --out out --cache cache --workers 1"


def test_run_then_report(toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, f"{RUN} --limit 2") == 0
    shown = capsys.readouterr().out
    assert "toy-a" in shown
    assert "16 evaluations to do" in shown
    made = {path.name for path in (toy / "out" / "toy").iterdir()}
    assert {"results.csv", "report.md", "protocol.json", "environments.json", "timings.csv"} <= made
    monkeypatch.setattr(
        "benchsr.evaluation.executors.Processes.start", lambda *_: pytest.fail("there is nothing to do")
    )
    assert call(monkeypatch, f"{RUN.replace('--workers 1', '')} --limit 2") == 0
    (toy / "out" / "toy" / "report.md").unlink()
    assert call(monkeypatch, "report --protocol toy.toml --out out") == 0
    assert (toy / "out" / "toy" / "report.md").exists()


def test_exit_code_1_when_an_evaluation_failed(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchsr.evaluation.worker.score", lambda *_: 1 / 0)
    assert call(monkeypatch, f"{RUN} --threats clean --limit 1") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run --models bicubik", "did you mean 'bicubic'"),
        ("run --threats pdg", "did you mean 'pgd'"),
        ("run --protocol quik", "did you mean 'quick'"),
        ("run --models absent.toml", "absent.toml"),
        ("run --dataset absent-folder --models bicubic", "absent-folder"),
        ("list modles", "did you mean 'models'"),
        ("show pdg", "did you mean 'pgd'"),
        ("report --out nowhere", "benchsr run"),
        ("upscale absent.png --model bicubic", "absent.png"),
        ("attack photos/photo0.png --model bicubic --set epsilon=1", "eps"),
        ("run --no-such-option", "No such option"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_to_do(
    toy: Path, command: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["models", "threats", "datasets", "protocols"])
def test_list(toy: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, f"list {kind}") == 0
    expected = {"models": "bicubic", "threats": "pgd", "datasets": "photos", "protocols": "quick"}[kind]
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("entry", ["bicubic", "pgd", "quick", "photos", "toy-a.toml"])
def test_show(toy: Path, entry: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, f"show {entry}") == 0
    assert entry.removesuffix(".toml") in capsys.readouterr().out


def test_attack_and_upscale_write_images(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "attack photos/photo0.png --model toy-a.toml --threat fgsm --set perceptual_weight=0 --out a.png"
    assert call(monkeypatch, command) == 0
    assert Image.open(toy / "a.png").size == (16, 16)
    assert Image.open(toy / "a-sr.png").size == (64, 64)
    assert call(monkeypatch, "upscale a.png --model bicubic --out b.png") == 0
    assert Image.open(toy / "b.png").size == (64, 64)


@pytest.mark.parametrize("command", ["", "run", "list", "show", "fetch", "attack", "upscale", "report"])
def test_help_has_examples(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, f"{command} --help") == 0
    assert "benchsr" in capsys.readouterr().out


def test_parse_settings() -> None:
    assert parse_settings(["eps=0.03", "steps=5", "random_start=false", "perceptual_net=vgg16"]) == {
        "eps": 0.03,
        "steps": 5,
        "random_start": False,
        "perceptual_net": "vgg16",
    }
    with pytest.raises(InputError, match="name=value"):
        parse_settings(["eps"])
