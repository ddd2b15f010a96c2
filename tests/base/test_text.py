"""Templates: all of the package's can be read."""

from __future__ import annotations

import pytest

from benchsr.base.text import templates


@pytest.mark.parametrize("package", ["benchsr.leaderboard", "benchsr.site", "benchsr.commands"])
def test_every_template_is_one(package: str) -> None:
    environment = templates(package)
    names = environment.list_templates()
    assert names
    for name in names:
        source, *_ = environment.loader.get_source(environment, name)  # type: ignore[union-attr]  # it has one
        environment.parse(source, name)
