from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_rrdb
from torch import nn

from benchsr.base.inference import freeze
from benchsr.evaluation.memory import Plan, bytes_per_pixel, cgroup_free, free_bytes, plan_batch
from benchsr.metrics.objective import Objective

CPU = torch.device("cpu")
L1 = Objective(perceptual_weight=0.0)


class Squares(nn.Module):
    """Upsampling and one product: autograd keeps the four bytes of each of 3 x 16 elements, and the loss its sign."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = nn.functional.interpolate(x, scale_factor=4, mode="nearest")
        return up * up


def test_bytes_per_pixel_of_a_known_network() -> None:
    elements = 3 * 16
    assert bytes_per_pixel(Squares(), L1, CPU) == pytest.approx(2 * 4 * elements, rel=0.01)  # the factor; SR - HR


def test_bytes_per_pixel_hardly_depend_on_the_probe() -> None:
    network = freeze(tiny_rrdb(0, 16, 2))
    assert bytes_per_pixel(network, L1, CPU, 16) == pytest.approx(bytes_per_pixel(network, L1, CPU, 32), rel=0.02)


def test_freezing_saves_bytes() -> None:
    network = tiny_rrdb(0, 16, 2)
    before = bytes_per_pixel(network, L1, CPU)
    assert bytes_per_pixel(freeze(network), L1, CPU) < 0.5 * before


@pytest.mark.parametrize(
    ("budget", "plan"),
    [
        (1.5e6, Plan(8, False)),
        (1.5e5, Plan(8, False)),
        (1.5e4 * 3.5, Plan(3, False)),
        (1.5e4, Plan(1, False)),
        (1.4e4, Plan(1, True)),
        (0.0, Plan(1, True)),
    ],
)
def test_plan_fits_the_budget(budget: float, plan: Plan) -> None:
    assert plan_batch(per_pixel=100.0, pixels=100, batch_size=8, budget=budget) == plan


def test_free_bytes_are_some() -> None:
    assert 0 < free_bytes(CPU) < 1 << 50


def lay_out(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


def test_a_control_groups_limit_bounds_what_is_free(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    assert cgroup_free(root, own) == math.inf  # not Linux
    own.write_text("0::/jobs/ours\n")
    assert cgroup_free(root, own) == math.inf  # a container that does not show its groups
    lay_out(root / "jobs", memory__max="1000", memory__current="900", memory__stat="anon 600\ninactive_file 300")
    lay_out(root / "jobs" / "ours", memory__max="max", memory__current="1", memory__stat="anon 1")
    assert cgroup_free(root, own) == 400
    (root / "jobs" / "ours" / "memory.max").write_text("201")
    assert cgroup_free(root, own) == 200
    (root / "jobs" / "ours" / "memory.current").write_text("500")
    assert cgroup_free(root, own) == 0


def test_control_groups_of_version_1_count_too(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("7:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n0::/\n")
    lay_out(
        root / "memory",
        memory__limit_in_bytes="1000",
        memory__usage_in_bytes="700",
        memory__stat="inactive_file 1\ntotal_inactive_file 50",
    )
    assert cgroup_free(root, own) == 350


def test_free_bytes_are_no_more_than_the_groups_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchsr.evaluation.memory.cgroup_free", lambda: 12345.0)
    assert free_bytes(CPU) == 12345
