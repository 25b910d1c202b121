"""Does slow work in a thread of its own, so that the control loop never waits for a disk or a terminal."""

import threading
from collections import deque
from collections.abc import Callable


class BackgroundWorker:
    """One thread that does jobs in order. Handing one in never waits.

    The first job that fails is the last that is done: what follows would be out of order. The thread is a
    daemon, so that a disk or terminal that never answers does not keep the program alive.

    Args:
        name: of the thread.
        max_waiting: jobs that may wait; more are not taken.
        errors: exceptions of a job that are kept in `failure`.
    """

    def __init__(
        self, *, name: str, max_waiting: int, errors: tuple[type[Exception], ...] = (OSError, ValueError)
    ) -> None:
        self._max_waiting, self._errors = max_waiting, errors
        self._condition = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()  # the first is under way
        self._is_closing = self._has_ended = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def failure(self) -> Exception | None:
        """What went wrong, if a job has failed."""
        return self._failure

    def offer(self, job: Callable[[], None]) -> bool:
        """Hand in a job; false if it is not taken, since too many wait or the worker has ended."""
        with self._condition:
            if self._has_ended or self._is_closing or len(self._jobs) >= self._max_waiting:
                return False
            self._jobs.append(job)
            self._condition.notify_all()
            return True

    def close(self, *, timeout_s: float) -> bool:
        """Finish the jobs that wait and end the thread; safe to call more than once.

        Args:
            timeout_s: how long to wait for that; the thread is left behind then [s].

        Returns:
            Whether every job that was taken has been done.
        """
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()
        self._thread.join(timeout_s)
        with self._condition:
            return self._has_ended and not self._jobs

    def _work(self) -> None:
        try:
            while True:
                with self._condition:
                    while not self._jobs and not self._is_closing:
                        self._condition.wait()
                    if not self._jobs:
                        return
                    job = self._jobs[0]
                job()
                with self._condition:
                    self._jobs.popleft()
        except self._errors as error:
            self._failure = error
        finally:
            with self._condition:
                self._has_ended = True
