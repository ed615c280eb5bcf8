"""Signals that end a command as Ctrl-C does: what was found is kept, and the exit code says why."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["Stopped", "exit_code", "stoppable"]

_SIGNALS = ("SIGTERM", "SIGHUP")
"""Of a scheduler that wants the machine back; of a terminal that went away. Not on all systems."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}")


def exit_code(stop: KeyboardInterrupt) -> int:
    """What a shell reports of a process that a signal ended: 128 and the signal's number."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise :class:`Stopped` at signals that would kill the process otherwise.

    One that is ignored (as under ``nohup``) stays ignored.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(number)
