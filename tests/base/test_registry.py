from __future__ import annotations

import pytest

from benchsr.base.errors import UnknownIdError
from benchsr.base.registry import Registry
from benchsr.base.rng import generator


def test_duplicates_raise_and_change_nothing() -> None:
    registry = Registry("thing", {"one": 1})
    with pytest.raises(ValueError, match="'one' is registered already"):
        registry.add("one", 2)
    assert dict(registry) == {"one": 1}


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownIdError, match="did you mean 'esrgan'"):
        Registry("model", {"esrgan": 1, "certsr": 2})["esrgann"]


def test_select() -> None:
    registry = Registry("thing", {"a": 1, "b": 2, "c": 3})
    assert registry.select("all") == ["a", "b", "c"]
    assert registry.select(" c, a ,c") == ["c", "a"]
    for bad in ("", ",", "a,d"):
        with pytest.raises(UnknownIdError):
            registry.select(bad)


def test_generators_differ_by_seed_image_and_purpose() -> None:
    seeds = {generator(*key).initial_seed() for key in [(0, "a", "x"), (1, "a", "x"), (0, "b", "x"), (0, "a", "y")]}
    assert len(seeds) == 4
    assert generator(0, "a", "x").initial_seed() == generator(0, "a", "x").initial_seed()
