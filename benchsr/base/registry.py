"""Explicit tables of named things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Generic, TypeVar

from benchsr.base.errors import InputError, UnknownIdError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A read-mostly mapping from id to entry, in order of registration.

    `kind` ("model", "threat", ...) is used in error messages. Duplicate ids raise InputError and leave the registry as
    it was; unknown ids raise UnknownIdError naming the nearest known ones.
    """

    def __init__(self, kind: str, entries: Mapping[str, T] | None = None) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        for name, entry in (entries or {}).items():
            self.add(name, entry)

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name` and return it."""
        if name in self._entries:
            raise InputError(f"{self.kind} {name!r} is registered already; give one of the two another name")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownIdError(self._unknown(name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def select(self, names: str) -> list[str]:
        """Resolve a comma-separated list, or "all", to known ids without repetition, in the order given."""
        if names.strip() == "all":
            return list(self)
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        if not wanted:
            raise UnknownIdError(f"no {self.kind} named; use 'all' or some of: {', '.join(self)}")
        for name in wanted:
            self[name]
        return list(dict.fromkeys(wanted))

    def _unknown(self, name: str) -> str:
        near = get_close_matches(str(name), self._entries, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(self._entries)}"
        return f"unknown {self.kind} {name!r}; {hint}"
