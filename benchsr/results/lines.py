"""Lines of CSV files that runs append to, one evaluation at a time."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchsr.base.errors import InputError
from benchsr.base.files import require_ordinary

if TYPE_CHECKING:
    import pandas as pd


MAX_HEADER = 1 << 16
"""Characters of a header: tables of ours have a few hundred."""


def format_line(values: Iterable[str]) -> str:
    """The values as one line of CSV, with its end."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


def append_line(path: Path, columns: Sequence[str], values: Iterable[str]) -> None:
    """Append one line to a file with these columns; flushed at once.

    It starts a fresh line even where an interrupted run left the last one unfinished. A file that is missing or empty
    gets its header first. Raises InputError where the file cannot be written.
    """
    try:
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
            start = format_line(columns) if not size else "" if file.read(1) == b"\n" else "\n"
            file.write((start + format_line(values)).encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def read_table(path: Path, columns: Mapping[str, str], fix: str) -> pd.DataFrame:
    """The CSV file `path`, whose `columns` are of the named pandas types; others are as they come.

    Raises InputError, naming the file and the `fix`, where it cannot be read, lacks a column or holds another type.
    """
    import pandas as pd

    require_ordinary(path)
    try:
        with path.open("rb") as file:
            if len(file.readline(MAX_HEADER + 1)) > MAX_HEADER:
                raise ValueError(f"its first line has more than {MAX_HEADER} bytes")
        data = pd.read_csv(path, dtype=dict(columns), encoding_errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {fix}") from None
    except (ValueError, OverflowError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())[:300]}); {fix}") from None
    if lacking := set(columns) - set(data):
        raise InputError(f"{path}: no column {', '.join(sorted(lacking))}; {fix}")
    return data
