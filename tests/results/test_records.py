"""results.csv survives whatever an interrupted run can do to it."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import SCORES, changed

from benchsr.base.errors import InputError
from benchsr.results.records import (
    BESIDE,
    Record,
    Status,
    append_record,
    append_timing,
    columns,
    read_results,
    read_timings,
    write_results,
    write_timings,
)

KEY = "0123456789abcdef" * 4


def record(model: str = "esrgan", threat: str = "pgd", image: str = "cat", **changes: object) -> Record:
    figures = {"psnr": 25.125, "ssim": 0.5, "lpips": 0.25}
    return changed(Record("quick", "photos", model, threat, image, Status.OK, scores=figures, key=KEY), **changes)


COLUMNS = columns(SCORES)


def test_columns_are_the_fields_of_record_with_the_key_last() -> None:
    named = [f.name for f in fields(Record) if f.name not in BESIDE]
    at = named.index("scores")
    assert [*named[:at], *SCORES, *named[at + 1 :]] == list(COLUMNS)
    assert COLUMNS[-1] == "key"


def test_round_trip_and_order(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    lost = record("certsr", "clean", status=Status.UNAVAILABLE, reason='train it, or get "x", y', psnr=None, ssim=None)
    records = [record(image="b", psnr=1 / 3), record(image="a", psnr=math.inf), lost]
    write_results(path, records, SCORES)
    read, problems = read_results(path)
    assert problems == []
    assert [r.image for r in read if r.model == "esrgan"] == ["a", "b"]
    assert read[0] == lost
    assert read[1].scores["psnr"] == math.inf
    assert read[2].scores["psnr"] == pytest.approx(1 / 3, rel=1e-9)
    assert list(pd.read_csv(path).columns) == list(COLUMNS)
    first = path.read_bytes()
    write_results(path, reversed(records), SCORES)
    assert path.read_bytes() == first


def test_seconds_have_three_digits_beside_figures_of_nine(tmp_path: Path) -> None:
    made = record(psnr=25.123456789, seconds_attack=97.681971, seconds_sr=0.0123456)
    write_timings(tmp_path / "w.csv", [made])
    append_timing(tmp_path / "a.csv", made)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "w.csv").read_bytes()
    assert read_timings(tmp_path / "w.csv") == {KEY: {"seconds_attack": 97.7, "seconds_sr": 0.0123}}
    write_results(tmp_path / "r.csv", [made], SCORES)
    assert read_results(tmp_path / "r.csv")[0][0].scores["psnr"] == 25.1234568


def test_appending_equals_writing(tmp_path: Path) -> None:
    records = [record(image="a"), record(image="b", reason="two\nlines, one reason")]
    write_results(tmp_path / "w.csv", records)
    for r in records:
        append_record(tmp_path / "a.csv", r, SCORES)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "w.csv").read_bytes()


def test_last_duplicate_wins(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    for psnr in (1.0, 2.0):
        append_record(path, record(psnr=psnr), SCORES)
    append_record(path, record(image="other"), SCORES)
    read, problems = read_results(path)
    assert [(r.image, r.scores["psnr"]) for r in read] == [("cat", 2.0), ("other", 25.125)]
    assert problems == []


@pytest.mark.parametrize("reason", ["", 'a "quoted", one', "ä – ü"])
def test_cut_at_every_byte_of_the_last_line(tmp_path: Path, reason: str) -> None:
    path = tmp_path / "results.csv"
    first, last = record(image="first"), record(image="last", reason=reason)
    write_results(path, [first, last])
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole) + 1):
        path.write_bytes(whole[:cut])
        read, problems = read_results(path)
        complete = cut >= len(whole) - 1  # only the line feed is missing
        assert read == ([first, last] if complete else [first])
        assert len(problems) == (0 if complete or cut == start else 1)
        # The next run appends to what is there, and loses nothing but the damaged line.
        append_record(path, replace(last, model="next"), SCORES)
        again, _ = read_results(path)
        assert again == [*read, replace(last, model="next")]


def test_cut_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(",".join(COLUMNS)[:20])
    read, problems = read_results(path)
    assert read == []
    assert len(problems) == 1
    assert "header" in problems[0]


def test_any_metric_has_a_column(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    scored = replace(record(), scores={"psnr": 1.0, "iqa:niqe": 2.5})
    write_results(path, [scored, record(image="other")], ["psnr", "iqa:niqe"])
    assert list(pd.read_csv(path).columns) == list(columns(["psnr", "iqa:niqe"]))
    read, _ = read_results(path)
    assert read[0] == scored
    assert read[1].scores == {"psnr": 25.125}


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_garbage_after_good_lines_is_reported_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes
) -> None:
    path = tmp_path_factory.mktemp("garbage") / "results.csv"
    write_results(path, [record()])
    path.write_bytes(path.read_bytes() + garbage)
    read, problems = read_results(path)
    assert read == [record()]
    damaged = [line for line in garbage.decode("utf-8", "replace").split("\n") if line.strip()]
    assert len(problems) == len(damaged)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("psnr", "high", "psnr"),
        ("lpips", "nan", "lpips"),
        ("status", "fine", "status"),
        ("seed", "", "seed"),
        ("key", "x" * 64, "key"),
    ],
)
def test_impossible_values_drop_the_line(tmp_path: Path, column: str, value: str, says: str) -> None:
    path = tmp_path / "results.csv"
    write_results(path, [record()])
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table[column] = value
    table.to_csv(path, index=False)
    read, problems = read_results(path)
    assert read == []
    assert says in problems[0]


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("model,psnr,speed\n")
    with pytest.raises(InputError, match=r"results\.csv.*no column protocol"):
        read_results(path)
    with pytest.raises(InputError, match=r"absent\.csv"):
        read_results(tmp_path / "absent.csv")


def test_unwritable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere"):
        append_record(tmp_path / "nowhere" / "results.csv", record(), SCORES)
