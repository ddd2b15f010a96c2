"""Explicit tables of named things, and what installed packages add to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Generic, TypeVar

from benchsr.base.errors import BenchsrError, InputError, UnknownIdError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

log = logging.getLogger(__name__)

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A read-mostly mapping from id to entry, in order of registration.

    `kind` ("model", "threat", ...) is used in error messages. Duplicate ids raise InputError and leave the registry as
    it was; unknown ids raise UnknownIdError naming the nearest known ones.

    `group`: entry points of that name, of any installed package, are entries too, after the others and by name. They
    are looked for when all entries or an unknown id are asked for, and a single one is imported when it is. Names that
    clash raise InputError before anything is imported. One that cannot be imported or is no `of` raises InputError,
    saying why, where it is asked for by its id, and is left out, with a warning, where all are.
    """

    def __init__(
        self, kind: str, entries: Mapping[str, T] | None = None, *, group: str = "", of: type[T] | None = None
    ) -> None:
        self.kind, self._group, self._of = kind, group, of
        self._entries: dict[str, T] = {}
        self._points: dict[str, EntryPoint] | None = None if group else {}
        self._origins: dict[str, str] = {}
        self._broken: dict[str, str] = {}
        for name, entry in (entries or {}).items():
            self.add(name, entry)

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name` and return it."""
        if name in self._entries:
            raise InputError(f"{self.kind} {name!r} is registered already; give one of the two another name")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        if name not in self._entries and name in self._found():
            self._load(name)
        if name in self._broken:
            raise InputError(self._broken[name])
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownIdError(self._unknown(name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._found() or name in self._broken

    def __iter__(self) -> Iterator[str]:
        self._load_all()
        ours = [name for name in self._entries if name not in self._origins]
        return iter([*ours, *sorted(self._origins)])

    def __len__(self) -> int:
        self._load_all()
        return len(self._entries)

    def origins(self, names: Iterable[str]) -> dict[str, str]:
        """Those of `names` that a package brought, with that package and its version: "my-package 1.0"."""
        return {name: self._origins[name] for name in names if name in self._origins}

    def _found(self) -> dict[str, EntryPoint]:
        """The entry points that are not imported yet, by name. Raises InputError where names clash."""
        if self._points is None:
            from importlib.metadata import entry_points  # it takes time to import, as pydantic does below

            found: dict[str, EntryPoint] = {}
            for point in sorted(entry_points(group=self._group), key=lambda point: (point.name, _package(point))):
                other = _package(found[point.name]) if point.name in found else "benchsr"
                if point.name in found or point.name in self._entries:
                    raise InputError(
                        f"{self.kind} {point.name!r} is of {other} and of {_package(point)} (entry points "
                        f"{self._group}); rename it in one of them, or uninstall one"
                    )
                found[point.name] = point
            self._points = found
        return self._points

    def _load_all(self) -> None:
        for name in list(self._found()):
            self._load(name)
            if name in self._broken:
                log.warning("%s", self._broken[name])

    def _load(self, name: str) -> None:
        """Import an entry point: an entry now, or broken."""
        point = self._found().pop(name)  # first, since its module may ask this table for entries
        try:
            self._entries[name] = self._checked(name, point.load())
        except Exception as error:  # whatever the package's own code raises
            why = str(error) if isinstance(error, BenchsrError) else f"{type(error).__name__}: {error}"
            self._broken[name] = (
                f"{self.kind} {name!r} of {_package(point)} cannot be used ({why}); mend its entry point "
                f"{self._group}: {point.value}, or uninstall it"
            )
        else:
            self._origins[name] = _package(point)

    def _checked(self, name: str, entry: T) -> T:
        """What an entry point gave. Raises InputError for another type, and for a name that is none."""
        from benchsr.base.schema import require_id

        require_id(name)
        if self._of and type(entry) is not self._of:
            raise InputError(f"it is of type {type(entry).__name__}, not {self._of.__name__}")
        own = getattr(entry, "id", getattr(entry, "name", name))
        if own != name:
            raise InputError(f"it calls itself {own!r}")
        return entry

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
        known, name = [*self._entries, *self._found()], str(name)[:100]
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known)}"
        return f"unknown {self.kind} {name!r}; {hint}"


def _package(point: EntryPoint) -> str:
    """The package that an entry point is of, and its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
