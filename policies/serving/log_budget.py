"""A limit on the lines of a log: however many clients misbehave, it fills no disk."""

import logging
import threading
import time
from collections.abc import Callable


class LineBudget(logging.Filter):
    """Passes a burst of lines and then so many a minute; the next that passes states how many did not.

    One object serves several loggers, which share the budget.

    Args:
        burst: lines that pass at any rate.
        per_minute: how many more each minute allows, up to `burst` again.
        clock: monotonic [s].
    """

    def __init__(
        self, *, burst: int = 200, per_minute: int = 60, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._burst, self._per_second, self._clock = burst, per_minute / 60.0, clock
        self._lock = threading.Lock()
        self._left, self._counted_at = float(burst), clock()
        self._num_dropped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line passes."""
        with self._lock:
            now = self._clock()
            self._left = min(self._burst, self._left + (now - self._counted_at) * self._per_second)
            self._counted_at = now
            if self._left < 1.0:
                self._num_dropped += 1
                return False
            self._left -= 1.0
            num_dropped, self._num_dropped = self._num_dropped, 0
        if num_dropped:
            record.msg = f"{record.getMessage()} ({num_dropped} lines before this one were left out)"
            record.args = ()
        return True
