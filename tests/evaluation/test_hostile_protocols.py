"""Protocol files, and what a run finds in its folder: an error that names the file, or it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tomlkit
from hostile import COUNTS, EXTREMES, HUGE, Survey, jsons, tables, texts
from toys import photos, protocol, records

import benchsr.commands.run  # noqa: F401  # whose imports start programs, outside of what is watched
from benchsr.evaluation.ledger import Ledger, read_ledger, stored_protocol
from benchsr.evaluation.protocol import load_protocol
from benchsr.results.records import write_results, write_timings
from benchsr.results.singles import Singles, write_singles

Record = Callable[[str, object], None]


def use_protocol(path: Path) -> None:
    read = load_protocol(path)
    assert len(read.fingerprint) == 64
    assert read.description
    assert read.heading
    assert read.figures()


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_protocols(count: int, tmp_path: Path, record_property: Record) -> None:
    path = protocol(tmp_path, photos(tmp_path / "photos"))
    good = path.read_bytes()
    extremes = [*EXTREMES, *HUGE[:1]]
    for name in ("eps", "steps", "alpha"):
        values = ("nan", "inf", "-inf", "-1", "1e999", "9" * 100, '"x"', "[]", "true")
        extremes += [good + f"{name} = {value}\n".encode() for value in values]
    survey = Survey(
        *(tmp_path, path, use_protocol),
        f"run --models bicubic --threats clean --limit 1 --protocol {path} --out {tmp_path}/out",
    )
    contents = tables(tomlkit.parse(good.decode()).unwrap(), tomlkit.dumps) | texts(good)
    survey.run(contents, count + len(extremes), extremes).record(record_property)
    assert survey.refused


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A folder that a run has written."""
    read = load_protocol(protocol(tmp_path, photos(tmp_path / "photos")))
    made = Ledger(tmp_path / "toy", read, {"versions": {"benchsr": "1"}, "device": "cpu"})
    made.open()
    for line in records("bicubic", "clean", [20.0, 30.0], seconds_attack=1.0, seconds_sr=2.0):
        made.append(line)
    return made


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_protocol_json(count: int, ledger: Ledger, tmp_path: Path, record_property: Record) -> None:
    path = ledger.folder / "protocol.json"

    def use(path: Path) -> None:
        Ledger(ledger.folder, ledger.protocol, {})._fingerprint()
        found, fingerprint = stored_protocol(path.parent)
        assert found.description
        assert fingerprint is not None

    survey = Survey(tmp_path, path, use, f"report --protocol {tmp_path}/toy.toml --out {tmp_path}")
    good = json.loads(path.read_text())
    survey.run(jsons(good), count, [*EXTREMES, *HUGE]).record(record_property)


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_environments(count: int, ledger: Ledger, tmp_path: Path, record_property: Record) -> None:
    """They are told anew: no figure hangs on them."""
    path = ledger.folder / "environments.json"

    def use(path: Path) -> None:
        ledger.append(records("bicubic", "clean", [20.0])[0])
        assert ledger.environment in json.loads(path.read_text())

    good = json.loads(path.read_text())
    survey = Survey(tmp_path, path, use).run(jsons(good), count, [*EXTREMES, *HUGE])
    survey.record(record_property)
    assert survey.refused == 0


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["results.csv", "timings.csv", "singles.csv"])
def test_malformed_lines(
    name: str, count: int, ledger: Ledger, tmp_path: Path, record_property: Record, caplog: pytest.LogCaptureFixture
) -> None:
    lines = records("mrs-bicubic", "clean", [20.0, 30.0, 25.0], seconds_attack=1.0, seconds_sr=2.0)
    write_results(ledger.results, lines)
    write_timings(ledger.timings, lines)
    scores = dict.fromkeys(("psnr", "ssim", "lpips"), (20.0, 21.0, 22.0))
    write_singles(ledger.singles, {lines[0].key: Singles(0.1, 3, 48, scores, (0.1, 0.2, 0.3, 1.0))}, list(scores))

    def use(_: Path) -> None:
        caplog.clear()
        for record in read_ledger(ledger.folder):
            assert len(record.key) == 64
        assert all(str(ledger.results) in message for message in caplog.messages)

    path = ledger.folder / name
    report = f"report --protocol {tmp_path}/toy.toml --out {tmp_path}" if name == "results.csv" else ""
    Survey(tmp_path, path, use, report).run(texts(path.read_bytes()), count, [*EXTREMES, *HUGE]).record(record_property)
