"""What the tables of cards, protocols and recipes have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

DIGITS = r"[0-9a-f]"

Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]

Sha256 = Annotated[str, StringConstraints(pattern=rf"^{DIGITS}{{64}}$")]

Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
