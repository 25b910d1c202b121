"""Stops a robot whose control loop hangs: in a driver, on a bus, in whatever the loop calls.

The loop itself cannot: it judges its lateness when it comes round again. A thread of its own looks at when
the last period began, and calls the robot's `stop`, which any thread may. It shares the interpreter with the
loop, so code that never gives the interpreter away stops both; that is what a robot's own time-out and an
independent emergency stop are for.
"""

import threading
from types import TracebackType

from policies.runtime.clock import Clock
from policies.runtime.controller import Controller


class HangGuard:
    """Watches a control loop for as long as it is entered.

    Args:
        controller: whose loop.
        clock: that of the controller; it must be real time.
        hung_stop_s: how long a period may last before the robot is stopped, beyond its own length [s].
    """

    def __init__(self, controller: Controller, *, clock: Clock, hung_stop_s: float) -> None:
        self._controller, self._clock = controller, clock
        self._limit_s = hung_stop_s + controller.period_s
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang guard", daemon=True)

    def __enter__(self) -> "HangGuard":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._is_done.set()
        self._thread.join(1.0)

    def _watch(self) -> None:
        stopped_in: float | None = None  # the period for which the robot has been stopped
        while not self._is_done.wait(self._limit_s / 5):
            began = self._controller.period_began
            if began is None or began == stopped_in or not self._controller.is_commanding:
                continue
            hung_s = self._clock.now() - began
            if hung_s > self._limit_s:
                self._controller.interrupt(f"the control loop hung for {hung_s:.2f} s")
                stopped_in = began
