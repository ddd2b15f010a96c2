"""What the benchmarks run. As a program (`python -m benchmarks.workloads JOB.json`) it prints one job's peak memory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
import torchvision
from conftest import tiny_rrdb
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import plain
from benchsr.base.errors import BenchsrError, UnavailableError
from benchsr.base.inference import Autocast, freeze, one_thread
from benchsr.base.precision import bf16_speedup
from benchsr.base.rng import generators
from benchsr.defences.smoothing import Smoothed
from benchsr.evaluation.memory import bytes_per_pixel
from benchsr.metrics import objective as objectives
from benchsr.metrics.objective import Objective
from benchsr.metrics.perceptual import VGGTrunk, lpips_net, vgg_trunk
from benchsr.metrics.quality import lpips, psnr, ssim
from benchsr.models.network import load_network
from benchsr.threats.attacks import CW, FGSM, PGD, GradientAttack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONTESTANTS = ("plain", "fp32", *(["bf16"] if bf16_speedup(torch.device(DEVICE)) > 1 else []))
"""bf16 only where the machine has it: in emulation it takes ten times as long."""
NETWORKS = {"rrdb-23": ("impressionism-ntire", 64, 23), "compact": ("compact-esrgan", 32, 3)}
"""Zoo entry, and filters and blocks of the random network that stands in where its weights cannot be had."""
LAYERS = {"vgg16": 29, "vgg19": 35}
SIGMA = 0.03


@dataclass(frozen=True)
class Job:
    """One contestant's work: `attack` ("mrs" and "metrics" too) on `images` LR of `height` x `width` pixels.

    The contestant "one by one" is the network as benchsr has it, in single passes, as the yardstick of smoothing.
    """

    network: str
    attack: str
    contestant: str
    height: int
    width: int
    images: int = 1
    steps: int | None = None
    draws: int = 21
    trunk: str = "vgg16"
    device: str = DEVICE


@cache
def network(name: str) -> tuple[nn.Module, str]:
    """A frozen network and what its weights are."""
    entry, filters, blocks = NETWORKS[name]
    try:
        return freeze(load_network(entry)), entry
    except BenchsrError:
        return freeze(tiny_rrdb(0, filters, blocks)), "seeded random"


@cache
def perceptual(net: str) -> tuple[nn.Module, str]:
    """A perceptual trunk and what its weights are."""
    try:
        return vgg_trunk("vgg19" if net == "vgg19" else "vgg16"), "ImageNet"
    except UnavailableError:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            features = getattr(torchvision.models, net)(weights=None).features[: LAYERS[net]]
        return freeze(VGGTrunk(features)), "seeded random"


def trunk(net: str) -> nn.Module:
    """What stands in for `metrics.objective.vgg_trunk`, so that a machine without its weights can be measured."""
    return perceptual(net)[0]


def objective(job: Job) -> Objective:
    """L1 + perceptual, weights one."""
    return Objective(net="vgg19" if job.trunk == "vgg19" else "vgg16")


def kept_bytes(job: Job) -> float:
    """What `benchsr.evaluation.memory` plans with: bytes that one gradient keeps."""
    net = network(job.network)[0].to(job.device)
    model = Autocast(net) if job.contestant == "bf16" else net
    return job.height * job.width * bytes_per_pixel(model, objective(job), torch.device(job.device))


def scene(job: Job) -> tuple[Tensor, Tensor]:
    """Synthetic LR and HR: smooth random shapes with some noise, so that there is something to super-resolve."""
    gen = torch.Generator().manual_seed(0)
    shape = (job.images, 3, 4 * job.height, 4 * job.width)
    coarse = torch.rand((job.images, 3, max(2, job.height // 4), max(2, job.width // 4)), generator=gen)
    hr = torch.nn.functional.interpolate(coarse, shape[2:], mode="bicubic").clamp(0, 1)
    hr = (hr + 0.02 * torch.randn(shape, generator=gen)).clamp(0, 1)
    lr = torch.nn.functional.interpolate(hr, scale_factor=0.25, mode="area")
    return lr.to(job.device), hr.to(job.device)


Make = Callable[[Job, nn.Module, Tensor, Tensor], Callable[[], Tensor]]
"""(job, frozen network, LR, HR) -> the work."""


def prepare(job: Job) -> Callable[[], Tensor]:
    """Load what `job` needs and return the work itself: attacked LR, median SR, or the metrics' figures."""
    lr, hr = scene(job)
    net = network(job.network)[0].to(job.device)
    return TASKS[job.attack](job, net, lr, hr)


def _attack(ours: Callable[..., GradientAttack], by_hand: Callable[..., Tensor]) -> Make:
    def make(job: Job, net: nn.Module, lr: Tensor, hr: Tensor) -> Callable[[], Tensor]:
        steps = {"steps": job.steps} if job.steps else {}
        model = Autocast(net) if job.contestant == "bf16" else net
        attacker = ours(model, objective=objective(job), **steps)
        if job.contestant == "plain":
            gens = generators(0, [str(i) for i in range(len(lr))], f"{attacker.attack.lower()}-start")
            starts = attacker.image(attacker.start(lr, gens))
            net, loss_net = plain.thawed(net), plain.thawed(trunk(job.trunk).to(job.device))

            def attack() -> Tensor:
                images = zip(lr.split(1), hr.split(1), starts.split(1), strict=True)
                attacked = torch.cat([by_hand(net, loss_net, *image, **steps) for image in images])
                net.zero_grad()
                loss_net.zero_grad()
                return attacked

            return attack
        return lambda: attacker(lr, hr)

    return make


def _median(job: Job, net: nn.Module, lr: Tensor, hr: Tensor) -> Callable[[], Tensor]:
    if job.contestant in ("plain", "one by one"):
        by_hand = plain.thawed(net) if job.contestant == "plain" else net
        return lambda: plain.median_of_draws(by_hand, lr, SIGMA, job.draws)
    smoothed = Smoothed(Autocast(net) if job.contestant == "bf16" else net, SIGMA, job.draws)

    def median() -> Tensor:
        with torch.no_grad():
            sr: Tensor = smoothed(lr)
        return sr

    return median


def _metrics(job: Job, net: nn.Module, lr: Tensor, hr: Tensor) -> Callable[[], Tensor]:
    sr = (hr + 0.05).clamp(0, 1)
    if job.contestant == "plain":
        by_hand = plain.thawed(lpips_net().to(job.device))
        return lambda: torch.tensor(
            [plain.metrics(by_hand, a, b) for a, b in zip(sr.split(1), hr.split(1), strict=True)]
        )
    return lambda: torch.stack([psnr(sr, hr), ssim(sr, hr), lpips(sr, hr)], dim=1)


TASKS: dict[str, Make] = {
    "fgsm": _attack(FGSM, plain.fgsm),
    "pgd": _attack(PGD, plain.pgd),
    "cw": _attack(CW, plain.cw),
    "mrs": _median,
    "metrics": _metrics,
}
ATTACKS = ("fgsm", "pgd", "cw")


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, dict[str, float]]:
    """What `work` returns, and its wall-clock and processor seconds; the latter hold on a busy machine too."""
    started, cpu = time.perf_counter(), time.process_time()
    result = work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result, {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}


class _Flop(TorchDispatchMode):
    """Counts arithmetic. `FlopCounterMode` does too, but looks at modules, and refuses a gradient to their input."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


def flop(work: Callable[[], Tensor]) -> int:
    """Additions and multiplications of the matrix products and convolutions in `work`, ways back too."""
    counter = _Flop()
    with counter:
        work()
    return counter.total


def strength(job: Job, attacked: Tensor) -> dict[str, float]:
    """The objective, in float32, before and after an attack: one judge for all contestants."""
    lr, hr = scene(job)
    net = network(job.network)[0].to(job.device)
    with torch.no_grad():
        bound = objective(job).bind(hr)
        return {name: float(bound(net(x)).mean()) for name, x in (("loss_clean", lr), ("loss_attacked", attacked))}


def peak_bytes(job: Job) -> int:
    """How far memory grows while `job` runs: resident memory of this process (Linux), or the GPU allocator's."""
    prepare(replace(job, height=8, width=8, images=1, draws=2, steps=job.steps and 1))()  # libraries' own buffers
    work = prepare(job)
    if job.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated()) - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    rss = psutil.Process().memory_info().rss
    work()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 - rss  # type: ignore[no-any-return]


if __name__ == "__main__":
    vars(objectives)["vgg_trunk"] = trunk
    with one_thread():
        print(peak_bytes(Job(**json.loads(sys.argv[1]))))
