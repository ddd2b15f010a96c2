"""Image by image: the pictures of `benchsr figures`, with each model's figures and what the threat took from them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import (
    Any,
    NotRequired,  # pydantic takes no other below Python 3.12
)

from typing_extensions import TypedDict

from benchsr.base.errors import InputError, UnknownIdError
from benchsr.base.schema import read_json
from benchsr.leaderboard import Leaderboard
from benchsr.leaderboard.headline import METRIC
from benchsr.leaderboard.scores import sign
from benchsr.metrics.quality import METRICS
from benchsr.results.records import Record, Status
from benchsr.threats.table import THREATS

PICTURES = {
    "input": "Clean input",
    "lr": "Input under the threat",
    "change": "Change of the input",
    "sr": "Output",
    "error": "Error",
    "truth": "Truth",
}
"""Pictures of one model on one image, in the order in which they stand side by side."""


_View = TypedDict(
    "_View",
    {
        "title": str,
        "change of LR": str,
        "lr": NotRequired[str],
        "change": NotRequired[str],
        "sr": NotRequired[str],
        "error": NotRequired[str],
    },
)


class _Scene(TypedDict):
    threat: str
    image: str
    family: str
    input: str
    truth: str
    factor: int | float
    error_factor: int | float
    views: dict[str, _View]
    png: NotRequired[str]
    pdf: NotRequired[str]


class Figures(TypedDict):
    """figures.json, as `benchsr figures` writes it; older ones have no scenes."""

    fingerprint: NotRequired[str]
    note: NotRequired[str]
    scenes: NotRequired[list[_Scene]]


_ANEW = "write it again with: benchsr figures"


def read_figures(path: Path) -> Figures:
    """figures.json. Raises InputError, naming the file and the field, where it is none."""
    return read_json(path, Figures, _ANEW)


def copy_figures(folder: Path, board: Leaderboard, out: Path) -> dict[str, Any] | None:
    """Copy what `benchsr figures` wrote beside the board; what the page needs of it, None where there is nothing.

    Figures in words come from results.csv, as those of the tables do.
    """
    index = folder / "figures" / "figures.json"
    if not index.exists():
        return None
    where = f"figures/{board.protocol.id}"
    shutil.copytree(folder / "figures", out / where, dirs_exist_ok=True)
    told = read_figures(index)
    lines = {(r.model, r.threat, r.image): r for r in board.records if r.status is Status.OK}
    try:
        scenes = [_scene(scene, lines) for scene in told.get("scenes", [])]
    except UnknownIdError as error:
        raise InputError(f"{index}: {error}; {_ANEW}") from None
    return {"folder": where, "note": told.get("note", ""), "scenes": scenes}


def _scene(scene: _Scene, lines: Mapping[tuple[str, str, str], Record]) -> dict[str, Any]:
    """A scene of figures.json with titles, figures and drops."""
    threat, image = scene["threat"], scene["image"]
    views = {}
    for model, view in scene["views"].items():
        here, clean = (lines.get((model, t, image)) for t in (threat, "clean"))
        views[model] = {
            "title": view["title"],
            "files": {"input": scene["input"], "truth": scene["truth"]}
            | {k: v for k, v in view.items() if k in PICTURES},
            "captions": {
                "lr": view["change of LR"],
                "change": f"× {scene['factor']}, around grey",
                "sr": _words(here) if here else "",
                "error": f"× {scene['error_factor']}, mean over channels",
            },
            "drop": _drop(clean, here),
        }
    return {
        "image": image,
        "threat": threat,
        "title": THREATS[threat].title,
        "family": scene["family"],
        "sheets": {kind.upper(): scene[kind] for kind in ("png", "pdf") if kind in scene},
        "views": views,
    }


def _words(record: Record) -> str:
    shown = [(METRICS[m], value) for m, value in record.scores.items()]
    return " · ".join(f"{metric.title} {metric.shown(value)} {metric.unit}".strip() for metric, value in shown)


def _drop(clean: Record | None, here: Record | None) -> float | None:
    """What the threat takes from METRIC on one image, positive for harm; None where that is not known."""
    if clean is None or here is None or not {METRIC} <= clean.scores.keys() & here.scores.keys():
        return None
    lost = sign(METRIC) * (clean.scores[METRIC] - here.scores[METRIC])
    return round(lost, METRICS[METRIC].decimals) if math.isfinite(lost) else None
