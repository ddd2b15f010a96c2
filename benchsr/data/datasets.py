"""Data sets: pairs of LR and HR images under stable ids.

Files of a set with an archive or a manifest lie in the cache, in `datasets/<id>`: as `HR/` and `LR/`, or each by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path

import skimage

from benchsr.base.errors import InputError, IntegrityError, UnavailableError, UnknownIdError
from benchsr.base.files import sha256_file, shown
from benchsr.base.pairs import USUAL, Sample, Scale
from benchsr.base.registry import Registry
from benchsr.base.shrinking import bicubic_downscale
from benchsr.data.cards import DATASETS, Archives, DataCard, Embedded, Folder, Made, load_data_card
from benchsr.data.images import MIN_SIDE, SUFFIXES, min_side, opened, read_image

MAX_LISTED = 100_000
"""Files and folders below a folder of images that are looked at: a card may name any."""


@dataclass(frozen=True)
class Source:
    """The files of one sample; `lr` None where LR is to be made from HR, as `made` says."""

    id: str
    hr: Path
    lr: Path | None = None
    made: Made = field(default_factory=Made)


@dataclass(frozen=True)
class Dataset:
    """Samples in order, decoded when asked for: `len(d)`, `d[i]`, `d.ids`, `d.sample(id)`. A folder's id says so.

    `crop` is the side in LR pixels of a crop at the centre, cut from HR before LR is made of it, or None for whole
    images. HR is `scale` times LR.
    """

    id: str
    sources: Registry[Source]
    crop: int | None = None
    scale: Scale = USUAL

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
        source, scale = self.sources[sample_id], self.scale
        hr = read_image(source.hr, min_side=scale * min_side(scale))
        lr = read_image(source.lr) if source.lr else None
        h, w = _lr_size(source, hr.shape[1:], lr.shape[1:] if lr is not None else None, self.crop, scale)
        crop_h, crop_w = (h, w) if self.crop is None else (self.crop, self.crop)
        top, left = (h - crop_h) // 2, (w - crop_w) // 2
        hr = hr[:, scale * top : scale * (top + crop_h), scale * left : scale * (left + crop_w)].contiguous()
        if lr is None:
            made = source.made
            return Sample(sample_id, bicubic_downscale(hr, scale, boundary=made.boundary, round8=made.round8), hr)
        return Sample(sample_id, lr[:, top : top + crop_h, left : left + crop_w].contiguous(), hr)

    def sample_key(self, sample_id: str) -> str:
        """SHA-256 (64 hex digits) that changes whenever the id, a pixel of LR or a pixel of HR can have changed."""
        source = self.sources[sample_id]
        scale = [self.scale] if self.scale != USUAL else []  # left out, so that keys from before it was a choice hold
        lr = _file_sha256(source.lr) if source.lr else [source.made.boundary, source.made.round8, *scale]
        return _digest([sample_id, _file_sha256(source.hr), lr, self.crop])

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


def _lr_size(
    source: Source, hr: Sequence[int], lr: Sequence[int] | None, crop: int | None, scale: Scale
) -> tuple[int, int]:
    """Height and width of the whole LR image. Raises InputError where HR and LR do not match, or hold no crop."""
    h, w = hr[0] // scale, hr[1] // scale
    if lr is not None and (h, w) != tuple(lr):
        raise InputError(
            f"{source.lr} ({lr[1]} x {lr[0]} pixels) and {source.hr} ({hr[1]} x {hr[0]}) do not match: "
            f"HR must be {scale} times LR"
        )
    if crop is not None and not min_side(scale) <= crop <= min(h, w):
        raise InputError(
            f"{source.hr} ({hr[1]} x {hr[0]} pixels) holds no LR crop of {crop} x {crop}: a crop has at least "
            f"{min_side(scale)} pixels a side, and {scale} times as many in HR; choose another one, or leave the image "
            "out"
        )
    return h, w


def load_sample(path: str | Path, *, crop: int | None = None, scale: Scale = USUAL) -> Sample:
    """One HR image file, with LR made from it; `crop` and `scale` as for `load_dataset`.

    Raises InputError as `read_image` does.
    """
    source = Source(Path(path).stem, Path(path))
    return Dataset("image", Registry("image", {source.id: source}), crop, scale)[0]


def load_dataset(name_or_dir: str | Path, *, crop: int | None = None, scale: Scale = USUAL) -> Dataset:
    """A data set by id, by its card's path (my-set.toml), a folder, or several of those joined by "+" ("set5+set14").

    A folder holds HR images; or `HR/` and, if LR is not to be made from HR, `LR/`; or *_HR, *_LR. LR and HR are matched
    by name, in which a final x4 (x2, x3, x8), _LR, _HR or _GT does not count. Images of joined sets are led by their
    set's id. `crop` is the side in LR pixels of a crop at the centre (its corner lies on a multiple of `scale` in HR).
    HR is `scale` times LR. Only headers are read here, the rest when asked for. Raises UnknownIdError, CardError,
    UnavailableError for a data set that is not here yet or not of this scale, IntegrityError for a file that its
    manifest does not know, and InputError, naming the files, for missing partners, equal names, sizes that do not match
    and images smaller than 32 pixels or the crop.
    """
    name = str(name_or_dir)
    if name in DATASETS or (name.endswith(".toml") and ("+" not in name or Path(name).is_file())):
        card = load_data_card(name)
        dataset = Dataset(card.id, find_sources(card, scale), crop, scale)
    elif Path(name).is_dir():
        folder = Path(name).resolve()
        dataset = Dataset(f"folder:{folder.name}", _folder(folder), crop, scale)  # never the name of a data set
    elif "+" in name:
        return _joined(name, crop, scale)
    else:
        try:
            DATASETS[name]
        except UnknownIdError as error:
            raise UnknownIdError(f"{error}; nor is it a folder of images") from None
    for source in dataset.sources.values():
        sizes = [_sides(path) for path in (source.hr, source.lr) if path]
        _lr_size(source, sizes[0], sizes[1] if source.lr else None, crop, scale)
    return dataset


def _joined(names: str, crop: int | None, scale: Scale) -> Dataset:
    parts = [part.strip() for part in names.split("+")]
    if not all(parts) or len(set(parts)) < len(parts):
        raise InputError(f"data sets {names!r}: between the + stand names of data sets, each another one")
    sets = [load_dataset(part, crop=crop, scale=scale) for part in parts]
    if len({each.id for each in sets}) < len(sets):
        raise InputError(f"data sets {names!r}: two of them have one name; their images could not be told apart")
    sources: Registry[Source] = Registry("image")
    for each in sets:
        for source in each.sources.values():
            sources.add(f"{each.id}-{source.id}", replace(source, id=f"{each.id}-{source.id}"))
    return Dataset("+".join(each.id for each in sets), sources, crop, scale)


def _sides(path: Path) -> list[int]:
    """Shorter and longer side in pixels: whether EXIF turns the image is known only once it is decoded."""
    with opened(path, MIN_SIDE) as image:
        return sorted(image.size)


def find_sources(card: DataCard, scale: Scale) -> Registry[Source]:
    """The files of a data set, all of them, with LR or how it is made at `scale`.

    Raises UnavailableError, saying how to get them, where they are not here, or where there is no such scale,
    IntegrityError for a file that is not what the manifest says, and InputError where images or their LR are missing or
    cannot be matched.
    """
    if scale not in card.scales:
        raise UnavailableError(f"data set {card.id!r} is for x{', x'.join(map(str, card.scales))}, not for x{scale}")
    sources = _FINDERS[card.source.kind](card)
    if len(sources) != card.count:
        own = isinstance(card.source, Folder)
        fix = "see count in its card" if own else f"delete it and run `{card.fetch_command}`"
        raise InputError(f"{shown(card.folder)} holds {len(sources)} of the {card.count} images of {card.id}; {fix}")
    if made := card.made(scale):
        return Registry("image", {i: replace(source, lr=None, made=made) for i, source in sources.items()})
    alone = [source.hr for source in sources.values() if source.lr is None]
    if alone:
        raise InputError(f"{alone[0]} has no LR, which the card of {card.id} says comes with the data (lr.kind)")
    return sources


def _embedded(card: DataCard) -> Registry[Source]:
    assert isinstance(card.source, Embedded)
    paths = [Path(skimage.__file__).parent / "data" / name for name in card.source.images]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise UnavailableError(f"{card.id}: scikit-image lacks {', '.join(absent)}; install it from its wheel again")
    return Registry("image", {path.stem: Source(path.stem, path) for path in paths})


def _unpacked(card: DataCard) -> Registry[Source]:
    assert isinstance(card.source, Archives)
    parts = {archive.part: card.folder / archive.part for archive in card.source.archives}
    if not all(folder.is_dir() for folder in parts.values()):
        raise UnavailableError(
            f"data set {card.id!r} is not here: run `{card.fetch_command}`, or put its images into "
            f"{' and '.join(parts)} of datasets/{card.folder.name} in benchsr's cache folder ($BENCHSR_CACHE if set)"
        )
    return _paired(parts["HR"], _images(parts["HR"]), _images(parts["LR"]) if "LR" in parts else [], _number)


def _listed(card: DataCard) -> Registry[Source]:
    paths = [card.folder / listed.name for listed in card.manifest]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise UnavailableError(
            f"data set {card.id!r} is not here ({len(absent)} of {len(paths)} files missing, {absent[0]} first): run "
            f"`{card.fetch_command}`, or with --from DIR if you have its files somewhere"
        )
    for path, listed in zip(paths, card.manifest, strict=True):
        if (found := _file_sha256(path)) != listed.sha256:
            raise IntegrityError(
                f"{shown(path)}: sha256 is {found}, not {listed.sha256}; run `{card.fetch_command}` to replace it"
            )
    return _split(card.folder, paths)


def _own(card: DataCard) -> Registry[Source]:
    if not os.path.isdir(card.folder):  # noqa: PTH112  # False, not an error, for a name that no file system takes
        raise UnavailableError(f"{card.file}: source.path: there is no folder {shown(card.folder)}")
    return _folder(card.folder)


_FINDERS: dict[str, Callable[[DataCard], Registry[Source]]] = {
    "embedded": _embedded,
    "archives": _unpacked,
    "manifest": _listed,
    "folder": _own,
}


def _folder(folder: Path) -> Registry[Source]:
    if (folder / "HR").is_dir():
        hr = _images(folder / "HR")
        return _matched(folder, hr, _images(folder / "LR") if (folder / "LR").is_dir() else [])
    return _split(folder, [path for path in _images(folder) if path.parent == folder])


def _split(folder: Path, paths: list[Path]) -> Registry[Source]:
    """HR and LR in one folder, told apart by their names."""
    lr = [path for path in paths if re.search(r"[-_]LR$", path.stem, re.IGNORECASE)]
    return _matched(folder, [path for path in paths if path not in lr], lr)


def _matched(folder: Path, hr: list[Path], lr: list[Path]) -> Registry[Source]:
    return _paired(folder, hr, lr, _bare_stem if lr else lambda path: path.stem)


def _images(folder: Path) -> list[Path]:
    try:
        paths = list(islice(folder.rglob("*"), MAX_LISTED + 1))
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be listed ({error.strerror}); give the folder of the images alone"
        ) from None
    if len(paths) > MAX_LISTED:
        raise InputError(f"{folder}: more than {MAX_LISTED} files and folders; give a folder of images alone")
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def _bare_stem(path: Path) -> str:
    return re.sub(r"([-_](LR|HR|GT)|[-_]?x[2348])+$", "", path.stem, flags=re.IGNORECASE)


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
