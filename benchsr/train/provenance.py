"""Where weights come from: data, steps, hardware, time, seed, command and validation figures."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchsr.base.files import sha256_file, write_atomic
from benchsr.train.loop import Job, Progress

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux, and no other system, names the processor."""


def hardware() -> str:
    """The processor or accelerator that torch computes on, in words, with the cores that a process uses."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cpuinfo = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    names = [line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores of {name}"


def provenance(job: Job, progress: Progress, *, start: str, command: str, processes: int) -> dict[str, Any]:
    """What the card's `[training]` table says of a finished run. Seconds are wall time of training and validation.

    `start_validation` is there for models of a stand-in domain: what the weights they start from reach in it.
    """
    weights = job.weights(job.recipe.stages[-1])
    source = job.data.source
    domain = {"source": source.name, "source_images": len(source.images)} if source else {}
    validation = {row["stage"]: _figures(row) for row in progress.validation}  # of each stage its last row
    stages = []
    for stage in job.recipe.stages:
        seconds = round(progress.seconds.get(stage.name, 0.0))
        figures = validation.get(stage.name, {})
        stages.append({"name": stage.name, "steps": stage.steps, "seconds": seconds, "validation": figures})
    return {
        "command": command,
        "recipe_sha256": job.recipe.sha256,
        "start": start,
        "seed": job.seed,
        "data": {
            "folder": job.data.folder.name,
            "images": len(job.data.images),
            "held_out": len(job.data.held_out),
            "sha256": job.data.fingerprint,
            **domain,
        },
        "hardware": hardware(),
        "processes": processes,
        "torch": version("torch"),
        "weights": {"file": weights.name, "sha256": sha256_file(weights), "bytes": weights.stat().st_size},
        **({"start_validation": validation["start"]} if "start" in validation else {}),
        "stages": stages,
    }


def _figures(row: dict[str, Any]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in row.items() if isinstance(value, float)}


def write_provenance(path: Path, table: dict[str, Any]) -> None:
    """Write the table as JSON, replacing the file at once."""
    write_atomic(path, json.dumps(table, indent=2) + "\n")
