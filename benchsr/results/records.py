"""One evaluation as one line of results.csv, the file that every table, plot and claim is derived from."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from benchsr.base.errors import InputError
from benchsr.base.files import require_ordinary, write_atomic
from benchsr.results.lines import MAX_HEADER, append_line, format_line
from benchsr.results.singles import Singles


class Status(StrEnum):
    """What became of one planned evaluation."""

    OK = "ok"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


@dataclass(frozen=True)
class Record:
    """One line of results.csv: one model under one threat on one image. Fields that were not computed are None.

    `scores`: metric -> figure, a column each in results.csv. `attack_linf` and `attack_l2` are norms of the change
    of LR in [0, 1] units; `loss_*` is the attack's objective before and after; `network` is the beginning of the key of
    its weights, `environment` names an entry of environments.json. `key` hashes everything that can change a figure of
    this row, and comes last so that a line cut short can never be mistaken for a whole one. `seconds_*`, wall-clock
    seconds per image, differ from run to run: they stand in timings.csv, not in results.csv; `singles` in singles.csv.
    """

    protocol: str
    dataset: str
    model: str
    threat: str
    image: str
    status: Status
    reason: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    attack_linf: float | None = None
    attack_l2: float | None = None
    loss_clean: float | None = None
    loss_attacked: float | None = None
    seconds_attack: float | None = None
    seconds_sr: float | None = None
    singles: Singles | None = None
    health: str = ""
    seed: int = 0
    network: str = ""
    environment: str = ""
    key: str = ""


TIMINGS = ("seconds_attack", "seconds_sr")
"""Fields that timings.csv holds."""

DIGITS = dict.fromkeys(TIMINGS, 3)
"""Significant digits of a field in its file, where they are not 9: seconds repeat no more exactly than that."""

BESIDE = (*TIMINGS, "singles")
"""Fields that results.csv does not hold."""

_SCORES = [f.name for f in fields(Record)].index("scores")
BEFORE = tuple(f.name for f in fields(Record)[:_SCORES])
AFTER = tuple(f.name for f in fields(Record)[_SCORES + 1 :] if f.name not in BESIDE)
"""The columns of results.csv before and after those of the metrics, in order. `key` comes last: a line that was cut
short lacks its 64 characters."""


_METRIC = re.compile(r"[a-z][a-zA-Z0-9:_.+-]{0,63}")


def columns(metrics: Iterable[str]) -> tuple[str, ...]:
    """The columns of a results.csv with these metrics. Raises InputError for names that no column of it can have."""
    names = tuple(metrics)
    if wrong := [n for n in names if n in (*BEFORE, *AFTER, *BESIDE) or not _METRIC.fullmatch(n)]:
        raise InputError(
            f"no column of results.csv can be called {', '.join(map(repr, wrong))}: give the metric a name of its own, "
            "of letters, digits and :_.+-, small letter first"
        )
    return (*BEFORE, *names, *AFTER)


def flat(record: Record) -> dict[str, Any]:
    """The record as a line of a table: a column for each field and each metric."""
    values = {f.name: getattr(record, f.name) for f in fields(Record) if f.name not in ("scores", "singles")}
    return values | dict(record.scores)


def metrics_of(records: Iterable[Record]) -> list[str]:
    """The metrics that any of the records has a figure of, in the order in which they come."""
    return list(dict.fromkeys(name for record in records for name in record.scores))


_NUMBERS = tuple(f.name for f in fields(Record) if f.default is None and f.name not in BESIDE)

_KEY = re.compile(r"[0-9a-f]{64}")

_RECORD = TypeAdapter(Record)

MAX_PROBLEMS = 20
"""Damaged lines that are told one by one."""


def read_results(path: Path) -> tuple[list[Record], list[str]]:
    """Read results.csv: its records, and a sentence about every line that had to be dropped.

    A line is dropped where it is cut short, is not CSV, or holds a value that no Record can have. Of lines about the
    same (model, threat, image) the last one counts. A header that was cut short is reported too. Raises InputError
    where the file cannot be read, or where its header names other columns.
    """
    require_ordinary(path)
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    header, *lines = text.split("\n")
    if len(header) > MAX_HEADER:
        raise InputError(f"{path}: not a results file: its first line has {len(header)} characters; move it away")
    names = _columns(path, header.rstrip("\r").split(","))
    if names is None:
        return [], ["line 1: the header was cut short"]
    problems: list[str] = []
    untold = 0
    found: dict[tuple[str, str, str], Record] = {}
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        try:
            record = _parse(line, names)
        except ValueError as error:
            if len(problems) < MAX_PROBLEMS:
                problems.append(f"line {number} dropped: {str(error)[:300]}")
            else:
                untold += 1
            continue
        identity = (record.model, record.threat, record.image)
        found.pop(identity, None)
        found[identity] = record
    return list(found.values()), problems + [f"{untold} further lines dropped"] * bool(untold)


def write_results(path: Path, records: Iterable[Record], metrics: Sequence[str] | None = None) -> None:
    """Write results.csv atomically, its lines sorted by model, threat and image; `metrics`: by default those scored.

    Figures keep 9 significant digits. Text is brought onto one line. Raises InputError for an unwritable folder.
    """
    ordered = sorted(records, key=lambda r: (r.model, r.threat, r.image))
    names = columns(metrics_of(ordered) if metrics is None else metrics)
    write_atomic(path, format_line(names) + "".join(_format(record, names) for record in ordered))


def append_record(path: Path, record: Record, metrics: Sequence[str]) -> None:
    """Append one record to a results.csv with these metrics; see `append_line`, whose errors it raises."""
    names = columns(metrics)
    append_line(path, names, _values(record, names))


def append_timing(path: Path, record: Record) -> None:
    """Append the seconds of one record to timings.csv, as `append_record` does."""
    names = (*TIMINGS, "key")
    append_line(path, names, _values(record, names))


def write_timings(path: Path, records: Iterable[Record]) -> None:
    """Write timings.csv atomically: key and seconds of each record that has any. Raises as `write_results`."""
    columns = (*TIMINGS, "key")
    lines = sorted({_format(r, columns) for r in records if r.seconds_attack is not None or r.seconds_sr is not None})
    write_atomic(path, format_line(columns) + "".join(lines))


def read_timings(path: Path) -> dict[str, dict[str, Any]]:
    """Key -> seconds by name; lines that cannot be read, and a missing file, hold none: no figure hangs on them."""
    found: dict[str, dict[str, Any]] = {}
    try:
        header, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return found
    for line in lines if header == ",".join((*TIMINGS, "key")) else ():
        try:
            *seconds, key = line.split(",", len(TIMINGS) + 1)
            values = {name: float(value) for name, value in zip(TIMINGS, seconds, strict=True) if value}
        except ValueError:
            continue
        if all(map(math.isfinite, values.values())):
            found[key] = values
    return found


def _format(record: Record, columns: Sequence[str]) -> str:
    return format_line(_values(record, columns))


def _values(record: Record, columns: Sequence[str]) -> list[str]:
    known = flat(record)
    return ["" if (v := known.get(name)) is None else _written(name, v) for name in columns]


def _written(name: str, value: object) -> str:
    return f"{value:.{DIGITS.get(name, 9)}g}" if isinstance(value, float) else " ".join(str(value).split())


@lru_cache(maxsize=1 << 14)
def _parse(line: str, columns: tuple[str, ...]) -> Record:
    """The record of one line, which a run reads more than once. Raises ValueError saying what is wrong with it."""
    try:
        values = next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise ValueError(f"not CSV ({error})") from None
    if len(values) != len(columns):
        raise ValueError(f"{len(values)} of {len(columns)} fields")
    row: dict[str, Any] = dict(zip(columns, values, strict=True))
    scores = {name: value for name in columns if name not in (*BEFORE, *AFTER) and (value := row.pop(name))}
    if not _KEY.fullmatch(row["key"]):
        raise ValueError("its key is not 64 hexadecimal characters")
    try:
        row = {k: v if v or k not in _NUMBERS else None for k, v in row.items()}
        record = _RECORD.validate_python(row | {"scores": scores})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{first['loc'][-1]}: {first['msg']}") from None
    for name, value in flat(record).items():
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name} is not a number")
    return record


def _columns(path: Path, header: Sequence[str]) -> tuple[str, ...] | None:
    """The columns that a header names; None where it was cut short. Raises InputError where it is of another file."""
    names, b, a = list(header), len(BEFORE), len(AFTER)
    said, first = ",".join(names), ",".join(BEFORE)
    if first.startswith(said) or (said.startswith(f"{first},") and names[-1] != AFTER[-1]):
        return None
    if names[:b] == list(BEFORE) and names[-a:] == list(AFTER):
        metrics = names[b:-a]
        if len(set(metrics)) == len(metrics) and all(map(_METRIC.fullmatch, metrics)):
            return tuple(names)
    wanted = (*BEFORE, *AFTER)
    missing, double = [c for c in wanted if c not in names], [n[:40] for n in names if names.count(n) > 1]
    parts = [f"no column {', '.join(missing)}"] * bool(missing) + [f"twice {', '.join(double[:5])}"] * bool(double)
    why = "; ".join(parts) or "columns in another order"
    raise InputError(
        f"{path}: not a results file of this version: {why}; move it away, and compute it again with: benchsr run"
    )
