"""Lines of CSV files that runs append to, one evaluation at a time."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchsr.base.errors import InputError


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
