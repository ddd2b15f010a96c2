"""Model cards: from a TOML file to a differentiable network."""

from __future__ import annotations

import hashlib
import pickle
import re
import tomllib
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, ValidationError, model_validator
from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError, canonicalize_state_dict
from torch import Tensor, nn

from benchsr.adapters import merge_adapter
from benchsr.downloads import cache_dir, package_file, package_path, require_sha256, shown, url_file, url_path
from benchsr.frozen import freeze
from benchsr.ncnn import read_ncnn
from benchsr.registry import Registry
from benchsr.types import SCALE, CardError, InputError, IntegrityError, ModelError, UnavailableError

MAX_CARD_BYTES = 64 << 10
MAX_WEIGHT_BYTES = 1 << 30
MAX_PARAMETERS = 1 << 28
PAPER_ROWS = (
    *("bicubic", "esrgan", "ad-l-fgsm", "ad-l-bim", "ad-l-pgd", "ad-l-cw", "certsr"),
    *("esrgan-fs-ntire", "esrgan-fs-aim", "esrgan-fs-dped"),
    *("impressionism-ntire", "impressionism-aim", "impressionism-dped"),
)
"""The rows of the paper's tables, in its order."""

_DIGITS = r"[0-9a-f]"
Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=rf"^{_DIGITS}{{64}}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]
FilePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_./-]{0,199}$")]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Packable(_Table):
    """A source that can hold ncnn's pair of files: `<stem>.bin`, and beside it `<stem>.param`."""

    format: Literal["safetensors", "pth", "ncnn"]
    sha256: Sha256
    param_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _pair(self) -> _Packable:
        if (self.format == "ncnn") != (self.param_sha256 is not None):
            raise ValueError("param_sha256, the hash of the .param file, goes with the format ncnn and with no other")
        return self

    def hashes(self, name: str) -> dict[str, str]:
        """The file `name`, and its .param if it has one, with their hashes."""
        pair = {name: self.sha256}
        return pair | ({name.removesuffix(".bin") + ".param": self.param_sha256} if self.param_sha256 else {})


def _beside(folder: Path, name: str, sha256: str) -> list[Path]:
    """The file `name` in a card's folder, or below it. Raises UnavailableError or IntegrityError."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise IntegrityError(f"weights path {name!r} leaves the folder of its card, which is not allowed")
    if not path.is_file():
        raise UnavailableError(f"file {name}: not beside the card")
    require_sha256(path, sha256, f"weights {name}")
    return [path]


class FileSource(_Packable):
    """A file in the card's folder, or below it."""

    kind: Literal["file"]
    path: FilePath

    def locate(self, folder: Path) -> list[Path]:
        """The files, checked. Raises UnavailableError or IntegrityError."""
        return [path for name, sha256 in self.hashes(self.path).items() for path in _beside(folder, name, sha256)]

    def state(self, folder: Path) -> tuple[bool, str]:
        """Whether the file is there, and in words."""
        here = (folder / self.path).is_file()
        return here, f"{'here' if here else 'missing'}: file {self.path}"


class PackageSource(_Packable):
    """A file inside a wheel of the package index; `archive_sha256` is the wheel's hash, `member` its name in there."""

    kind: Literal["package"]
    package: FileName
    version: FileName
    archive_sha256: Sha256
    member: Annotated[
        str, StringConstraints(pattern=r"^([A-Za-z0-9_.-]+/)*[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=300)
    ]

    def locate(self, folder: Path) -> list[Path]:
        """The files, fetched if need be, checked. Raises UnavailableError or IntegrityError."""
        wheel = (self.package, self.version, self.archive_sha256)
        return [package_file(*wheel, member, sha256) for member, sha256 in self.hashes(self.member).items()]

    def state(self, folder: Path) -> tuple[bool, str]:
        """Whether the file is in the cache, and in words."""
        here = package_path(self.package, self.version, self.member).is_file()
        return here, f"{'here' if here else 'to fetch'}: package {self.package}"


class UrlSource(_Table):
    """A file at a public address; `sha256` may be its first eight digits or more, or missing: pinned at first fetch."""

    kind: Literal["url"]
    format: Literal["safetensors", "pth"]
    url: Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+/[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=500)]
    sha256: Annotated[str, StringConstraints(pattern=rf"^{_DIGITS}{{8,64}}$")] | None = None

    @property
    def filename(self) -> str:
        """Its name in the cache, led by a digest of the address: sites share names such as `model.pth`."""
        return f"{hashlib.sha256(self.url.encode()).hexdigest()[:8]}-{PurePosixPath(self.url).name}"

    def locate(self, folder: Path) -> list[Path]:
        """The file, fetched if need be, checked. Raises UnavailableError or IntegrityError."""
        return [url_file(self.url, sha256=self.sha256, filename=self.filename, max_bytes=MAX_WEIGHT_BYTES)]

    def state(self, folder: Path) -> tuple[bool, str]:
        """Whether the file is in the cache, and in words."""
        here = url_path(self.filename).is_file()
        return here, f"{'here' if here else 'to fetch'}: {urlsplit(self.url).netloc}"


class ManualSource(_Table):
    """A file that the user must get as `instruction` says, and put into the cache's `weights` folder as `file`."""

    kind: Literal["manual"]
    format: Literal["safetensors", "pth"]
    file: FileName
    instruction: Text
    sha256: Sha256 | None = None

    def locate(self, folder: Path) -> list[Path]:
        """The file, checked. Raises UnavailableError, saying what to do, or IntegrityError."""
        path = cache_dir() / "weights" / self.file
        if not path.is_file():
            raise UnavailableError(f"{self.instruction} and put the file at {shown(path)}")
        require_sha256(path, self.sha256 or "", f"weights {self.file}")
        return [path]

    def state(self, folder: Path) -> tuple[bool, str]:
        """Whether the user has put the file there, and in words."""
        here = (cache_dir() / "weights" / self.file).is_file()
        return here, f"{'here' if here else 'by hand, see benchsr show'}: {self.file}"


class AdapterSource(_Table):
    """Low-rank updates of the convolutions of `base`, another card's network, in a file beside this card."""

    kind: Literal["adapter"]
    base: Id
    path: FilePath
    sha256: Sha256

    @property
    def format(self) -> str:
        """What `_Found` calls it."""
        return "adapter"

    def locate(self, folder: Path) -> list[Path]:
        """The file, checked. Raises UnavailableError or IntegrityError."""
        return _beside(folder, self.path, self.sha256)

    def state(self, folder: Path) -> tuple[bool, str]:
        """Whether the base's weights and the file are there, and in words."""
        here = (folder / self.path).is_file()
        there, words = availability(_base_card(self.base, folder, self.path))
        return here and there, f"{'here' if here else 'missing'}: adapter of {self.base} ({words})"


WeightSource = Annotated[
    FileSource | PackageSource | UrlSource | ManualSource | AdapterSource, Field(discriminator="kind")
]
Sigma = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Smoothing(_Table):
    """Median randomized smoothing: `n` draws; `sigma` in [0, 1] pixel units for all threats, or one for each.

    A threat that the table leaves out meets the network unsmoothed. `chosen` tells how sigma was chosen
    (`benchsr tune-sigma` writes it).
    """

    n: int = Field(21, ge=1, le=100_001)
    sigma: Sigma | dict[Id, Sigma]
    chosen: Text | None = None


class Card(_Table):
    """One row of the leaderboards: what the model is, and where its weights come from.

    Either `weights` (sources, tried in order), or `base` (another card, whose network this one deploys), or the
    architecture "bicubic". `family` keeps networks of the paper's size apart from compact ones. `recipe` is read by
    benchsr.train; `training` tells where weights trained by this project come from.
    """

    id: Id
    title: Text
    scale: Literal[4] = 4
    family: Literal["paper", "compact", "both"]
    paper_row: bool = False
    architecture: Literal["auto", "bicubic"] = "auto"
    weights: tuple[WeightSource, ...] = Field((), max_length=8)
    base: Id | None = None
    smoothing: Smoothing | None = None
    licence: Text
    paper: Text
    training_data: Text
    fine_tuning_data: Text
    caveats: tuple[Text, ...] = Field((), max_length=20)
    recipe: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _one_origin(self) -> Card:
        if [bool(self.weights), self.base is not None, self.architecture == "bicubic"].count(True) != 1:
            raise ValueError("a card needs exactly one of: [[weights]], base, architecture = 'bicubic'")
        return self


_FIELDS = {
    field
    for table in (Card, Smoothing, FileSource, PackageSource, UrlSource, ManualSource, AdapterSource)
    for field in table.model_fields
}


def _explain(error: Any) -> str:
    """One of pydantic's errors as "field: what is wrong"."""
    field = ".".join(str(part) for part in error["loc"]) or "card"
    if error["type"] != "extra_forbidden":
        return f"{field}: {error['msg'].removeprefix('Value error, ')}"
    near = get_close_matches(str(error["loc"][-1]), _FIELDS, n=1)
    return f"{field}: no such field" + (f"; did you mean {near[0]!r}?" if near else "")


def _read_card(path: Path) -> Card:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CARD_BYTES + 1)
        if len(text) > MAX_CARD_BYTES:
            raise CardError(f"{path}: a card may have {MAX_CARD_BYTES} bytes at most")
        card = Card.model_validate(tomllib.loads(text.decode()))
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise CardError(f"{path}: " + "; ".join(map(_explain, error.errors()))) from error
    except (ValueError, RecursionError) as error:
        raise CardError(f"{path}: not a TOML file ({error})") from error
    if card.id != path.stem:
        raise CardError(f"{path}: id: {card.id!r} must be the file's name without .toml, {path.stem!r}")
    card._folder = path.absolute().parent
    return card


def zoo_dir() -> Path:
    """The folder of the packaged cards: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return next(folder for folder in (package / "model_zoo", package.parent / "model_zoo") if folder.is_dir())


@cache
def zoo(*extra_dirs: str | Path) -> Registry[Card]:
    """All cards of the packaged zoo, and of `extra_dirs`: the paper's rows in its order, then others, then compact.

    Raises CardError, naming file and field, for a card that does not follow the schema, whose `base` does not exist or
    leads back to itself, or whose id is taken.
    """
    paths = [path for folder in (zoo_dir(), *map(Path, extra_dirs)) for path in sorted(folder.glob("*.toml"))]
    cards = [_read_card(path) for path in paths]

    def rank(card: Card) -> tuple[bool, int, str]:
        name = card.id.removeprefix("compact-")
        return card.family == "compact", PAPER_ROWS.index(name) if name in PAPER_ROWS else len(PAPER_ROWS), card.id

    registry: Registry[Card] = Registry("model")
    for card in sorted(cards, key=rank):
        if card.id in registry:
            raise CardError(f"{card._folder / card.id}.toml: id: {card.id!r} is taken by another card")
        registry.add(card.id, card)
        _root(card)
    return registry


def load_card(card: str | Path) -> Card:
    """A card of the zoo by its id, or a card of one's own by its path (ending in .toml).

    Raises UnknownIdError, suggesting the nearest ids, or CardError, naming file and field.
    """
    return _read_card(Path(card)) if Path(card).suffix == ".toml" else zoo()[str(card)]


def _base_card(name: str, folder: Path, asker: str) -> Card:
    """The card `name`, looked for in `folder`, then in the zoo. Raises CardError, in the name of the card `asker`."""
    path = next((path for path in (place / f"{name}.toml" for place in (folder, zoo_dir())) if path.is_file()), None)
    if path is None:
        near = get_close_matches(name, [path.stem for path in zoo_dir().glob("*.toml")], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CardError(f"{folder / asker}.toml: base: there is no card {name!r}{hint}")
    return _read_card(path)


def _bases(card: Card) -> list[str]:
    """The cards that `card` rests on: the one that it deploys, those whose networks its adapters change."""
    adapted = [source.base for source in card.weights if isinstance(source, AdapterSource)]
    return [card.base] if card.base else adapted


def _require_no_circle(card: Card, seen: tuple[str, ...] = ()) -> None:
    """Raise CardError where a card rests on itself, or on one that there is not."""
    if card.id in seen:
        raise CardError(f"{card._folder / card.id}.toml: base: {' -> '.join([*seen, card.id])} is a circle")
    for name in _bases(card):
        _require_no_circle(_base_card(name, card._folder, card.id), (*seen, card.id))


def _root(card: Card) -> Card:
    """The card whose weights `card` deploys."""
    _require_no_circle(card)
    while card.base is not None:
        card = _base_card(card.base, card._folder, card.id)
    return card


def sigma_for(card: Card, threat_id: str) -> float:
    """The standard deviation, in [0, 1] pixel units, that `card` smooths with against a threat; 0 is no smoothing."""
    sigma = card.smoothing.sigma if card.smoothing else 0.0
    return sigma.get(threat_id, 0.0) if isinstance(sigma, dict) else sigma


class _Found(NamedTuple):
    format: str
    files: tuple[Path, ...]
    key: str
    base: Card | None = None  # whose network an adapter changes


@lru_cache(maxsize=256)
def _find(weights: tuple[Any, ...], folder: Path) -> _Found:
    """The files of the first source that can be had, hash-checked. Raises UnavailableError with every reason."""
    reasons = []
    for source in weights:
        base = _base_card(source.base, folder, source.path) if isinstance(source, AdapterSource) else None
        try:
            files = source.locate(folder)
            hashes = [network_key(base)] if base else []
        except UnavailableError as error:
            reasons.append(str(error))
            continue
        hashes += [require_sha256(file, "", file.name) for file in files]
        return _Found(source.format, tuple(files), " ".join([source.format, *hashes]), base)
    raise UnavailableError("weights cannot be had: " + "; ".join(reasons))


def network_key(card: Card) -> str:
    """SHA-256 of what determines the network: format and hash of its weights, fetched if need be.

    It is the same for a card and its smoothed variants. Raises UnavailableError with the reason of every source, or
    IntegrityError.
    """
    root = _root(card)
    key = _find(root.weights, root._folder).key if root.weights else root.architecture
    return hashlib.sha256(key.encode()).hexdigest()


def availability(card: Card) -> tuple[bool, str]:
    """Whether the weights are on this machine, and where they are or would come from, in words. Fetches nothing."""
    root = _root(card)
    states = [source.state(root._folder) for source in root.weights] or [(True, "none needed")]
    return next((state for state in states if state[0]), states[0])


def _read_safetensors(files: tuple[Path, ...]) -> dict[str, Any]:
    try:
        return safetensors.torch.load_file(files[0])
    except safetensors.SafetensorError as error:
        raise IntegrityError(f"{shown(files[0])} is not a safetensors file ({error})") from error


def _read_pth(files: tuple[Path, ...]) -> dict[str, Any]:
    """Read a torch checkpoint without ever running code that it names."""
    try:
        state: dict[str, Any] = torch.load(files[0], map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it names {named[1]}" if named else "it holds more than tensors, or is damaged"
        raise IntegrityError(f"{shown(files[0])}: refused, nothing was run: {what}") from error
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError, OSError) as error:
        raise IntegrityError(f"{shown(files[0])} is not a torch checkpoint ({type(error).__name__})") from error
    return state


_READERS: dict[str, Callable[[tuple[Path, ...]], dict[str, Any] | nn.Module]] = {
    "safetensors": _read_safetensors,
    "pth": _read_pth,
    "ncnn": lambda files: read_ncnn(files[1], files[0]),
}


def _read_state(found: _Found) -> dict[str, Tensor] | nn.Module:
    """The tensors of the files, bounded in size; or the network, where its file holds the graph too."""
    if sum(file.stat().st_size for file in found.files) > MAX_WEIGHT_BYTES:
        raise IntegrityError(f"{shown(found.files[0])}: more than {MAX_WEIGHT_BYTES} bytes of weights")
    state = _READERS[found.format](found.files)
    if isinstance(state, nn.Module):
        return state
    state = dict(canonicalize_state_dict(state)) if isinstance(state, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise IntegrityError(f"{shown(found.files[0])} holds no table of tensors")
    if sum(value.numel() for value in state.values()) > MAX_PARAMETERS:
        raise IntegrityError(f"{shown(found.files[0])}: more than {MAX_PARAMETERS} parameters")
    return state


class Bicubic(nn.Module):
    """Bicubic interpolation (Keys 1981, a = -0.5) to four times the size, as MATLAB's imresize does inside the image.

    Edges are replicated. Maps (N, 3, h, w) to (N, 3, 4h, 4w), unclamped and differentiable.
    """

    PAD = 4  # the kernel reaches two pixels; torch shortens it at the border instead of replicating

    def forward(self, x: Tensor) -> Tensor:
        """Interpolate `x`."""
        padded = F.pad(x, (self.PAD,) * 4, mode="replicate")
        sr = F.interpolate(padded, scale_factor=SCALE, mode="bicubic", antialias=True)  # plain "bicubic" has a = -0.75
        crop = SCALE * self.PAD
        return sr[..., crop:-crop, crop:-crop]


def _build(state: dict[str, Tensor] | nn.Module, name: str) -> nn.Module:
    """The network that spandrel recognises in `state`, with a check of the sizes that it takes."""
    if isinstance(state, nn.Module):
        return state
    try:
        descriptor = ModelLoader().load_from_state_dict(state)
    except UnsupportedModelError as error:
        raise ModelError(
            f"{name}: spandrel knows no architecture with these weights: {sorted(state)[:3]}..."
        ) from error
    except Exception as error:  # spandrel reads shapes out of the weights, and damaged ones break it in many ways
        raise ModelError(
            f"{name}: the weights do not fit their architecture ({type(error).__name__}: {error})"
        ) from error
    kind = (descriptor.scale, descriptor.input_channels, descriptor.output_channels)
    if not isinstance(descriptor, ImageModelDescriptor) or kind != (SCALE, 3, 3):
        raise ModelError(
            f"{name}: needs a x{SCALE} network from RGB to RGB; {descriptor.architecture.name} here is x{kind[0]} "
            f"from {kind[1]} to {kind[2]} channels"
        )
    network: nn.Module = descriptor.model  # not the descriptor: its call clamps, and cuts the gradient
    needs = descriptor.size_requirements
    if not needs.none:

        def check_size(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            h, w = inputs[0].shape[-2:]
            if not needs.check(w, h):
                raise InputError(f"{name} cannot take LR of {w} x {h} pixels: {needs}")

        network.register_forward_pre_hook(check_size)
    return network


def _check_output(network: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
    n, _, h, w = inputs[0].shape
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (n, 3, SCALE * h, SCALE * w):
        raise ModelError(
            f"{type(network).__name__} made {shape} of LR {(n, 3, h, w)}; expected {(n, 3, SCALE * h, SCALE * w)}"
        )


def load_network(card: Card | str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The network f of a card or id, without smoothing: eval mode, fixed float32 weights.

    It maps LR (N, 3, h, w), RGB in [0, 1], to SR (N, 3, 4h, 4w), unclamped and differentiable in its input, and raises
    ModelError where its output has another shape. Raises UnknownIdError, CardError, UnavailableError (weights cannot
    be had: says what to do), IntegrityError (they are not what they should be) or ModelError (no x4 RGB network).
    """
    root = _root(card if isinstance(card, Card) else load_card(card))
    network: nn.Module = Bicubic()
    if root.weights:
        found = _find(root.weights, root._folder)
        if found.base:
            return merge_adapter(load_network(found.base, device), found.files[0], found.base.id)
        network = _build(_read_state(found), root.id)
    network.register_forward_hook(_check_output)
    return freeze(network.float().to(device))
