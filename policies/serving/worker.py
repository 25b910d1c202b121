"""One thread in which all inference happens, so that a slow policy never blocks the event loop.

Jobs run in the order in which they came. A job that is canceled before its turn is dropped; one that runs
cannot be stopped, so its result is thrown away. The thread is a daemon: a policy that never returns does not
keep the program from ending.
"""

import asyncio
import collections
import contextlib
import threading
from collections.abc import Callable
from typing import Any


class Job:
    """Work handed to the worker; `future` belongs to the event loop that handed it over."""

    def __init__(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.function, self.loop = function, loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def finish(self, result: Any, error: Exception | None) -> None:
        """Set the outcome, in the loop's thread; nobody may be waiting any more."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class InferenceWorker:
    """A thread and its queue. Start it once, close it once."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._jobs: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._closing = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, function: Callable[[], Any]) -> Job:
        """Queue `function`; call from the event loop, and await or `cancel` the job."""
        job = Job(function, asyncio.get_running_loop())
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Forget a job: it does not start any more, or its result is thrown away."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
        job.future.cancel()

    def busy_for_s(self) -> float:
        """Return for how long the present job has been running, 0 if there is none."""
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    def close(self, *, timeout_s: float) -> bool:
        """End the thread after its present job; tell whether it ended within `timeout_s`."""
        with self._changed:
            self._closing = True
            self._jobs.clear()
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _next_job(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closing)
            return None if self._closing else self._jobs.popleft()

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            self._busy_since = self._clock()
            result, error = None, None
            try:
                result = job.function()
            except Exception as caught:  # noqa: BLE001 - whatever a policy raises belongs to its request
                error = caught
            self._busy_since = None
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                job.loop.call_soon_threadsafe(job.finish, result, error)
            del job, result, error  # the next wait may be long, and these may be large
