"""Files that people write (cards, protocols, recipes) as data: one base, and one way to say what is wrong with them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Set
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, StringConstraints, TypeAdapter, ValidationError

from benchsr.base.errors import CardError, InputError
from benchsr.base.files import require_ordinary

DIGITS = r"[0-9a-f]"

Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=rf"^{DIGITS}{{64}}$")]

Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]

_DEEP = re.compile(r"(?<![\w-])(?:(?>[\w-]+|\"[^\"\n]*\"|'[^'\n]*')[ \t]*\.[ \t]*){32}")
"""Dotted keys of many parts, for which tomllib takes memory by the square of their number."""

MAX_CARD_BYTES, MAX_JSON_BYTES = 64 << 10, 8 << 20


def require_id(name: str) -> None:
    """Raise InputError where `name` cannot be an id."""
    try:
        TypeAdapter(Id).validate_python(name)
    except ValidationError:
        raise InputError(f"{name!r} cannot be an id: use a-z, 0-9, '.' and '-', at most 64 of them") from None


class Table(BaseModel):
    """A table of a TOML file: its fields cannot be changed, and no others are allowed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CardFile(Table):
    """A table with a TOML file of its own, which is named after its id."""

    id: Id
    title: Text
    _folder: Path = PrivateAttr(default=Path())
    _name: str = PrivateAttr(default="")

    @property
    def file(self) -> Path:
        """The file that the card was read from or made for."""
        return self._folder / (self._name or f"{self.id}.toml")


T = TypeVar("T", bound=Table)
C = TypeVar("C", bound=CardFile)
J = TypeVar("J")


def read_toml(path: Path) -> dict[str, Any]:
    """The table in `path`. Raises CardError, naming the file, where it cannot be read, is too large or no TOML."""
    return _table(_bytes(path), path)


def _bytes(path: Path) -> bytes:
    try:
        require_ordinary(path)
        with path.open("rb") as file:
            text = file.read(MAX_CARD_BYTES + 1)
    except InputError as error:
        raise CardError(str(error)) from None
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror})") from error
    if len(text) > MAX_CARD_BYTES:
        raise CardError(f"{path}: a card or protocol may have {MAX_CARD_BYTES} bytes at most")
    return text


def _table(text: bytes, path: Path) -> dict[str, Any]:
    try:
        whole = text.decode()
        if _DEEP.search(whole):
            raise ValueError("a key of more than 32 parts")
        return tomllib.loads(whole)
    except (ValueError, RecursionError) as error:
        raise CardError(f"{path}: not a TOML file ({error})") from error


def read_json(path: Path, kind: type[J], fix: str) -> J:
    """What the JSON file `path` holds, as `kind` has it: a file of our own that anybody may have changed since.

    Raises InputError that names file, field and the `fix` where it cannot be read, is too large or is none.
    """
    require_ordinary(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
        return TypeAdapter(kind).validate_python(json.loads(text))
    except ValidationError as error:
        why = "; ".join(_explain(e, frozenset(), "") for e in error.errors()[:3])
    except OSError as error:
        why = str(error.strerror)
    except (ValueError, RecursionError) as error:
        why = str(error)
    raise InputError(f"{path}: cannot be used ({why}); {fix}")


def read_card(schema: type[C], path: Path) -> C:
    """The card in `path`. Raises CardError, naming file and field, where it does not follow the schema."""
    card: C = _card(schema, path, path.absolute().parent, _bytes(path))
    return card


@lru_cache(maxsize=256)
def _card(schema: type[C], path: Path, folder: Path, text: bytes) -> C:
    """The card in `path`, which holds `text`: other cards that rest on it read it again and again."""
    card = parse(schema, _table(text, path), str(path))
    if card.id != path.stem:
        raise CardError(f"{path}: id: {card.id!r} must be the file's name without .toml, {path.stem!r}")
    card._folder, card._name = folder, path.name
    return card


def parse(schema: type[T], table: object, source: str, within: str = "") -> T:
    """`table` as `schema` has it. Raises CardError that names `source`, each wrong field and what is wrong with it.

    `within`: the field of the source that holds the table.
    """
    try:
        return schema.model_validate(table)
    except ValidationError as error:
        known = _fields(schema)
        raise CardError(f"{source}: " + "; ".join(_explain(e, known, within) for e in error.errors())) from error


def _explain(error: Any, known: Set[str], within: str) -> str:
    """One of pydantic's errors as "field: what is wrong"."""
    place = [*([within] if within else []), *map(str, error["loc"])]
    field = ".".join(place) or "file"
    if error["type"] != "extra_forbidden":
        return f"{field}: {error['msg'].removeprefix('Value error, ')}"
    near = get_close_matches(place[-1], sorted(known), n=1)
    return f"{field}: no such field" + (f"; did you mean {near[0]!r}?" if near else "")


def _fields(schema: type[Table]) -> set[str]:
    """Names of all fields of the schema and of the tables in it."""
    described = schema.model_json_schema()
    tables = [described, *described.get("$defs", {}).values()]
    return {name for table in tables for name in table.get("properties", {})}
