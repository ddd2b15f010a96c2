"""A zoo of toy networks and a folder of small images, for tests of the runner and the command line."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_rrdb
from PIL import Image
from safetensors.torch import save_file
from spandrel.architectures.DAT import DAT
from torch import Tensor, nn

from benchsr.cli import main
from benchsr.results.records import Record, Status

SCORES = ("psnr", "ssim", "lpips")


def changed(record: Record, **changes: Any) -> Record:
    """`record` with other fields and, by the metrics' names, other figures; None takes a figure away."""
    figures = {**record.scores, **{name: changes.pop(name) for name in SCORES if name in changes}}
    return replace(record, scores={k: v for k, v in figures.items() if v is not None}, **changes)


class FakeLpips(nn.Module):
    """Stands in for the AlexNet metric, whose weights the tests do not download."""

    def forward(self, a: Tensor, b: Tensor, **_: Any) -> Tensor:
        """Mean absolute difference."""
        return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)


class Upscale(nn.Module):
    """A small network of the caller's own."""

    def __init__(self, factor: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 3 * factor**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(factor)

    def forward(self, x: Tensor) -> Tensor:
        sr: Tensor = self.shuffle(self.conv(x))
        return sr


class Dropping(Upscale):
    """Random by design, by torch's generator."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5))


def net(kind: type[Upscale] = Upscale, **settings: Any) -> Upscale:
    made = kind(**settings).eval()
    assert isinstance(made, Upscale)
    return made


def tiny_dat() -> nn.Module:
    """A DAT of scale 4, with the smallest windows that it can have."""
    torch.manual_seed(0)
    dat: nn.Module = DAT(
        img_size=16, embed_dim=16, split_size=[2, 4], depth=[2], num_heads=[2], expansion_factor=2.0, upscale=4
    )
    return dat.eval()


CARD = """
id = "{id}"
title = "Toy {id}"
scale = {scale}
family = "compact"
paper_row = false
licence = "MIT"
paper = "none"
training_data = "none"
fine_tuning_data = "none"

[[weights]]
kind = "file"
path = "{path}"
format = "safetensors"
sha256 = "{sha256}"
{more}
"""


def toy_card(folder: Path, name: str, *, seed: int = 0, scale: int = 4, more: str = "") -> str:
    """Write a card and its weights; returns the card's path, as --models takes it."""
    weights = folder / f"{name}.safetensors"
    save_file(tiny_rrdb(seed, scale=scale).state_dict(), weights)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    card = folder / f"{name}.toml"
    card.write_text(CARD.format(id=name, scale=scale, path=weights.name, sha256=sha256, more=more))
    return str(card)


def package(site: Path, name: str, groups: Mapping[str, Mapping[str, str]], code: str, version: str = "1.0") -> None:
    """Install a package of one module into the folder `site`, as pip leaves it, with its entry points by group."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    (site / f"{name.replace('-', '_')}.py").write_text(code + "\n")
    importlib.invalidate_caches()


def photos(folder: Path, n: int = 3, side: int = 64) -> Path:
    """A folder of `n` smooth random HR images of side x side pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"photo{i}.png")
    return folder


def protocol(folder: Path, dataset: Path) -> Path:
    """A protocol on that folder whose attacks need no perceptual network."""
    file = folder / "toy.toml"
    file.write_text(
        f'id = "toy"\ntitle = "Toy"\ndataset = "{dataset}"\ncrop = 12\n'
        'threats = ["clean", "noise", "fgsm", "pgd", "ntire"]\n'
        "[objective]\nl1_weight = 1.0\nperceptual_weight = 0.0\n[settings.pgd]\nsteps = 2\n"
    )
    return file


def call(monkeypatch: pytest.MonkeyPatch, command: str) -> int:
    """Run a command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["benchsr", *command.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def names(n: int) -> tuple[str, ...]:
    """Ids of n images."""
    return tuple(f"image-{i:03}" for i in range(n))


def records(model: str, threat: str, psnr: list[float] | np.ndarray, **changes: object) -> list[Record]:
    """Made-up evaluations of one model under one threat, an image for each PSNR."""
    figures = {name: float(v) for name, v in zip(names(len(psnr)), psnr, strict=True)}
    made = [
        Record(
            *("toy", "photos", model, threat, name, Status.OK),
            scores={"psnr": v, "ssim": 0.5 + v / 100, "lpips": 1 / (1 + v)},
            key="0" * 64,
        )
        for name, v in figures.items()
    ]
    return [changed(r, **changes) for r in made]
