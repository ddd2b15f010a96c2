from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.workloads import trunk


@pytest.fixture(autouse=True)
def perceptual_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure with random features where the trained ones cannot be had."""
    monkeypatch.setattr("benchsr.metrics.objective.vgg_trunk", trunk)


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: object, output_json: dict[str, Any]) -> None:
    """Say which device and versions; leave out the machine's name and the repository's."""
    cpu = output_json["machine_info"]["cpu"].get("brand_raw", "unknown CPU")
    output_json["machine_info"] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "python": output_json["machine_info"]["python_version"],
        "torch": torch.__version__,
    }
    output_json["commit_info"] = {"id": output_json["commit_info"].get("id")}
