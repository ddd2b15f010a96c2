"""The zoo: cards by id, the files and the key of their networks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchsr.base.errors import CardError, InputError, UnavailableError
from benchsr.base.files import sha256_file
from benchsr.base.pairs import USUAL, Scale
from benchsr.base.registry import Registry
from benchsr.base.schema import read_card
from benchsr.models.cards import PAPER_ROWS, UNSTATED, AdapterSource, Card, CardDefence, FileSource, Live

NO_WEIGHTS = "weights cannot be had"
"""Begins the reason of everything that a model without weights here has no figures for."""


def zoo_dir() -> Path:
    """The folder of the packaged cards: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return next(folder for folder in (package / "model_zoo", package.parent / "model_zoo") if folder.is_dir())


@cache
def zoo(*extra_dirs: str | Path) -> Registry[Card]:
    """All cards of the packaged zoo, and of `extra_dirs`: the paper's rows in its order, then others, then compact; and
    those of installed packages, entry points `benchsr.models`, each a `Card` under its id.

    Raises CardError, naming file and field, for a card that does not follow the schema, whose `base` does not exist or
    leads back to itself, or whose id is taken.
    """
    paths = [path for folder in (zoo_dir(), *map(Path, extra_dirs)) for path in sorted(folder.glob("*.toml"))]
    cards = [read_card(Card, path) for path in paths]

    def rank(card: Card) -> tuple[bool, int, str]:
        name = card.id.removeprefix("compact-")
        return card.family == "compact", PAPER_ROWS.index(name) if name in PAPER_ROWS else len(PAPER_ROWS), card.id

    found: dict[str, Card] = {}
    for card in sorted(cards, key=rank):
        if card.id in found:
            raise CardError(f"{card._folder / card.id}.toml: id: {card.id!r} is taken by another card")
        found[card.id] = card
        root_card(card)
    return Registry("model", found, group="benchsr.models", of=Card)


def zoo_at(scale: Scale) -> Registry[Card]:
    """The cards of the packaged zoo that answer at a super-resolution factor, in the order of `zoo`."""
    return Registry("model", {name: card.at(scale) for name, card in zoo().items() if card.scale in ("any", scale)})


BEHIND = "+"
"""Joins a defence and the model behind it: `jpeg+impressionism-ntire`."""

WEIGHTS: dict[str, Literal["safetensors", "pth"]] = {".safetensors": "safetensors", ".pth": "pth", ".pt": "pth"}
"""Suffixes of weights files that need no card, and their formats."""

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""How code that makes a network is named: package.module:factory."""

_NAMED = re.compile(r"(?:([a-z0-9][a-z0-9.-]{0,63})=)?(.+)", re.DOTALL)


def named(model: str | Path) -> tuple[str, str]:
    """The id ("" where none is given) and the rest of `[ID=]MODEL`, the way to say which row a model gets."""
    found = _NAMED.fullmatch(str(model))
    return (found[1] or "", found[2]) if found else ("", str(model))


def defended(card: Card, defence: str) -> Card:
    """The card of `card`'s network behind the entry `defence` of the table of defences, with that entry's settings.

    Raises InputError for a card that is deployed with a defence already.
    """
    if card.guarded:
        raise InputError(f"{card.id} is deployed with a defence already; put {defence} around its network alone")
    changes = {
        "id": f"{defence}{BEHIND}{card.id}",
        "title": f"{card.title}, behind {defence}",
        "paper_row": False,
        "defence": CardDefence(name=defence),
    }
    return card.model_copy(update=changes | {"retrains": None, "reproduces": (), "recipe": None, "training": None})


def load_card(card: str | Path) -> Card:
    """A card of the zoo by its id, a card of one's own by its path (.toml), or one made for a file of WEIGHTS; any of
    them behind a defence, as `jpeg+MODEL`.

    `ID=` before it gives the row another id. Raises UnknownIdError, suggesting the nearest ids, CardError, naming file
    and field, or InputError, for a file that is not there, an id that is taken, and for code.
    """
    defence, behind, model = str(card).partition(BEHIND)
    if behind and defence.replace("-", "").isalnum() and not Path(card).is_file():
        return defended(load_card(model), defence)
    new, what = named(card)
    path = Path(what)
    if FACTORY.fullmatch(what):
        raise InputError(
            f"{what} names Python code that makes a network; only benchsr run, told --trust-code (in Python "
            "trust_code=True), runs such code, with all your rights"
        )
    if path.suffix in WEIGHTS:
        return _weights_card(path, new)
    found = read_card(Card, path) if path.suffix == ".toml" else zoo()[what]
    return renamed(found, new) if new else found


def renamed(card: Card, new: str) -> Card:
    """`card` as the row `new`. Raises InputError where a card of the zoo has that id."""
    if new == card.id:
        return card
    require_free(new)
    return card.model_copy(update={"id": new, "title": f"{new}: {card.title}"})


def require_free(row: str) -> None:
    """Raise InputError where a card of the zoo has the id `row`."""
    if row in zoo():
        raise InputError(f"the id {row!r} is a model of the zoo; choose another one (ID=MODEL)")


def _weights_card(path: Path, new: str) -> Card:
    """A card for a weights file that has none: its id is `new`, or made of the file's name."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    stem = re.sub(r"[^a-z0-9.-]+", "-", path.stem.lower()).strip(".-")
    row = new or stem[:64] or "model"
    require_free(row)
    # Not validated: the file stands where its user named it, and no card says a path.
    source = FileSource.model_construct(
        kind="file", path=path.name, format=WEIGHTS[path.suffix], sha256=sha256_file(path)
    )
    card = Card(id=row, title=path.name, scale="any", weights=(source,), **UNSTATED)
    card._folder, card._name = path.absolute().parent, path.name
    return card


def defended_cards(models: Iterable[str]) -> dict[str, Card]:
    """Those of `models` that are a card of the zoo behind a defence."""
    return {model: load_card(model) for model in models if model.partition(BEHIND)[2] in zoo()}


def base_card(name: str, folder: Path, asker: str) -> Card:
    """The card `name`, looked for in `folder`, then in the zoo. Raises CardError, in the name of the card `asker`."""
    path = next((path for path in (place / f"{name}.toml" for place in (folder, zoo_dir())) if path.is_file()), None)
    if path is None:
        near = get_close_matches(name, [path.stem for path in zoo_dir().glob("*.toml")], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CardError(f"{folder / asker}.toml: base: there is no card {name!r}{hint}")
    return read_card(Card, path)


def _bases(card: Card) -> list[str]:
    """The cards that `card` rests on: the one that it deploys, those whose networks its adapters change."""
    adapted = [source.base for source in card.weights if isinstance(source, AdapterSource)]
    return [card.base] if card.base else adapted


def _require_sound(card: Card, seen: tuple[str, ...] = ()) -> None:
    """Raise CardError where a card rests on itself, on one that there is not, or on one of another scale."""
    if card.id in seen:
        raise CardError(f"{card._folder / card.id}.toml: base: {' -> '.join([*seen, card.id])} is a circle")
    for name in _bases(card):
        base = base_card(name, card._folder, card.id)
        if base.scale not in ("any", card.scale):
            raise CardError(f"{card.file}: scale: {card.scale!r}, but its base {name} has scale = {base.scale!r}")
        _require_sound(base, (*seen, card.id))


def root_card(card: Card) -> Card:
    """The card whose weights `card` deploys."""
    _require_sound(card)
    while card.base is not None:
        card = base_card(card.base, card._folder, card.id)
    return card


class Found(NamedTuple):
    """Weights as they were found: format, checked files, and what tells them from others."""

    format: str
    files: tuple[Path, ...]
    key: str
    base: Card | None = None  # whose network an adapter changes


@lru_cache(maxsize=256)
def find_weights(weights: tuple[Any, ...], folder: Path) -> Found:
    """The files of the first source that can be had, hash-checked. Raises UnavailableError with every reason."""
    reasons = []
    for source in weights:
        base = base_card(source.base, folder, source.path) if isinstance(source, AdapterSource) else None
        try:
            files = source.locate(folder)
            hashes = [network_key(base)] if base else []
        except UnavailableError as error:
            reasons.append(str(error))
            continue
        key = " ".join([source.format, *hashes, *(sha256 for _, sha256 in files)])
        return Found(source.format, tuple(file for file, _ in files), key, base)
    raise UnavailableError(f"{NO_WEIGHTS}: " + "; ".join(reasons))


def network_key(card: Card) -> str:
    """SHA-256 of what determines the network: format and hash of its weights, fetched if need be.

    It is the same for a card and its smoothed variants. Raises UnavailableError with the reason of every source, or
    IntegrityError.
    """
    root = root_card(card)
    if isinstance(root, Live):
        return root._key
    key = find_weights(root.weights, root._folder).key if root.weights else root.architecture
    return hashlib.sha256(key.encode()).hexdigest()


def availability(card: Card) -> tuple[bool, str]:
    """Whether the weights are on this machine, and where they are or would come from, in words. Fetches nothing."""
    root = root_card(card)
    states = []
    for source in root.weights:
        here, words = source.state(root._folder)
        if isinstance(source, AdapterSource):
            base_here, base_words = availability(base_card(source.base, root._folder, root.id))
            here, words = here and base_here, f"{base_words} + adapter of {source.base}" if here else words
        states.append((here, words))
    states = states or [(True, "none needed")]
    return next((state for state in states if state[0]), states[0])


def select_cards(models: str, scale: Scale = USUAL, load: Callable[[str], Card] = load_card) -> list[Card]:
    """Cards for "all" of a super-resolution factor, or those that `load` gives for a comma-separated list.

    Raises InputError, saying which --scale to give, for a named model of another factor.
    """
    names = [name.strip() for name in models.split(",") if name.strip()]
    if models.strip() == "all" or not names:
        return [zoo_at(scale)[name] for name in zoo_at(scale).select(models)]
    return [load(name).at(scale) for name in dict.fromkeys(names)]
