"""Source domains: images as a domain's camera or processing leaves them, real ones or stand-ins, unpaired with any HR.

Real ones lie in `<cache>/datasets/<name>` (see DOMAINS), in any folders below. A stand-in is a corruption of the table
of threats, applied to bicubic LR of one half of the training photographs; only the other half then serves as HR, so
that no network is shown the two sides of one photograph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from benchsr.base.errors import InputError, UnavailableError
from benchsr.base.files import cache_dir, shown
from benchsr.base.inference import to_bytes
from benchsr.base.registry import Registry
from benchsr.base.shrinking import bicubic_downscale
from benchsr.data.images import read_image
from benchsr.threats.table import THREATS, load_threat
from benchsr.train.crops import SUFFIXES, Source, TrainingImages
from benchsr.train.networks import SCALE


@dataclass(frozen=True)
class Domain:
    """A real source domain: the folder in the cache's `datasets`, and in words what belongs into it."""

    folder: str
    images: str


DOMAINS: Registry[Domain] = Registry(
    "source domain",
    {
        "ntire": Domain("ntire-track1-train", "source-domain training images of NTIRE 2020 real-world SR, track 1"),
        "aim": Domain("aim-train", "source-domain training images of AIM 2019 real-world SR"),
        "dped": Domain("dped-train", "iPhone 3 training photographs of DPED"),
    },
)
"""Domains of which real images can be used. The validation sets' own LR would be test data and is not looked at."""


def check_source(name: str) -> None:
    """Raise UnknownIdError where `name` is no domain, InputError where it is a threat that is no corruption."""
    if name in DOMAINS:
        return
    if name not in THREATS:
        DOMAINS[name]
    if THREATS[name].kind != "corruption":
        raise InputError(f"{name!r} is a {THREATS[name].kind}; a stand-in for a source domain must be a corruption")


def _real(name: str, data: TrainingImages, crop: int) -> TrainingImages:
    domain = DOMAINS[name]
    folder = cache_dir() / "datasets" / domain.folder
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UnavailableError(f"{name}: put the {domain.images} into {shown(folder)}")
    images = [to_bytes(read_image(path, min_side=crop)) for path in paths]
    files = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    digest = hashlib.sha256(f"{data.fingerprint}{files}".encode()).hexdigest()
    return replace(data, source=Source(name, images), fingerprint=digest)


def _stand_in(name: str, data: TrainingImages, seed: int) -> TrainingImages:
    threat = load_threat(name)
    images = []
    for index, image in enumerate(data.images[1::2]):
        hr = image[None].float() / 255
        hr = hr[..., : hr.shape[-2] // 4 * 4, : hr.shape[-1] // 4 * 4]
        lr = threat(nn.Identity(), bicubic_downscale(hr, SCALE), hr, [f"source/{index}"], seed)[0]
        images.append(to_bytes(lr))
    return replace(data, images=data.images[0::2], source=Source(name, images))


def with_source(data: TrainingImages, names: Sequence[str], crop: int, seed: int) -> TrainingImages:
    """`data` with images of the first of the domains `names` that can be had, none smaller than `crop` LR pixels.

    A stand-in is fixed by (seed, place of the photograph) and takes every second photograph of the training images away
    from HR. Raises UnavailableError with every reason where none can be had, InputError for unusable images.
    """
    reasons = []
    for name in names:
        check_source(name)
        try:
            return _real(name, data, crop) if name in DOMAINS else _stand_in(name, data, seed)
        except UnavailableError as error:
            reasons.append(str(error))
    raise UnavailableError("no images of the source domain; " + "; ".join(reasons))
