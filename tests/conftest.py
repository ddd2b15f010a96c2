"""Shared fixtures: small seeded networks and images, so that every test runs offline in moments."""

from __future__ import annotations

import inspect
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Idle OpenMP threads that spin would starve other processes on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from spandrel.architectures.ESRGAN import ESRGAN
from torch import Tensor, nn

from benchsr.evaluation.executors import usable_cores

if TYPE_CHECKING:
    from faults import ToyBench


def tiny_rrdb(seed: int = 0, num_filters: int = 8, num_blocks: int = 1, scale: int = 4) -> nn.Module:
    """A seeded random RRDB generator whose output spreads around 0.5, as an image's values would."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ESRGAN(num_filters=num_filters, num_blocks=num_blocks, scale=scale)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):  # torch's default shrinks signals so much that attacks find no hold
                nn.init.kaiming_normal_(module.weight, a=0.2)
        last = net.model[-1]
        nn.init.kaiming_normal_(last.weight, nonlinearity="linear")
        nn.init.constant_(last.bias, 0.5)
    net.requires_grad_(False)
    eval_net: nn.Module = net.eval()
    return eval_net


def images(n: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random LR (n, 3, side, side) and HR (n, 3, 4 side, 4 side), kept off 0 and 1 so that clipping is rare."""
    gen = torch.Generator().manual_seed(seed)
    lr = torch.rand((n, 3, side, side), generator=gen) * 0.8 + 0.1
    hr = torch.rand((n, 3, 4 * side, 4 * side), generator=gen)
    return lr, hr


def scene(network: nn.Module, n: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random LR, and an HR near what `network` makes of it: there is something for an attack to destroy."""
    lr, noise = images(n, side, seed)
    with torch.no_grad():
        hr = (network(lr) + 0.1 * (noise - 0.5)).clamp(0, 1)
    return lr, hr


@pytest.fixture(scope="session", autouse=True)
def drawn_figures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests keep the figures that they draw for each other, away from the user's."""
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchsr.base.drawing.cache_dir", lambda: folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def machine(record_testsuite_property: Callable[[str, object], None]) -> None:
    """What a log of the tests says of where they ran (tests/docs/reliability.py)."""
    record_testsuite_property("python", platform.python_version())
    record_testsuite_property("torch", torch.__version__)
    record_testsuite_property("instructions", torch.backends.cpu.get_cpu_capability())
    record_testsuite_property("cores", usable_cores())


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Log what a trial of docs/reliability.md says of itself: the first lines of its module's docstring and its own."""
    if isinstance(item, pytest.Function) and item.get_closest_marker("reliability"):
        for name, described in {"about": item.module, "trial": item.function}.items():
            if text := inspect.getdoc(described):
                item.user_properties.append((name, text.splitlines()[0]))


@pytest.fixture
def network() -> nn.Module:
    return tiny_rrdb()


@pytest.fixture(scope="session")
def ray_cores() -> Iterator[None]:
    """Ray on this machine, pretending to four cores, so that four workers find room."""
    ray: Any = pytest.importorskip("ray")
    tests = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}  # its workers import toys and faults too
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=tests)
    yield
    ray.shutdown()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyBench:
    """A toy benchmark of 36 evaluations."""
    from faults import make_bench  # which imports this module

    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", None)  # ToyMake sets it, and pytest puts the real one back
    monkeypatch.setattr("benchsr.evaluation.worker.load_network", None)
    return make_bench(tmp_path, n_images=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that `toys.package` installs into; what was imported from it is forgotten."""
    folder, before = tmp_path / "site-packages", set(sys.modules)
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def make_images(folder: Path, count: int = 4, side: int = 72) -> Path:
    """Smooth random pictures: there is something to learn, and nothing to download."""
    gen = torch.Generator().manual_seed(3)
    (folder / "sub").mkdir(parents=True)
    for i in range(count):
        coarse = torch.rand((1, 3, 9, 9), generator=gen)
        image = F.interpolate(coarse, size=(side, side + 8 * i), mode="bicubic").clamp(0, 1)[0]
        pixels = (image.permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / ("sub" if i % 2 else ".") / f"{i}.png")
    return folder


@pytest.fixture
def trunk(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A small random stand-in for VGG, so that these tests need no weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 4, 1)).requires_grad_(False)
    monkeypatch.setattr("benchsr.metrics.objective.vgg_trunk", lambda name: net)
    return net


@pytest.fixture
def accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True, mixed_precision="no")
