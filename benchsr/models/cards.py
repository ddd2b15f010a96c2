"""Model cards: the schema of one TOML file, and where its weights may come from."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, StringConstraints, model_validator

from benchsr.base.downloads import package_file, package_path, url_file, url_path
from benchsr.base.errors import InputError, IntegrityError, UnavailableError
from benchsr.base.files import cache_dir, require_sha256, sha256_file, shown
from benchsr.base.pairs import USUAL, Scale
from benchsr.base.schema import DIGITS, CardFile, FileName, Id, Sha256, Table, Text

if TYPE_CHECKING:
    from torch import nn

MAX_WEIGHT_BYTES = 1 << 30

PAPER_ROWS = (
    "bicubic",
    *(f"{method}-{domain}" for method in ("esrgan-fs", "impressionism") for domain in ("ntire", "aim", "dped")),
    *("esrgan", "ad-l-pgd", "ad-l-fgsm", "ad-l-bim", "ad-l-cw", "certsr"),
)
"""The 13 rows of the paper's Table 3, in its order."""

PackageName = Annotated[
    str, StringConstraints(pattern=r"^(@[a-z0-9][a-z0-9._-]{0,127}/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
]
"""A package of Python's index, or one of npm's, which may be in a scope: `@scope/name`."""

FilePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_./-]{0,199}$")]


class Shard(Table):
    """One of the files of numbers beside the model.json of TensorFlow.js."""

    file: FileName
    sha256: Sha256


class _Packable(Table):
    """A source that can hold formats of several files in one folder.

    ncnn's are `<stem>.bin`, and `<stem>.param` beside it; those of TensorFlow.js are a model.json and its `shards`.
    """

    format: Literal["safetensors", "pth", "ncnn", "tfjs"]
    sha256: Sha256
    param_sha256: Sha256 | None = None
    shards: tuple[Shard, ...] = Field((), max_length=64)

    @model_validator(mode="after")
    def _whole(self) -> _Packable:
        if (self.format == "ncnn") != (self.param_sha256 is not None):
            raise ValueError("param_sha256, the hash of the .param file, goes with the format ncnn and with no other")
        if (self.format == "tfjs") != bool(self.shards):
            raise ValueError("shards, the files beside model.json, go with the format tfjs and with no other")
        return self

    def hashes(self, name: str) -> dict[str, str]:
        """The file `name`, and those that belong to it, with their hashes."""
        whole = {name: self.sha256}
        if self.param_sha256:
            whole[name.removesuffix(".bin") + ".param"] = self.param_sha256
        return whole | {str(PurePosixPath(name).with_name(shard.file)): shard.sha256 for shard in self.shards}


Checked = list[tuple[Path, str]]
"""Files, each with the SHA-256 that its bytes were found to have."""


def _beside(folder: Path, name: str, sha256: str) -> Checked:
    """The file `name` in a card's folder, or below it. Raises UnavailableError or IntegrityError."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise IntegrityError(f"weights path {name!r} leaves the folder of its card, which is not allowed")
    if not path.is_file():
        raise UnavailableError(f"file {name}: not beside the card")
    return [(path, require_sha256(path, sha256, f"weights {name}"))]


class FileSource(_Packable):
    """A file in the card's folder, or below it."""

    kind: Literal["file"]
    path: FilePath

    def locate(self, folder: Path) -> Checked:
        """The files. Raises UnavailableError or IntegrityError."""
        return [found for name, sha256 in self.hashes(self.path).items() for found in _beside(folder, name, sha256)]

    def state(self, folder: Path) -> tuple[bool, str]:
        """Whether the file is there, and in words."""
        here = all((folder / name).is_file() for name in self.hashes(self.path))
        return here, f"{'here' if here else 'missing'}: file {self.path}"


class PackageSource(_Packable):
    """A file inside a package: a wheel of the user's Python index, or an archive of npm's registry.

    `archive_sha256` is the hash of the wheel or archive, `member` the file's name in there.
    """

    kind: Literal["package"]
    archive: Literal["wheel", "npm"] = "wheel"
    package: PackageName
    version: FileName
    archive_sha256: Sha256
    member: Annotated[
        str, StringConstraints(pattern=r"^([A-Za-z0-9_.-]+/)*[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=300)
    ]

    def locate(self, folder: Path) -> Checked:
        """The files, fetched if need be. Raises UnavailableError or IntegrityError."""
        package = (self.package, self.version, self.archive_sha256)
        members = self.hashes(self.member).items()
        return [(package_file(*package, member, sha256, archive=self.archive), sha256) for member, sha256 in members]

    def state(self, folder: Path) -> tuple[bool, str]:
        """Whether the file is in the cache, and in words."""
        members = self.hashes(self.member)
        here = all(package_path(self.package, self.version, member).is_file() for member in members)
        return here, f"{'here' if here else 'to fetch'}: package {self.package}"


class UrlSource(Table):
    """A file at a public address; `sha256` may be its first eight digits or more, or missing: pinned at first fetch."""

    kind: Literal["url"]
    format: Literal["safetensors", "pth"]
    url: Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+/[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=500)]
    sha256: Annotated[str, StringConstraints(pattern=rf"^{DIGITS}{{8,64}}$")] | None = None

    @property
    def filename(self) -> str:
        """Its name in the cache, led by a digest of the address: sites share names such as `model.pth`."""
        return f"{hashlib.sha256(self.url.encode()).hexdigest()[:8]}-{PurePosixPath(self.url).name}"

    def locate(self, folder: Path) -> Checked:
        """The file, fetched if need be. Raises UnavailableError or IntegrityError."""
        path = url_file(self.url, sha256=self.sha256, filename=self.filename, max_bytes=MAX_WEIGHT_BYTES)
        return [(path, sha256_file(path))]

    def state(self, folder: Path) -> tuple[bool, str]:
        """Whether the file is in the cache, and in words."""
        here = url_path(self.filename).is_file()
        return here, f"{'here' if here else 'to fetch'}: {urlsplit(self.url).netloc}"


class ManualSource(Table):
    """A file that the user must get as `instruction` says, and put into the cache's `weights` folder as `file`."""

    kind: Literal["manual"]
    format: Literal["safetensors", "pth"]
    file: FileName
    instruction: Text
    sha256: Sha256 | None = None

    def locate(self, folder: Path) -> Checked:
        """The file. Raises UnavailableError, saying what to do, or IntegrityError."""
        path = cache_dir() / "weights" / self.file
        if not path.is_file():
            raise UnavailableError(f"{self.instruction} and put the file at {shown(path)}")
        return [(path, require_sha256(path, self.sha256 or "", f"weights {self.file}"))]

    def state(self, folder: Path) -> tuple[bool, str]:
        """Whether the user has put the file there, and in words."""
        here = (cache_dir() / "weights" / self.file).is_file()
        return here, f"{'here' if here else 'by hand'}: {self.file}"


class AdapterSource(Table):
    """Low-rank updates of the convolutions of `base`, another card's network, in a file beside this card."""

    kind: Literal["adapter"]
    base: Id
    path: FilePath
    sha256: Sha256

    @property
    def format(self) -> str:
        """What `Found` calls it."""
        return "adapter"

    def locate(self, folder: Path) -> Checked:
        """The file. Raises UnavailableError or IntegrityError."""
        return _beside(folder, self.path, self.sha256)

    def state(self, folder: Path) -> tuple[bool, str]:
        """Whether the file is there, and in words; its base is another card's matter."""
        here = (folder / self.path).is_file()
        return here, f"{'here' if here else 'missing'}: adapter of {self.base}"


WeightSource = Annotated[
    FileSource | PackageSource | UrlSource | ManualSource | AdapterSource, Field(discriminator="kind")
]

Sigma = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Smoothing(Table):
    """Median randomized smoothing: `n` draws; `sigma` in [0, 1] pixel units for all threats, or one for each.

    A threat that the table leaves out meets the network unsmoothed. `chosen` tells how sigma was chosen
    (`benchsr tune-sigma` writes it).
    """

    n: int = Field(21, ge=1, le=100_001)
    sigma: Sigma | dict[Id, Sigma]
    chosen: Text | None = None


MRS = "mrs"
"""Median randomized smoothing in the table of defences; cards set it as [smoothing]."""

DefenceSetting = float | int | bool | str


class CardDefence(Table):
    """A defence of the table of defences that stands around the network, and its settings."""

    name: Id
    settings: dict[str, DefenceSetting] = Field(default_factory=dict)


class Published(Table):
    """A figure that was published for the network: the mean of `metric` over a whole data set, as it was scored.

    `grey`: whether an image of one channel is scored as RGB, or (MATLAB scripts that find no colour to convert) its
    grey levels are themselves taken for luma. `tolerance` is how far our figure may lie from `value`.
    """

    dataset: Text
    scale: Scale = USUAL
    metric: Id
    colour: Literal["rgb", "y"] = "rgb"
    border: int = Field(ge=0, le=64)
    quantise_sr: bool = True
    grey: Literal["rgb", "luma"] = "rgb"
    value: float
    tolerance: float = Field(gt=0)
    source: Text


class Card(CardFile):
    """One row of the leaderboards: what the model is, and where its weights come from.

    Either `weights` (sources, tried in order), or `base` (another card, whose network this one deploys), or the
    architecture "bicubic". `scale` is the super-resolution factor of the network, or "any" where it has none of its own
    (bicubic interpolation) or nobody has stated it; it is then the run's. `family` keeps networks of the paper's size
    apart from compact ones. `retrains` names the row of the paper that this network was trained anew for, and is
    judged as where that row's own weights are missing. `reproduces` holds figures published for this network. `recipe`
    is read by benchsr.train; `training` tells where weights trained by this project come from.
    """

    scale: Literal[Scale, "any"] = USUAL
    family: Literal["paper", "compact", "both"]
    paper_row: bool = False
    retrains: Id | None = None
    architecture: Literal["auto", "bicubic"] = "auto"
    weights: tuple[WeightSource, ...] = Field((), max_length=8)
    base: Id | None = None
    smoothing: Smoothing | None = None
    defence: CardDefence | None = None
    licence: Text
    paper: Text
    training_data: Text
    fine_tuning_data: Text
    caveats: tuple[Text, ...] = Field((), max_length=20)
    reproduces: tuple[Published, ...] = Field((), max_length=20)
    recipe: dict[str, Any] | None = None
    training: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Card:
        if [bool(self.weights), self.base is not None, self.architecture == "bicubic"].count(True) != 1:
            raise ValueError("a card needs exactly one of: [[weights]], base, architecture = 'bicubic'")
        if self.smoothing and self.defence:
            raise ValueError("a card is deployed with [smoothing] or with another [defence], not with both")
        return self

    @model_validator(mode="after")
    def _row_retrained(self) -> Card:
        if self.retrains is not None and (self.retrains not in PAPER_ROWS or self.paper_row or self.family != "paper"):
            rows = ", ".join(PAPER_ROWS)
            raise ValueError(f"retrains: for networks of family 'paper' that are no paper_row, and one of: {rows}")
        return self

    @property
    def origin(self) -> str:
        """Where weights trained for this card come from, in one line: start, steps and data."""
        recipe, training = self.recipe or {}, self.training or {}
        start = training.get("start") or next(iter(recipe.get("start", [])), None)
        steps = sum(stage.get("steps", 0) for stage in (training or recipe).get("stages", []))
        parts = (start and f"start {start}", steps and f"{steps} steps", f"data: {self.fine_tuning_data}")
        return "; ".join(filter(None, parts))

    @property
    def guarded(self) -> bool:
        """Whether it is deployed with smoothing or another defence."""
        return bool(self.smoothing or self.defence)

    @property
    def factor(self) -> Scale:
        """The factor of its answers: its scale, and the usual one while nobody has chosen one for it."""
        return USUAL if self.scale == "any" else self.scale

    def at(self, scale: Scale) -> Card:
        """This card in a run of the factor `scale`. Raises InputError, saying what to do, where it has another one."""
        if self.scale not in ("any", scale):
            raise InputError(
                f"{self.id} is a x{self.scale} network, and this run is of x{scale}: give --scale {self.scale}, with "
                "networks of that scale alone, or leave it out"
            )
        return self.model_copy(update={"scale": scale})

    @property
    def random(self) -> bool:
        """Whether the network itself draws noise, with nothing around it."""
        return False

    @property
    def described(self) -> Card:
        """What is said of the model, which tables keep and plots are hashed with: never a network in memory."""
        return self


UNSTATED: dict[str, Any] = {
    "family": "paper",
    "licence": "not stated",
    "paper": "not stated",
    "training_data": "not stated",
    "fine_tuning_data": "not stated",
    "caveats": ("Has no card: nothing is known of it but its weights.",),
}
"""The fields of a card that nobody wrote."""


class Live(Card):
    """A row for a network that the caller's own code made. It lives in memory alone: no file can describe one.

    `_network` is the caller's, and stays as it is; `_key` tells it from others.
    """

    _network: nn.Module = PrivateAttr()
    _key: str = PrivateAttr()
    _random: bool = PrivateAttr()

    @model_validator(mode="after")
    def _one_origin(self) -> Live:
        return self

    @property
    def random(self) -> bool:
        """Whether the network is a `Randomised` one."""
        return self._random

    @property
    def described(self) -> Card:
        """The fields alone."""
        return Card.model_construct(**{name: getattr(self, name) for name in Card.model_fields})


class Coded(Live):
    """A row for a network that the code `_factory` (package.module:factory) makes, each time in a process of its own.

    `_bytes`: of its weights and buffers.
    """

    _factory: str = PrivateAttr()
    _bytes: int = PrivateAttr()


class Deployment(NamedTuple):
    """How a card is deployed against a threat: a defence of the table of defences, with its settings by name."""

    defence: str
    settings: tuple[tuple[str, DefenceSetting], ...]

    @property
    def draws(self) -> int:
        """Passes through the network for one answer."""
        return int(dict(self.settings).get("n", 1))


def sigma_for(card: Card, threat_id: str) -> float:
    """The standard deviation, in [0, 1] pixel units, that `card` smooths with against a threat; 0 is no smoothing."""
    sigma = card.smoothing.sigma if card.smoothing else 0.0
    return sigma.get(threat_id, 0.0) if isinstance(sigma, dict) else sigma
