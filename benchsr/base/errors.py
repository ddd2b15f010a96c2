"""Errors that every other module raises: each names culprit and fix."""

from __future__ import annotations


class BenchsrError(Exception):
    """An error that a user can act on: it names culprit and fix. The command line prints it and exits with 2."""


class Stopped(BaseException):
    """A signal that asks to stop; `how` says how to go on. No KeyboardInterrupt: typer would answer that one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.how = "what was computed is kept, and the same command goes on from there"


class UnknownIdError(BenchsrError, KeyError):
    """A name that no registry entry carries; the message suggests the nearest ones."""

    __str__ = Exception.__str__  # KeyError's would put the message into quotes


class CardError(BenchsrError, ValueError):
    """A model card or protocol file that does not follow its schema; the message names file and field."""


class UnavailableError(BenchsrError):
    """Weights or data that cannot be had here; the message says what to fetch and where to put it."""


class IntegrityError(BenchsrError):
    """Bytes that are not what they should be: wrong hash, a pickle that would run code, an escaping path."""


class InputError(BenchsrError, ValueError):
    """An image, tensor, option or results file that cannot be used as given."""


class NotApplicableError(InputError):
    """Images that a metric cannot score, such as too small ones: that figure stays empty, and this says why."""


class ModelError(BenchsrError):
    """A network that broke its contract: wrong output shape, NaN, an exception of its own."""
