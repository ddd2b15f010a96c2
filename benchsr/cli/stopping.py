"""Signals that ask to stop, answered by one exception where it can be raised."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from benchsr.base.errors import Stopped


class _Stop:
    """What answers a signal: raises Stopped, once; a second signal ends the process."""

    def __init__(self) -> None:
        self._asked = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._asked:  # forked, such as to load training data: Ctrl-C is for its parent
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif _imports(frame):  # it would leave a module half imported, and libraries go on with such a one
            self._again(number)
        else:
            signal.signal(number, signal.SIG_DFL)
            raise Stopped(number)

    def _again(self, number: int) -> None:
        """Answer the signal a moment later."""
        signal.signal(number, self)
        later = threading.Timer(0.05, os.kill, (self._asked, number))
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
