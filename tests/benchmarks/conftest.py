from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.machine import machine
from benchmarks.workloads import trunk
from benchsr.base.inference import one_thread


@pytest.fixture(autouse=True)
def perceptual_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure with random features where the trained ones cannot be had."""
    monkeypatch.setattr("benchsr.metrics.objective.vgg_trunk", trunk)


@pytest.fixture(autouse=True)
def as_a_worker_computes() -> Iterator[None]:
    """Everybody computes with one thread: a run has a worker of one thread for each core."""
    with one_thread():
        yield


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: object, output_json: dict[str, Any]) -> None:
    """Say which device and versions; leave out the machine's name and the repository's."""
    output_json["machine_info"] = machine(output_json["machine_info"]["cpu"].get("brand_raw", "unknown CPU"))
    output_json["commit_info"] = {"id": output_json["commit_info"].get("id")}
