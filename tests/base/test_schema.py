"""What is wrong with a file is said field by field; errors are also the ones that Python users expect."""

from __future__ import annotations

import pytest
from pydantic import Field

from benchsr.base.errors import CardError, InputError, UnknownIdError
from benchsr.base.registry import Registry
from benchsr.base.schema import Table, parse


class Inner(Table):
    depth: int = Field(ge=1)


class Outer(Table):
    name: str
    inner: Inner


def test_parse_names_source_field_and_nearest_field() -> None:
    with pytest.raises(CardError) as raised:
        parse(Outer, {"nam": "x", "inner": {"depht": 2, "depth": 0}}, "a.toml", within="recipe")
    said = str(raised.value)
    assert said.startswith("a.toml: recipe.name: Field required; ")
    assert "recipe.inner.depth: Input should be greater than or equal to 1" in said
    assert "recipe.inner.depht: no such field; did you mean 'depth'?" in said
    assert "recipe.nam: no such field; did you mean 'name'?" in said


def test_errors_are_pythons_too() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(CardError, ValueError)
    with pytest.raises(KeyError) as raised:
        Registry("model", {"bicubic": 1})["bicubik"]
    assert isinstance(raised.value, UnknownIdError)
    assert str(raised.value) == "unknown model 'bicubik'; did you mean 'bicubic'?"
    assert Registry("model", {"bicubic": 1}).get("bicubik") is None
