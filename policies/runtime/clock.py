"""Time as the runtime sees it: seconds of a monotonic clock, and a way to wait until a moment.

Every deadline of the runtime is taken from one injected clock, never from the date: setting the computer's
date moves nothing. `SimulatedClock` moves only when it is told to, which makes experiments in simulated time
deterministic and tests instant.
"""

import time
from typing import Protocol, runtime_checkable

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
