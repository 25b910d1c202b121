"""Keeps a loop on its grid of periods and counts those that it missed."""

import contextlib
import gc
import math
from collections.abc import Iterator

from policies.runtime.clock import Clock

_LATE_SHARE = 0.5  # of a period: one that begins later than this counts as missed


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
