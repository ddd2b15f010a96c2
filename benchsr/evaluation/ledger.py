"""What a leaderboard's folder holds, and who may change it."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchsr.base.errors import InputError
from benchsr.base.files import write_atomic
from benchsr.data.datasets import Dataset
from benchsr.evaluation.plan import Row
from benchsr.evaluation.protocol import Protocol
from benchsr.results.records import Record, Status, read_results

log = logging.getLogger(__name__)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _about(protocol: Protocol, rows: Sequence[Row], device: torch.device) -> dict[str, Any]:
    """What run.json says: enough to tell whether two leaderboards can be compared, and to run this one again."""
    packages = ("benchsr", "torch", "torchvision", "torchattacks", "lpips", "spandrel", "scikit-image", "numpy")
    return {
        "protocol": protocol.id,
        "fingerprint": protocol.fingerprint,
        "figures": protocol.figures(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "platform": f"{platform.system()} {platform.machine()}",
        "networks": {row.card.id: row.network for row in rows if not row.reason},
        "unavailable": {row.card.id: row.reason for row in rows if row.reason},
        "started": _now(),
        "finished": None,
    }


def _open_results(folder: Path, protocol: Protocol, about: dict[str, Any]) -> list[Record]:
    """What results.csv of this protocol holds already. One of another fingerprint is moved aside, never mixed in."""
    results, run_json = folder / "results.csv", folder / "run.json"
    if results.exists():
        before = _fingerprint(run_json)
        if before != protocol.fingerprint:
            aside = results.with_name(f"results-{before[:8]}.csv")
            results.replace(aside)
            log.warning("%s was made with other settings; it is kept as %s", results, aside.name)
    write_atomic(run_json, json.dumps(about, indent=2) + "\n")
    return _read(results) if results.exists() else []


def _read(results: Path) -> list[Record]:
    records, problems = read_results(results)
    for problem in problems:
        log.warning("%s: %s", results, problem)
    return records


def _fingerprint(run_json: Path) -> str:
    """The fingerprint of the protocol that the folder's results were made with."""
    try:
        return str(json.loads(run_json.read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _require_ours(folder: Path, protocol: Protocol) -> None:
    if _fingerprint(folder / "run.json") != protocol.fingerprint:
        raise InputError(
            f"{folder} was taken over by a run with other settings, which moved these results aside; give one of them "
            "another --out, and run this command again"
        )


def _kept(known: Sequence[Record], planned: Sequence[Record], dataset: Dataset) -> list[Record]:
    """Rows of earlier runs that this run did not plan, as long as they speak of images that are still there."""
    pairs = {(r.model, r.threat) for r in planned}
    cells = {(r.model, r.threat, r.image) for r in planned}
    return [
        r
        for r in known
        if (r.model, r.threat, r.image) not in cells
        and (r.status is Status.OK or (r.model, r.threat) not in pairs)
        and (r.dataset != dataset.id or r.image in dataset.ids)
    ]
