"""The zoo: cards by id, the files and the key of their networks."""

from __future__ import annotations

import hashlib
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from benchsr.base.errors import CardError, UnavailableError
from benchsr.base.files import require_sha256
from benchsr.base.registry import Registry
from benchsr.base.schema import read_card
from benchsr.models.cards import AdapterSource, Card

PAPER_ROWS = (
    "bicubic",
    *(f"{method}-{domain}" for method in ("esrgan-fs", "impressionism") for domain in ("ntire", "aim", "dped")),
    *("esrgan", "ad-l-pgd", "ad-l-fgsm", "ad-l-bim", "ad-l-cw", "certsr"),
)
"""The 13 rows of the paper's Table 3, in its order."""


def zoo_dir() -> Path:
    """The folder of the packaged cards: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return next(folder for folder in (package / "model_zoo", package.parent / "model_zoo") if folder.is_dir())


@cache
def zoo(*extra_dirs: str | Path) -> Registry[Card]:
    """All cards of the packaged zoo, and of `extra_dirs`: the paper's rows in its order, then others, then compact.

    Raises CardError, naming file and field, for a card that does not follow the schema, whose `base` does not exist or
    leads back to itself, or whose id is taken.
    """
    paths = [path for folder in (zoo_dir(), *map(Path, extra_dirs)) for path in sorted(folder.glob("*.toml"))]
    cards = [read_card(Card, path) for path in paths]

    def rank(card: Card) -> tuple[bool, int, str]:
        name = card.id.removeprefix("compact-")
        return card.family == "compact", PAPER_ROWS.index(name) if name in PAPER_ROWS else len(PAPER_ROWS), card.id

    registry: Registry[Card] = Registry("model")
    for card in sorted(cards, key=rank):
        if card.id in registry:
            raise CardError(f"{card._folder / card.id}.toml: id: {card.id!r} is taken by another card")
        registry.add(card.id, card)
        root_card(card)
    return registry


def load_card(card: str | Path) -> Card:
    """A card of the zoo by its id, or a card of one's own by its path (ending in .toml).

    Raises UnknownIdError, suggesting the nearest ids, or CardError, naming file and field.
    """
    return read_card(Card, Path(card)) if Path(card).suffix == ".toml" else zoo()[str(card)]


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


def _require_no_circle(card: Card, seen: tuple[str, ...] = ()) -> None:
    """Raise CardError where a card rests on itself, or on one that there is not."""
    if card.id in seen:
        raise CardError(f"{card._folder / card.id}.toml: base: {' -> '.join([*seen, card.id])} is a circle")
    for name in _bases(card):
        _require_no_circle(base_card(name, card._folder, card.id), (*seen, card.id))


def root_card(card: Card) -> Card:
    """The card whose weights `card` deploys."""
    _require_no_circle(card)
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
        hashes += [require_sha256(file, "", file.name) for file in files]
        return Found(source.format, tuple(files), " ".join([source.format, *hashes]), base)
    raise UnavailableError("weights cannot be had: " + "; ".join(reasons))


def network_key(card: Card) -> str:
    """SHA-256 of what determines the network: format and hash of its weights, fetched if need be.

    It is the same for a card and its smoothed variants. Raises UnavailableError with the reason of every source, or
    IntegrityError.
    """
    root = root_card(card)
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
            here, words = here and base_here, f"{words} ({base_words})"
        states.append((here, words))
    states = states or [(True, "none needed")]
    return next((state for state in states if state[0]), states[0])


def select_cards(models: str) -> list[Card]:
    """Cards for "all" or for a comma-separated list of ids and paths of card files."""
    names = [name.strip() for name in models.split(",") if name.strip()]
    if models.strip() == "all" or not names:
        return [zoo()[name] for name in zoo().select(models)]
    return [load_card(name) for name in dict.fromkeys(names)]
