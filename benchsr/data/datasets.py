"""Data sets: pairs of LR and HR images under stable ids."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import skimage

from benchsr.base.downloads import extract_zip, url_file
from benchsr.base.errors import InputError, IntegrityError, UnavailableError, UnknownIdError
from benchsr.base.files import cache_dir, locked, sha256_file
from benchsr.base.pairs import SCALE, Sample
from benchsr.base.registry import Registry
from benchsr.data.images import MIN_SIDE, SUFFIXES, Boundary, bicubic_downscale, opened, read_image


@dataclass(frozen=True)
class Archive:
    """A zip of HR or LR images: its address, its size in bytes (None: not known) and how its SHA-256 begins."""

    part: Literal["HR", "LR"]
    url: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """A named data set of `count` images.

    `kind` "embedded": HR files `images` of an installed package. "paired": LR and HR from `archives`, matched by the
    number in their names. `boundary` and `round8` say how LR is made from HR where it does not come with the data.
    """

    id: str
    title: str
    licence: str
    kind: Literal["embedded", "paired"]
    count: int
    images: tuple[str, ...] = ()
    archives: tuple[Archive, ...] = ()
    boundary: Boundary = "edge"
    round8: bool = True


# Colour images that a camera took, of things seen by eye, telescope or microscope. Of the stereo pair only one half, as
# the other shows the same; not the retina, so smooth that bicubic restores it to 47 dB; no drawings, renderings, test
# charts or texts. Everyday scenes first, for --limit.
_PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "ihc.png",
    "hubble_deep_field.jpg",
)

_DIV2K = "https://data.vision.ee.ethz.ch/cvl/DIV2K/"

_RWSR = "https://data.vision.ee.ethz.ch/alugmayr/real-world-sr/"

_MAX_ARCHIVE_BYTES, _MAX_UNPACKED_BYTES, _MAX_FILES = 2 << 30, 4 << 30, 1000

DATASETS: Registry[DatasetSpec] = Registry(
    "data set",
    {
        spec.id: spec
        for spec in (
            DatasetSpec(
                "photos",
                f"{len(_PHOTOS)} photographs that come with scikit-image",
                "public domain or CC0; motorcycle_left: Middlebury 2014 stereo data; ihc: no known restrictions",
                "embedded",
                len(_PHOTOS),
                images=_PHOTOS,
            ),
            DatasetSpec(
                "div2k-valid",
                "DIV2K validation, LR bicubic x4",
                "academic research only",
                "paired",
                100,
                archives=(
                    Archive("HR", f"{_DIV2K}DIV2K_valid_HR.zip", 448993893, "20dd31fd"),
                    Archive("LR", f"{_DIV2K}DIV2K_valid_LR_bicubic_X4.zip", 31505881, "a50a5d1c"),
                ),
            ),
            DatasetSpec(
                "ntire-track1-valid",
                "NTIRE 2020 real-world SR, track 1, validation",
                "academic research only (DIV2K)",
                "paired",
                100,
                archives=(
                    Archive("HR", f"{_RWSR}NTIRE20/track1-valid-gt.zip"),
                    Archive("LR", f"{_RWSR}NTIRE20/track1-valid-input.zip"),
                ),
            ),
            DatasetSpec(
                "aim-valid",
                "AIM 2019 real-world SR, track 2, validation",
                "academic research only (DIV2K)",
                "paired",
                100,
                archives=(
                    Archive("HR", f"{_RWSR}AIM19/valid-gt-clean.zip"),
                    Archive("LR", f"{_RWSR}AIM19/valid-input-noisy.zip"),
                ),
            ),
        )
    },
)


@dataclass(frozen=True)
class Source:
    """The files of one sample; `lr` None where LR is to be made from HR."""

    id: str
    hr: Path
    lr: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """Samples in order, decoded when asked for: `len(d)`, `d[i]`, `d.ids`, `d.sample(id)`. A folder's id says so.

    `crop` is the side in LR pixels of a crop at the centre, cut from HR before LR is made of it, or None for whole
    images. `boundary` and `round8` are those of `bicubic_downscale`.
    """

    id: str
    sources: Registry[Source]
    crop: int | None = None
    boundary: Boundary = "edge"
    round8: bool = True

    @cached_property
    def ids(self) -> list[str]:
        """Names of the samples, unique."""
        return list(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(self.ids[index])

    def first(self, n: int | None) -> Dataset:
        """The data set of the first `n` samples; None: all."""
        return replace(self, sources=Registry("image", {i: self.sources[i] for i in self.ids[:n]}))

    def sample(self, sample_id: str) -> Sample:
        """Decode one sample. Raises UnknownIdError, and InputError for files that cannot be used."""
        source = self.sources[sample_id]
        hr = read_image(source.hr, min_side=SCALE * MIN_SIDE)
        lr = read_image(source.lr) if source.lr else None
        h, w = _lr_size(source, hr.shape[1:], lr.shape[1:] if lr is not None else None, self.crop)
        crop_h, crop_w = (h, w) if self.crop is None else (self.crop, self.crop)
        top, left = (h - crop_h) // 2, (w - crop_w) // 2
        hr = hr[:, SCALE * top : SCALE * (top + crop_h), SCALE * left : SCALE * (left + crop_w)].contiguous()
        if lr is None:
            return Sample(sample_id, bicubic_downscale(hr, boundary=self.boundary, round8=self.round8), hr)
        return Sample(sample_id, lr[:, top : top + crop_h, left : left + crop_w].contiguous(), hr)

    def sample_key(self, sample_id: str) -> str:
        """SHA-256 (64 hex digits) that changes whenever the id, a pixel of LR or a pixel of HR can have changed."""
        source = self.sources[sample_id]
        made = _file_sha256(source.lr) if source.lr else [self.boundary, self.round8]
        return _digest([sample_id, _file_sha256(source.hr), made, self.crop])

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over the keys of all samples."""
        return _digest([self.sample_key(sample_id) for sample_id in self.ids])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    stat = path.stat()
    return _hash_once(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_once(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)


def _lr_size(source: Source, hr: Sequence[int], lr: Sequence[int] | None, crop: int | None) -> tuple[int, int]:
    """Height and width of the whole LR image. Raises InputError where HR and LR do not match, or hold no crop."""
    h, w = hr[0] // SCALE, hr[1] // SCALE
    if lr is not None and (h, w) != tuple(lr):
        raise InputError(
            f"{source.lr} ({lr[1]} x {lr[0]} pixels) and {source.hr} ({hr[1]} x {hr[0]}) do not match: "
            f"HR must be {SCALE} times LR"
        )
    if crop is not None and not MIN_SIDE <= crop <= min(h, w):
        raise InputError(
            f"{source.hr} ({hr[1]} x {hr[0]} pixels) holds no LR crop of {crop} x {crop}: a crop has at least "
            f"{MIN_SIDE} pixels a side, and {SCALE} times as many in HR; choose another one, or leave the image out"
        )
    return h, w


def load_sample(path: str | Path, *, crop: int | None = None) -> Sample:
    """One HR image file, with LR made from it; `crop` as for `load_dataset`. Raises InputError as `read_image` does."""
    source = Source(Path(path).stem, Path(path))
    return Dataset("image", Registry("image", {source.id: source}), crop)[0]


def load_dataset(name_or_dir: str | Path, *, crop: int | None = None) -> Dataset:
    """A data set by name, or a folder: HR images; or `HR/` and, if LR is not to be made from HR, `LR/`; or *_HR, *_LR.

    LR and HR are matched by name, in which a final x4, _LR, _HR or _GT does not count. `crop` is the side in LR pixels
    of a crop at the centre (its corner lies on a multiple of 4 in HR). Only headers are read here, the rest when asked
    for. Raises UnknownIdError, UnavailableError for a data set that is not here yet, and InputError, naming the files,
    for missing partners, equal names, sizes that do not match and images smaller than 32 pixels or the crop.
    """
    if name_or_dir in DATASETS:
        spec = DATASETS[str(name_or_dir)]
        sources = _embedded(spec) if spec.kind == "embedded" else _fetched(spec)
        dataset = Dataset(spec.id, sources, crop, spec.boundary, spec.round8)
    elif Path(name_or_dir).is_dir():
        folder = Path(name_or_dir).resolve()
        dataset = Dataset(f"folder:{folder.name}", _folder(folder), crop)  # never the name of a data set
    else:
        try:
            DATASETS[str(name_or_dir)]
        except UnknownIdError as error:
            raise UnknownIdError(f"{error}; nor is it a folder of images") from None
    for source in dataset.sources.values():
        sizes = [_sides(path) for path in (source.hr, source.lr) if path]
        _lr_size(source, sizes[0], sizes[1] if source.lr else None, crop)
    return dataset


def _sides(path: Path) -> list[int]:
    """Shorter and longer side in pixels: whether EXIF turns the image is known only once it is decoded."""
    with opened(path, MIN_SIDE) as image:
        return sorted(image.size)


def _embedded(spec: DatasetSpec) -> Registry[Source]:
    paths = [Path(skimage.__file__).parent / "data" / name for name in spec.images]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise UnavailableError(f"{spec.id}: scikit-image lacks {', '.join(absent)}; install it from its wheel again")
    return Registry("image", {path.stem: Source(path.stem, path) for path in paths})


def _fetched(spec: DatasetSpec) -> Registry[Source]:
    folder = cache_dir() / "datasets" / spec.id
    if not all((folder / archive.part).is_dir() for archive in spec.archives):
        raise UnavailableError(
            f"data set {spec.id!r} is not here: run `benchsr fetch {spec.id}`, or put its images into HR and LR of "
            f"datasets/{spec.id} in benchsr's cache folder ($BENCHSR_CACHE if set)"
        )
    sources = _paired(folder / "HR", _images(folder / "HR"), _images(folder / "LR"), _number)
    if len(sources) != spec.count:
        raise InputError(
            f"{folder} holds {len(sources)} of the {spec.count} pairs of {spec.id}; delete it and run "
            f"`benchsr fetch {spec.id}`"
        )
    return sources


def _folder(folder: Path) -> Registry[Source]:
    if (folder / "HR").is_dir():
        hr = _images(folder / "HR")
        lr = _images(folder / "LR") if (folder / "LR").is_dir() else []
    else:
        hr = [path for path in _images(folder) if path.parent == folder]
        lr = [path for path in hr if re.search(r"[-_]LR$", path.stem, re.IGNORECASE)]
        hr = [path for path in hr if path not in lr]
    return _paired(folder, hr, lr, _bare_stem if lr else lambda path: path.stem)


def _images(folder: Path) -> list[Path]:
    paths = folder.rglob("*")
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def _bare_stem(path: Path) -> str:
    return re.sub(r"([-_](LR|HR|GT)|[-_]?x4)+$", "", path.stem, flags=re.IGNORECASE)


def _number(path: Path) -> str:
    number = re.search(r"\d+", path.stem)
    return number.group() if number else path.stem


def _paired(folder: Path, hr: list[Path], lr: list[Path], name: Callable[[Path], str]) -> Registry[Source]:
    """Sources of `hr`, each with its partner in `lr` (empty: no image has one)."""
    if not hr:
        raise InputError(f"{folder} holds no HR images ({', '.join(sorted(SUFFIXES))})")
    hr_by_name, lr_by_name = _named(hr, name), _named(lr, name)
    alone = [
        path for mine, others in ((hr_by_name, lr_by_name), (lr_by_name, hr_by_name)) for path in _rest(mine, others)
    ]
    if lr and alone:
        raise InputError(f"images without a partner of the other resolution: {', '.join(map(str, alone[:5]))}")
    return Registry("image", {n: Source(n, path, lr_by_name.get(n)) for n, path in hr_by_name.items()})


def _rest(mine: dict[str, Path], others: dict[str, Path]) -> list[Path]:
    return [path for name, path in mine.items() if name not in others]


def _named(paths: list[Path], name: Callable[[Path], str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        if (other := named.setdefault(name(path), path)) != path:
            raise InputError(f"{path} and {other} would both be image {name(path)!r}; rename one of them")
    return named


def fetch(name: str) -> Path:
    """Download and unpack a data set, and return its folder; what is there already is kept.

    Raises UnavailableError (no network, dead address; says what to do), IntegrityError (size or hash not as expected),
    InputError (images missing) and UnknownIdError.
    """
    spec = DATASETS[name]
    if spec.kind == "embedded":
        return next(iter(_embedded(spec).values())).hr.parent
    folder = cache_dir() / "datasets" / spec.id
    with locked(folder):
        for archive in spec.archives:
            if not (folder / archive.part).is_dir():
                _unpack(spec, archive, folder)
    _fetched(spec)
    return folder


def _unpack(spec: DatasetSpec, archive: Archive, folder: Path) -> None:
    """Download an archive of `spec`, and unpack it into `folder`, whole or not at all."""
    path = url_file(
        archive.url,
        sha256=archive.sha256,
        filename=f"{spec.id}-{archive.part}.zip",
        max_bytes=archive.bytes or _MAX_ARCHIVE_BYTES,
    )
    if archive.bytes not in (None, path.stat().st_size):
        raise IntegrityError(f"{path} has {path.stat().st_size} bytes, not {archive.bytes}; delete it and try again")
    unpacking = folder / f".{archive.part}.part"
    extract_zip(path, unpacking, _MAX_UNPACKED_BYTES, _MAX_FILES)
    unpacking.replace(folder / archive.part)
