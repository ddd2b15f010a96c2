"""What commands share: consoles, options that mean the same everywhere, and how examples are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchsr.base.errors import InputError

out = Console()
err = Console(stderr=True)

Models = Annotated[
    str,
    typer.Option(
        help="'all', or ids, cards (my-model.toml) and weights (net.safetensors, .pth) separated by commas; "
        "ID=MODEL names the row."
    ),
]
Threats = Annotated[str, typer.Option(help="'all', or ids separated by commas.")]
ProtocolName = Annotated[
    str, typer.Option(help="Protocol id, at another scale as quick-x2, or a protocol file (.toml).")
]
DatasetName = Annotated[
    str | None,
    typer.Option(help="Another data set: an id, several joined by +, a card (.toml), or a folder of HR."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Seed = Annotated[int | None, typer.Option(help="Seed of all random draws. Default: the protocol's.")]
CacheFolder = Annotated[
    str | None, typer.Option(help="Folder, or fsspec address, of attacked images. Default: in the user's cache.")
]
BOARDS = "Folder of leaderboards, which holds PROTOCOL/results.csv."
OutDir = Annotated[Path, typer.Option("--out", help=BOARDS)]
Leaderboards = Annotated[Path, typer.Option("--leaderboards", help=BOARDS)]
MISSING = "Show rows and columns without figures too, not only in one line."
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the threat, as name=value. Repeat for more.")
]


def examples(*lines: str) -> str:
    """An epilog that shows commands, one a line."""
    return "**Examples**\n\n" + "\n\n".join(f"`{line}`" for line in lines)


def parse_settings(pairs: list[str]) -> dict[str, float | int | bool | str]:
    """Turn ["eps=0.03", "steps=20"] into typed settings. Raises InputError for anything not name=value."""
    settings: dict[str, float | int | bool | str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals and text):
            raise InputError(f"--set {pair!r}: write it as name=value, for example --set eps=0.03")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        settings[name] = value if isinstance(value, float | int | bool | str) else text
    return settings
