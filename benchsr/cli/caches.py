"""`benchsr cache`: what the cache of attacked images holds, whether it is whole, and what may go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from benchsr.base.files import cache_dir
from benchsr.cli.options import CacheFolder, examples, out

if TYPE_CHECKING:
    from benchsr.evaluation.cache import AttackCache

caches = typer.Typer(help="Look after the cache of attacked images.", no_args_is_help=True)


@caches.command(epilog=examples("benchsr cache info", "benchsr cache info --cache s3://bucket/attacked"))
def info(cache: CacheFolder = None) -> None:
    """Say how many attacked images are kept, and how large and how old they are."""
    kept = _cache(cache)
    entries = list(kept.entries())
    days = max((entry.age for entry in entries), default=0) / 86400
    size = sum(entry.bytes for entry in entries) / 1e6
    out.print(f"{kept.folder}: {len(entries)} entries, {size:.1f} MB, the oldest of {days:.1f} days ago")


@caches.command(epilog=examples("benchsr cache verify"))
def verify(cache: CacheFolder = None) -> None:
    """Check every entry against its hash. Exit code 1 where one is damaged; runs compute such entries again."""
    damaged = _cache(cache).damaged()
    for path, problem in damaged.items():
        out.print(f"{path}: {problem}", markup=False)
    out.print(f"{len(damaged)} damaged entries")
    if damaged:
        raise typer.Exit(1)


@caches.command(epilog=examples("benchsr cache prune", "benchsr cache prune --days 90"))
def prune(
    cache: CacheFolder = None,
    days: Annotated[float | None, typer.Option(help="Also entries written more than so many days ago.")] = None,
) -> None:
    """Delete damaged entries, leftovers of interrupted runs and, if asked for, old entries."""
    gone = _cache(cache).prune(days)
    out.print(f"{len(gone)} files deleted, {sum(entry.bytes for entry in gone) / 1e6:.1f} MB")


def _cache(folder: str | None) -> AttackCache:
    from benchsr.evaluation.cache import AttackCache

    return AttackCache(folder or cache_dir() / "attacked")
