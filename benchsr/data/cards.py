"""Data sets as cards: what a set is, where its files come from, and how its LR is made.

The cards that come with benchsr lie in `sets/`, one TOML file each, and the manifests beside them.
"""

from __future__ import annotations

import csv
import hashlib
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from benchsr.base.errors import CardError
from benchsr.base.files import cache_dir
from benchsr.base.pairs import Scale
from benchsr.base.registry import Registry
from benchsr.base.schema import DIGITS, CardFile, FileName, Sha256, Table, Text, parse, read_card, read_toml
from benchsr.base.shrinking import Boundary

MAX_FILE_BYTES, MAX_ARCHIVE_BYTES, MAX_FILES = 64 << 20, 2 << 30, 2000
"""Largest image file and archive that are fetched, and the most files that a manifest may list."""

Address = Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+$", max_length=500)]


class Listed(Table):
    """One line of a manifest: a file by its path at the address, its size in bytes and its SHA-256."""

    path: Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    bytes: int = Field(gt=0, le=MAX_FILE_BYTES)
    sha256: Sha256

    @property
    def name(self) -> str:
        """The last part of its path, which is its name in the cache."""
        return PurePosixPath(self.path).name


class FilesByManifest(Table):
    """Single files `*_HR.png` and `*_LR.png`: those that `manifest`, a CSV file beside the card, lists.

    `url` is the address of each, in which {path} stands for its path.
    """

    kind: Literal["manifest"]
    manifest: FileName
    url: Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+\{path\}$", max_length=500)]


class Archive(Table):
    """A zip of HR or LR images: its address, its size in bytes (missing: not known) and how its SHA-256 begins."""

    part: Literal["HR", "LR"]
    url: Address
    bytes: int | None = Field(None, gt=0, le=MAX_ARCHIVE_BYTES)
    sha256: Annotated[str, StringConstraints(pattern=rf"^{DIGITS}{{8,64}}$")] | None = None


class Archives(Table):
    """HR and LR, each out of a zip; images are matched by the number in their names."""

    kind: Literal["archives"]
    archives: tuple[Archive, ...] = Field(min_length=1, max_length=2)

    @model_validator(mode="after")
    def _one_of_each(self) -> Archives:
        parts = [archive.part for archive in self.archives]
        if "HR" not in parts or len(set(parts)) < len(parts):
            raise ValueError("one archive of HR images and at most one of LR images")
        return self


class Embedded(Table):
    """HR photographs that come with scikit-image."""

    kind: Literal["embedded"]
    images: tuple[FileName, ...] = Field(min_length=1, max_length=MAX_FILES)


class Folder(Table):
    """Images in a folder, laid out as `load_dataset` says; `path` counts from the card's folder."""

    kind: Literal["folder"]
    path: Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]


class Made(Table):
    """LR is made from HR as `bicubic_downscale` says."""

    kind: Literal["made"] = "made"
    boundary: Boundary = "edge"
    round8: bool = True


class Given(Table):
    """LR comes with the data, of the factor `scale` (None: the card's only one); others are made as in `otherwise`."""

    kind: Literal["given"] = "given"
    scale: Scale | None = None
    otherwise: Made = Made()


class DataCard(CardFile):
    """A named data set of `count` images, for the super-resolution factors `scales`."""

    licence: Text
    paper: Text
    count: int = Field(ge=1, le=MAX_FILES)
    scales: tuple[Scale, ...] = Field(min_length=1)
    caveats: tuple[Text, ...] = Field((), max_length=20)
    lr: Annotated[Given | Made, Field(discriminator="kind")]
    source: Annotated[FilesByManifest | Archives | Embedded | Folder, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _one_scale_is_given(self) -> DataCard:
        if isinstance(self.lr, Given) and (
            len(self.scales) > 1 if self.lr.scale is None else self.scale not in self.scales
        ):
            raise ValueError(f"lr.scale must be one of scales, {list(self.scales)}: that of the LR that comes with it")
        return self

    @property
    def scale(self) -> Scale:
        """The factor of its files, or the first one where LR is made at all of them."""
        return (self.lr.scale if isinstance(self.lr, Given) else None) or self.scales[0]

    def made(self, scale: Scale) -> Made | None:
        """How LR of the factor `scale` is made from HR; None where it comes with the data."""
        if isinstance(self.lr, Made):
            return self.lr
        return None if scale == self.scale else self.lr.otherwise

    @property
    def packaged(self) -> bool:
        """Whether the card came with benchsr."""
        return self._folder == SETS

    @property
    def fetch_command(self) -> str:
        """How the user gets its files."""
        return f"benchsr fetch {self.id if self.packaged else self.file.name}"

    @property
    def folder(self) -> Path:
        """Where its files lie: a folder of the user's, or of the cache, where own cards of one name keep apart."""
        if isinstance(self.source, Folder):
            return (self._folder / self.source.path).resolve()
        own = "" if self.packaged else "-" + hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]
        return cache_dir() / "datasets" / f"{self.id}{own}"

    @cached_property
    def manifest(self) -> tuple[Listed, ...]:
        """The files that it lists; none where its source has no manifest. Raises CardError naming file and line."""
        if not isinstance(self.source, FilesByManifest):
            return ()
        path = self._folder / self.source.manifest
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(islice(csv.DictReader(file), MAX_FILES + 1))
        except (OSError, ValueError, csv.Error) as error:
            raise CardError(f"{path}: cannot be read as a manifest of path, bytes, sha256 ({error})") from None
        if len(rows) > MAX_FILES:
            raise CardError(f"{path}: a manifest lists {MAX_FILES} files at most")
        files = [parse(Listed, row, f"{path}: line {number}") for number, row in enumerate(rows, 2)]
        if not files or len({file.name for file in files}) < len(files):
            raise CardError(f"{path}: path: a manifest lists files, each of another name")
        return tuple(files)


SETS = Path(__file__).parent / "sets"
DATASETS: Registry[DataCard] = Registry(
    "data set", {path.stem: read_card(DataCard, path) for path in sorted(SETS.glob("*.toml"))}
)
"""The data sets that come with benchsr."""


def is_data_card(name: str | Path) -> bool:
    """Whether a name or path is that of a data set rather than a model, whose cards have no `source`. Reads no more."""
    if Path(name).suffix != ".toml":
        return name in DATASETS
    try:
        return "source" in read_toml(Path(name))
    except CardError:
        return False


def load_data_card(name: str | Path) -> DataCard:
    """A data set of benchsr by id, or one's own by the path of its card (ending in .toml).

    Raises UnknownIdError, suggesting the nearest ids, or CardError, naming file and field.
    """
    if Path(name).suffix != ".toml":
        return DATASETS[str(name)]
    card = read_card(DataCard, Path(name))
    if card.id in DATASETS and not card.packaged:
        raise CardError(f"{name}: id: {card.id!r} is a data set of benchsr; give yours, and its file, another name")
    return card
