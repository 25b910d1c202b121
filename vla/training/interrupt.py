"""Ctrl-C, SIGTERM and SIGHUP as something that a loop looks at, so that it ends with its work saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether, and by which signal, the process was asked to end.

    Attributes:
        signal: the number of the signal, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Note the first Ctrl-C, SIGTERM or SIGHUP, so that a loop can end well; a second acts as it did before.

    SIGHUP stays ignored where it is, as under `nohup`.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if old[signal.SIGHUP] is signal.SIG_IGN:
        del old[signal.SIGHUP]

    def note(number: int, frame: FrameType | None) -> None:
        interruption.signal = number
        signal.signal(number, old[signal.Signals(number)])

    for number in old:
        signal.signal(number, note)
    try:
        yield interruption
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
