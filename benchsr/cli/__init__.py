"""The command line."""

from benchsr.cli.main import app, main

__all__ = ["app", "main"]
