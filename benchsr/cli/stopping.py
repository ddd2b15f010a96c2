"""Signals that ask to stop, answered by one exception where it can be raised."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from benchsr.base.errors import Stopped

PATIENCE = 20.0
"""Seconds for which a stop waits until a module is imported: libraries go on with what is half imported."""


class _Stop:
    """What answers a signal: raises Stopped, once; a second signal ends the process."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._until: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # forked, such as to load training data: Ctrl-C is for its parent
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif _imports(frame) and self._may_wait():
            self._again(number)
        else:
            signal.signal(number, signal.SIG_DFL)
            raise Stopped(number)

    def _may_wait(self) -> bool:
        """Whether PATIENCE is left, from the first time on that this is asked."""
        self._until = self._until or time.monotonic() + PATIENCE
        return time.monotonic() < self._until

    def _again(self, number: int) -> None:
        """Answer the signal a moment later."""
        signal.signal(number, self)
        later = threading.Timer(0.05, os.kill, (self._process, number))
        later.daemon = True
        later.start()

    def unraisable(self, met: sys.UnraisableHookArgs) -> None:
        """Not let C code that calls Python's, and has nobody to hand its errors to, swallow Stopped."""
        if isinstance(met.exc_value, Stopped):
            self._again(met.exc_value.number)
        else:
            sys.__unraisablehook__(met)


def _imports(frame: FrameType | None) -> bool:
    """Whether what runs in `frame` is a module that a command imports."""
    while frame and frame.f_globals is not globals():
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def stoppable(command: Callable[[], object]) -> None:
    """Call `command`, inside of which Ctrl-C and SIGTERM raise Stopped."""
    stop = _Stop()
    hook, sys.unraisablehook = sys.unraisablehook, stop.unraisable
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        command()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
