"""Time as the runtime sees it: seconds of a monotonic clock, and a way to wait until a moment.

Every deadline of the runtime is taken from one injected clock, never from the date: setting the computer's
date moves nothing. `SimulatedClock` moves only when it is advanced, which makes experiments in simulated time
deterministic and tests instant. `Pacer` keeps a loop on its grid of periods and counts those that it missed.
"""

import contextlib
import gc
import math
import time
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

_LATE_SHARE = 0.5  # of a period: one that begins later than this counts as missed
_SPIN_S = 0.0005  # the end of a wait is spent looking at the clock: sleeping overshoots by about as much


@runtime_checkable
class Clock(Protocol):
    """A monotonic clock that can wait."""

    def now(self) -> float:
        """Return the time [s]; only differences mean something."""
        ...

    def sleep_until(self, moment: float) -> None:
        """Return at `moment` [s] or, if that has passed, at once."""
        ...


class MonotonicClock:
    """The computer's monotonic clock: sleeps, then spins for the last half millisecond."""

    def now(self) -> float:
        """Return the time since an arbitrary start [s]."""
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        """Return at `moment` [s], late by what the scheduler costs."""
        to_sleep = moment - time.monotonic() - _SPIN_S
        if to_sleep > 0:
            time.sleep(to_sleep)
        while time.monotonic() < moment:
            pass


class SimulatedClock:
    """A clock that stands still unless something waits for it or moves it."""

    def __init__(self, *, start_s: float = 0.0) -> None:
        self._now = start_s

    def now(self) -> float:
        """Return the simulated time [s]."""
        return self._now

    def sleep_until(self, moment: float) -> None:
        """Move to `moment` [s] unless it has passed."""
        self._now = max(self._now, moment)

    def advance(self, seconds: float) -> None:
        """Let time pass, as slow work does.

        Raises:
            ValueError: `seconds` is negative; a monotonic clock never goes back.
        """
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s")
        self._now += seconds


@contextlib.contextmanager
def short_collections() -> Iterator[None]:
    """Keep the garbage collector from stopping a loop: what is alive now is not looked through again.

    A full collection of the objects that a robot program imports took 59 ms here, three periods at 50 Hz,
    about once a minute. Costs nothing itself, so that a loop may be entered as often as one likes.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Pacer:
    """Waits for the beginning of each period.

    A period that begins late is counted; those that have passed altogether are counted and skipped, so that
    the loop stays on the grid that it began on.
    """

    def __init__(self, *, clock: Clock, period_s: float) -> None:
        self._clock, self._period_s = clock, period_s
        self._due: float | None = None
        self.num_missed = 0
        self.missed_in_a_row = 0
        self.late_s = 0.0  # how long after its time the present period began

    def wait(self) -> None:
        """Return when the next period begins; the first begins with the first call."""
        now = self._clock.now()
        self._due = now if self._due is None else self._due + self._period_s
        late = now - self._due
        if late <= _LATE_SHARE * self._period_s:
            self.missed_in_a_row = 0
            self._clock.sleep_until(self._due)
        else:
            skipped = math.floor(late / self._period_s + 1e-9)
            self._due += skipped * self._period_s
            missed = skipped + (now - self._due > _LATE_SHARE * self._period_s)
            self.num_missed += missed
            self.missed_in_a_row += missed
        self.late_s = max(0.0, self._clock.now() - self._due)
