"""Training data: folders of HR images, random crops of them, LR made on the fly."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchsr.base.errors import InputError
from benchsr.base.inference import to_bytes
from benchsr.base.pairs import Sample
from benchsr.base.rng import generator
from benchsr.base.shrinking import bicubic_downscale
from benchsr.data.images import read_image
from benchsr.train.networks import SCALE

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Source:
    """LR images (3, h, w) uint8 of a source domain, unpaired with any HR; `name` as in a recipe's `sources`."""

    name: str
    images: list[Tensor]


@dataclass(frozen=True)
class TrainingImages:
    """HR images (3, H, W) uint8 of a folder, those held out for validation as LR/HR pairs, and the files' sha256."""

    folder: Path
    images: list[Tensor]
    held_out: list[Sample]
    fingerprint: str
    source: Source | None = None


def load_images(folder: Path, crop: int, held_out: int, held_out_crop: int, progress: bool = True) -> TrainingImages:
    """Decode every image below `folder` once.

    `held_out` of them, evenly spaced in the order of their paths, are set aside as validation samples: LR crops of
    `held_out_crop` pixels from their centre. Every image must be large enough for both crops. Raises InputError naming
    the folder or the file that cannot be used.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; give the HR images to train on with --data DIR")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if len(paths) <= held_out:
        raise InputError(f"{folder} holds {len(paths)} images; training needs more than the {held_out} held out")
    side = SCALE * max(crop, held_out_crop if held_out else 0)
    digest = hashlib.sha256()
    images, samples = [], []
    chosen = {i * len(paths) // max(held_out, 1) for i in range(held_out)}
    with tqdm(paths, desc="decoding", disable=not progress) as bar:
        for index, path in enumerate(bar):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
            image = read_image(path)
            if min(image.shape[-2:]) < side:
                raise InputError(
                    f"{path} is {image.shape[2]}x{image.shape[1]}; this recipe needs at least {side}x{side}"
                )
            if index in chosen:
                size = SCALE * held_out_crop
                top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
                hr = image[:, top : top + size, left : left + size].contiguous()
                samples.append(Sample(path.relative_to(folder).as_posix(), bicubic_downscale(hr, SCALE), hr))
            else:
                images.append(to_bytes(image))
    return TrainingImages(folder, images, samples, digest.hexdigest())


@dataclass(frozen=True)
class Batch:
    """LR (n, 3, c, c) and HR (n, 3, 4c, 4c) in [0, 1], with the id of each row's random draws.

    `source`: crops (n, 3, c, c) of the source domain's images, unpaired with both; None where the stage asks for none.
    """

    lr: Tensor
    hr: Tensor
    ids: list[str]
    source: Tensor | None = None


class Crops(Dataset[Batch]):
    """Item k is this process's share of the batch of step k: rows `rank`, `rank + world`, ...

    Row r of step k of a stage draws its image, place, flip and rotation from a generator seeded by (seed, stage, k, r):
    what a step sees depends on no earlier step, no worker and no number of processes, so that resuming is exact. Crops
    of the source domain, `source`, are drawn likewise; the rows are `members` equal blocks, the i-th of which draws
    from every `members`-th image from the i-th on.
    """

    def __init__(
        self,
        images: list[Tensor],
        *,
        stage: str,
        batch: int,
        crop: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        source: Sequence[Tensor] = (),
        members: int = 1,
    ) -> None:
        if batch % world:
            raise InputError(f"{world} processes cannot share batches of {batch} images evenly")
        self.images = images
        self.stage = stage
        if source and len(source) < members:
            raise InputError(f"{members} kernels need as many images of the source domain; there are {len(source)}")
        self.rows = range(rank, batch, world)
        self.crop = crop
        self.seed = seed
        self.sources = [source[member::members] for member in range(members)] if source else []
        self.block = batch // members

    def _row(self, sample_id: str, images: Sequence[Tensor], side: int, purpose: str) -> Tensor:
        gen = generator(self.seed, sample_id, purpose)

        def draw(n: int) -> int:
            return int(torch.randint(n, (), generator=gen))

        image = images[draw(len(images))]
        top, left = draw(image.shape[1] - side + 1), draw(image.shape[2] - side + 1)
        crop = image[:, top : top + side, left : left + side]
        crop = torch.rot90(crop, draw(4), (1, 2))
        return crop.flip(2) if draw(2) else crop

    def __getitem__(self, step: int) -> Batch:
        ids = [f"{self.stage}/{step}/{row}" for row in self.rows]
        hr = torch.stack([self._row(i, self.images, SCALE * self.crop, "crop") for i in ids]).float() / 255
        source = None
        if self.sources:
            pools = [self.sources[row // self.block] for row in self.rows]
            crops = [self._row(i, pool, self.crop, "source") for i, pool in zip(ids, pools, strict=True)]
            source = torch.stack(crops).float() / 255
        return Batch(bicubic_downscale(hr, SCALE), hr, ids, source)

    def loader(self, steps: range, workers: int) -> DataLoader[Batch]:
        """The batches of `steps` in order, made ahead by `workers` processes (0: in this one)."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=list(steps),
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_end_without_words,
        )


def _end_without_words(_: int) -> None:
    """Let a process that makes batches print no traceback when the training that it hands them to is killed."""

    def answer(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        if not isinstance(error, (ConnectionError, EOFError)):
            sys.__excepthook__(kind, error, where)

    sys.excepthook = answer
