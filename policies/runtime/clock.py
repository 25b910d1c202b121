"""Time as the runtime sees it: seconds of a monotonic clock, and a way to wait until a moment.

Every deadline of the runtime is taken from one injected clock, never from the date: setting the computer's
date moves nothing. `SimulatedClock` moves only when it is advanced, which makes experiments in simulated time
deterministic and tests instant. `Pacer` keeps a loop on its grid of periods, counts those that it missed, and
reports their share of the last seconds.
"""

import contextlib
import gc
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

_LATE_SHARE = 0.5  # of a period: one that begins later than this counts as missed
MISSED_WINDOW_S = 2.0  # over which the share of missed periods is judged
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

    Args:
        clock: of the loop.
        period_s: length of a period [s].

    Attributes:
        num_missed: periods so far that began late or were skipped.
        late_s: how long after its time the present period began [s].
    """

    def __init__(self, *, clock: Clock, period_s: float) -> None:
        self._clock, self._period_s = clock, period_s
        self._due: float | None = None
        self._recent: deque[bool] = deque(maxlen=max(1, round(MISSED_WINDOW_S / period_s)))  # whether missed
        self.num_missed = 0
        self.late_s = 0.0

    @property
    def missed_share(self) -> float:
        """Share of the periods of the last `MISSED_WINDOW_S` that were missed, the time before them as kept.

        A streak says less: work that takes 1.2 periods each time misses every second or third period for
        ever, and a loop that was held up once misses many and is well again.
        """
        return sum(self._recent) / self._recent.maxlen if self._recent.maxlen else 0.0

    def wait(self) -> None:
        """Return when the next period begins; the first begins with the first call."""
        now = self._clock.now()
        self._due = now if self._due is None else self._due + self._period_s
        late = now - self._due
        if late <= _LATE_SHARE * self._period_s:
            self._recent.append(False)
            self._clock.sleep_until(self._due)
        else:
            skipped = math.floor(late / self._period_s + 1e-9)
            self._due += skipped * self._period_s
            is_late = now - self._due > _LATE_SHARE * self._period_s
            self.num_missed += skipped + is_late
            window = self._recent.maxlen or 1
            self._recent.extend([True] * min(skipped, window))
            self._recent.append(is_late)
        self.late_s = max(0.0, self._clock.now() - self._due)
