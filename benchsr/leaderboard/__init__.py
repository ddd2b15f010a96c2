"""Records folded into tables with intervals, plots, a report, and the paper's claims checked."""

from typing import TYPE_CHECKING, Any

from benchsr.leaderboard.files import write_leaderboard
from benchsr.leaderboard.summary import summary
from benchsr.leaderboard.tables import CardInfo, LeaderboardInfo, tables

if TYPE_CHECKING:
    from benchsr.leaderboard.report import Leaderboard, read_leaderboard

__all__ = [
    "CardInfo",
    "Leaderboard",
    "LeaderboardInfo",
    "read_leaderboard",
    "summary",
    "tables",
    "write_leaderboard",
]


def __getattr__(name: str) -> Any:
    """Import on first use what needs pandas and matplotlib."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from benchsr.leaderboard import report

    return getattr(report, name)
