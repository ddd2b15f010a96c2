"""Values and errors that every other module speaks; nothing here computes anything."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

SCALE = 4
"""The only super-resolution factor that benchsr evaluates."""


class BenchsrError(Exception):
    """An error that a user can act on: it names culprit and fix. The command line prints it and exits with 2."""


class UnknownIdError(BenchsrError):
    """A name that no registry entry carries; the message suggests the nearest ones."""


class CardError(BenchsrError):
    """A model card or protocol file that does not follow its schema; the message names file and field."""


class UnavailableError(BenchsrError):
    """Weights or data that cannot be had here; the message says what to fetch and where to put it."""


class IntegrityError(BenchsrError):
    """Bytes that are not what they should be: wrong hash, a pickle that would run code, an escaping path."""


class InputError(BenchsrError):
    """An image, tensor, option or results file that cannot be used as given."""


class ModelError(BenchsrError):
    """A network that broke its contract: wrong output shape, NaN, an exception of its own."""


class Status(StrEnum):
    """What became of one planned evaluation."""

    OK = "ok"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


@dataclass(frozen=True)
class Sample:
    """One evaluation image.

    `lr` is float32 (3, h, w) and `hr` float32 (3, 4h, 4w), RGB in [0, 1]. `id` is unique within its data set and is
    what per-image seeds are derived from, so that an image keeps its random draws wherever it is evaluated.
    """

    id: str
    lr: Tensor
    hr: Tensor


@dataclass(frozen=True)
class Record:
    """One line of results.csv: one model under one threat on one image. Fields that were not computed are None.

    `seconds_*` are wall-clock seconds per image; `attack_linf` and `attack_l2` are norms of the perturbation in [0, 1]
    units; `loss_*` is the attack's objective before and after. `key` hashes everything that can change a figure of
    this row, and comes last so that a line cut short can never be mistaken for a whole one.
    """

    protocol: str
    dataset: str
    model: str
    threat: str
    image: str
    status: Status
    reason: str = ""
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    attack_linf: float | None = None
    attack_l2: float | None = None
    loss_clean: float | None = None
    loss_attacked: float | None = None
    seconds_attack: float | None = None
    seconds_sr: float | None = None
    health: str = ""
    seed: int = 0
    key: str = ""
