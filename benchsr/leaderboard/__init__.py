"""Records folded into tables with intervals, plots, a report, and the paper's claims checked."""

from benchsr.leaderboard.report import Leaderboard, read_leaderboard, summary, write_leaderboard
from benchsr.leaderboard.tables import CardInfo, LeaderboardInfo, tables

__all__ = [
    "CardInfo",
    "Leaderboard",
    "LeaderboardInfo",
    "read_leaderboard",
    "summary",
    "tables",
    "write_leaderboard",
]
