"""Entries that installed packages bring: what a package is on disk, and what of it is imported when."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from toys import package

from benchsr.base.errors import InputError, UnknownIdError
from benchsr.base.registry import Registry

GROUP = "benchsr.things"


def things(**entries: int) -> Registry[int]:
    return Registry("thing", entries or {"one": 1, "two": 2}, group=GROUP, of=int)


def test_entries_of_packages_follow_by_name_with_their_origin(site: Path) -> None:
    package(site, "a-pack", {GROUP: {"zebra": "a_pack:z", "four": "a_pack:f"}}, "z, f = 26, 4")
    package(site, "b-pack", {GROUP: {"hen": "b_pack:h"}}, "h = 8", version="2.5")
    table = things()
    assert table["zebra"] == 26
    assert list(table) == ["one", "two", "four", "hen", "zebra"]
    assert len(table) == 5
    assert table.select("all") == list(table)
    assert table.origins(["one", "hen", "zebra"]) == {"hen": "b-pack 2.5", "zebra": "a-pack 1.0"}
    with pytest.raises(UnknownIdError, match=r"unknown thing 'zebr'; did you mean 'zebra'\?"):
        table["zebr"]


def test_nothing_is_looked_for_where_known_ids_are_asked_for(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scanned(**_: str) -> None:
        raise AssertionError("entry points were looked for")

    package(site, "bomb", {GROUP: {"three": "bomb:x"}}, "raise RuntimeError")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.entry_points", scanned)
        table = things()
        assert table["one"] == 1
        assert "two" in table
        assert table.get("two") == 2
        assert table.select("two,one") == ["two", "one"]
        assert not table.origins(["one"])
        assert list(Registry("plain", {"a": 1})) == ["a"]
        with pytest.raises(AssertionError, match="looked for"):
            assert "three" in table
    assert "three" in table
    assert "bomb" not in sys.modules  # known by its name alone


def test_only_what_is_asked_for_is_imported(site: Path) -> None:
    package(site, "left", {GROUP: {"l": "left:x"}}, "x = 3")
    package(site, "right", {GROUP: {"r": "right:x"}}, "x = 4")
    assert things()["l"] == 3
    assert "left" in sys.modules
    assert "right" not in sys.modules


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("own", "same", "thing 'own' is of first-pack 1.0 and of second-pack 1.0"),
        ("own", "own", "thing 'one' is of benchsr and of second-pack 1.0"),
    ],
)
def test_a_clash_names_both_before_anything_is_imported(site: Path, first: str, second: str, told: str) -> None:
    package(site, "first-pack", {GROUP: {first: "first_pack:x"}}, "x = 3")
    names = {"own": "second_pack:x"} if second == "same" else {"one": "second_pack:x"}
    package(site, "second-pack", {GROUP: names}, "x = 4")
    table = things()
    for ask in (lambda: list(table), lambda: table["what"], lambda: table.select("all")):
        with pytest.raises(InputError, match=told + r" \(entry points benchsr.things\); rename it in one"):
            ask()
    assert not {"first_pack", "second_pack"} & set(sys.modules)
    assert table["one"] == 1


@pytest.mark.parametrize(
    ("name", "code", "why"),
    [
        ("three", "import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("three", "y = 3", "AttributeError: module 'broken' has no attribute 'x'"),
        ("three", "x = '3'", "it is of type str, not int"),
        ("Three!", "x = 3", "'Three!' cannot be an id: use a-z"),
    ],
)
def test_a_broken_package_is_one_warning_and_the_rest_works(
    site: Path, name: str, code: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    package(site, "broken", {GROUP: {name: "broken:x"}}, code)
    package(site, "whole", {GROUP: {"five": "whole:x"}}, "x = 5")
    table = things()
    with caplog.at_level(logging.WARNING):
        assert dict(table) == {"one": 1, "two": 2, "five": 5}
        assert len(table) == 3
    [warning] = caplog.messages
    assert warning.startswith(f"thing {name!r} of broken 1.0 cannot be used ({why}")
    assert warning.endswith("mend its entry point benchsr.things: broken:x, or uninstall it")
    with pytest.raises(InputError) as told:
        table[name]
    assert str(told.value) == warning
    assert table["five"] == 5


def test_an_entry_that_calls_itself_otherwise_is_refused(site: Path) -> None:
    package(site, "namer", {GROUP: {"three": "namer:x"}}, "from fractions import Fraction as x\nx.name = 'four'")
    table: Registry[type] = Registry("thing", {}, group=GROUP)
    with pytest.raises(InputError, match="it calls itself 'four'"):
        table["three"]


def test_a_package_may_ask_the_table_that_it_adds_to(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = things()
    monkeypatch.setattr("toys.SHARED", table, raising=False)
    package(site, "asker", {GROUP: {"sum": "asker:x"}}, "import toys\nx = sum(toys.SHARED.values())")
    assert dict(table) == {"one": 1, "two": 2, "sum": 3}
