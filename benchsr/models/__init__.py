"""Model cards, the zoo, and networks from weights."""

from typing import TYPE_CHECKING, Any

from benchsr.models.cards import Card
from benchsr.models.zoo import load_card

if TYPE_CHECKING:
    from benchsr.models.network import load_network

__all__ = ["Card", "load_card", "load_network"]


def __getattr__(name: str) -> Any:
    """Import torch on first use of a network: cards are read without."""
    if name != "load_network":
        raise AttributeError(f"module 'benchsr.models' has no attribute {name!r}")
    from benchsr.models.network import load_network

    return load_network
