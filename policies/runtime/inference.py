"""Runs a policy next to the control loop and sorts out what comes back.

`ThreadedInference` calls the policy in one worker thread; a request that has not been begun gives way to a
newer one. `SimulatedInference` has the same interface without a thread: answers arrive after a given delay
of the injected clock. `ResultGate` admits each answer once, in order, and only if it is a chunk of numbers.
A failed call is a result like any other; only an exception that nobody named ends the worker, and that shows
as `has_died`.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from policies.runtime.chunking import Chunk
from policies.runtime.clock import Clock
from vla.interface import Observation, Policy

# What a policy may raise without ending the worker: wrong input or output (ObservationError and DecodeError
# are ValueErrors), a lost connection or a timeout (OSError), a broken backend (RuntimeError).
POLICY_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    OSError,
    RuntimeError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceResult:
    """The answer to one request, or what went wrong."""

    seq: int
    stamp: float  # capture time of the observation
    submitted_at: float
    finished_at: float
    actions: Any = None  # unchecked; None if it failed
    error: str = ""


@runtime_checkable
class Inference(Protocol):
    """Takes observations, gives results later."""

    def submit(self, observation: Observation) -> int:
        """Ask for a chunk and return the request's number; replaces a request that has not been begun."""
        ...

    def poll(self) -> list[InferenceResult]:
        """Return what has arrived since the last call; never waits."""
        ...

    @property
    def waiting_since(self) -> float | None:
        """When the oldest unanswered request was made, or None."""
        ...

    @property
    def has_died(self) -> bool:
        """Whether nothing will ever be answered again."""
        ...

    def close(self) -> None:
        """End it; safe to call more than once."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    seq: int
    observation: Observation
    submitted_at: float


def _answer(
    policy: Policy, request: _Request, clock: Clock, errors: tuple[type[Exception], ...]
) -> InferenceResult:
    actions, error = None, ""
    try:
        actions = policy.predict([request.observation])[0]
    except errors as caught:
        error = f"{type(caught).__name__}: {caught}"
    return InferenceResult(
        seq=request.seq,
        stamp=request.observation.stamp,
        submitted_at=request.submitted_at,
        finished_at=clock.now(),
        actions=actions,
        error=error,
    )


class ThreadedInference:
    """One worker thread, one request under way, at most one that waits.

    Args:
        policy: called in the worker thread only.
        clock: stamps requests and results.
        policy_errors: exceptions that become failed results.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        clock: Clock,
        policy_errors: tuple[type[Exception], ...] = POLICY_ERRORS,
    ) -> None:
        self._policy, self._clock, self._errors = policy, clock, policy_errors
        self._condition = threading.Condition()
        self._next_seq = 0
        self._queued: _Request | None = None
        self._running: _Request | None = None
        self._results: list[InferenceResult] = []
        self._is_closing = self._has_died = False
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def submit(self, observation: Observation) -> int:
        """Ask for a chunk; a request that has not been begun is dropped for it."""
        with self._condition:
            self._next_seq += 1
            self._queued = _Request(
                seq=self._next_seq, observation=observation, submitted_at=self._clock.now()
            )
            self._condition.notify()
            return self._next_seq

    def poll(self) -> list[InferenceResult]:
        """Return what has arrived since the last call."""
        with self._condition:
            results, self._results = self._results, []
            return results

    @property
    def waiting_since(self) -> float | None:
        """When the oldest unanswered request was made, or None."""
        with self._condition:
            pending = [one.submitted_at for one in (self._running, self._queued) if one is not None]
            return min(pending, default=None)

    @property
    def has_died(self) -> bool:
        """Whether an exception that is not among `policy_errors` has ended the worker."""
        with self._condition:
            return self._has_died

    def close(self, *, timeout_s: float = 2.0) -> None:
        """End the worker after the call it is at, or leave it behind if that does not return in time."""
        with self._condition:
            self._is_closing, self._queued = True, None
            self._condition.notify()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        try:
            while True:
                with self._condition:
                    while self._queued is None and not self._is_closing:
                        self._condition.wait()
                    if self._is_closing or self._queued is None:
                        return
                    request = self._running = self._queued
                    self._queued = None
                result = _answer(self._policy, request, self._clock, self._errors)
                with self._condition:
                    self._running = None
                    self._results.append(result)
        finally:
            with self._condition:
                self._has_died = not self._is_closing


class SimulatedInference:
    """Answers after a delay of the injected clock, without threads: for experiments in simulated time.

    Args:
        policy: called when a request is made.
        clock: decides when its answer has arrived.
        delay_s: returns the delay of each request [s].
        policy_errors: exceptions that become failed results.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        clock: Clock,
        delay_s: Callable[[], float],
        policy_errors: tuple[type[Exception], ...] = POLICY_ERRORS,
    ) -> None:
        self._policy, self._clock, self._errors = policy, clock, policy_errors
        self._delay_s = delay_s
        self._next_seq = 0
        self._pending: tuple[float, InferenceResult] | None = None  # when it arrives

    def submit(self, observation: Observation) -> int:
        """Ask for a chunk; an unanswered request is dropped for it."""
        self._next_seq += 1
        now = self._clock.now()
        request = _Request(seq=self._next_seq, observation=observation, submitted_at=now)
        result = _answer(self._policy, request, self._clock, self._errors)
        self._pending = (now + self._delay_s(), result)
        return self._next_seq

    def poll(self) -> list[InferenceResult]:
        """Return the answer if its time has come."""
        if self._pending is None or self._clock.now() < self._pending[0] - 1e-9:
            return []
        result, self._pending = self._pending[1], None
        return [result]

    @property
    def waiting_since(self) -> float | None:
        """When the unanswered request was made, or None."""
        return None if self._pending is None else self._pending[1].submitted_at

    @property
    def has_died(self) -> bool:
        """Never: there is no worker."""
        return False

    def close(self) -> None:
        """Forget the unanswered request."""
        self._pending = None


class BadResult(ValueError):
    """A result that must not be used; `kind` names the reason in one word."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind  # failed | bad chunk | unsafe | stale | duplicate | late


class ResultGate:
    """Lets every chunk through at most once, in order, and only what was requested since the last reset."""

    def __init__(self, *, num_actions: int) -> None:
        self._num_actions = num_actions
        self._first_seq = self._last_seq = 0
        self.counts: Counter[str] = Counter()

    def reset(self, *, next_seq: int) -> None:
        """Ignore all answers to requests before `next_seq`."""
        self._first_seq = next_seq

    def admit(self, result: InferenceResult) -> Chunk:
        """Return the chunk of a good result.

        Raises:
            BadResult: it failed, is no chunk of finite numbers, came before, or was requested too long ago.
        """
        try:
            chunk = self._checked(result)
        except BadResult as refusal:
            self.counts[refusal.kind] += 1
            raise
        self._last_seq = chunk.seq
        self.counts["good"] += 1
        return chunk

    def _checked(self, result: InferenceResult) -> Chunk:
        if result.seq <= self._last_seq:
            raise BadResult("duplicate", f"answer {result.seq} came after answer {self._last_seq}")
        if result.seq < self._first_seq:
            raise BadResult("late", f"answer {result.seq} was requested before the robot was armed")
        if result.error:
            raise BadResult("failed", result.error)
        try:
            actions = np.asarray(result.actions, np.float32)
        except (TypeError, ValueError):
            kind = type(result.actions).__name__
            raise BadResult("bad chunk", f"the policy returned a {kind} instead of a chunk") from None
        if actions.ndim != 2 or actions.shape[1] != self._num_actions or not len(actions):
            raise BadResult(
                "bad chunk",
                f"the policy returned shape {actions.shape}; expected (time, {self._num_actions}), time >= 1",
            )
        if not np.isfinite(actions).all():
            raise BadResult("bad chunk", "the policy returned NaN or infinity")
        return Chunk(actions=actions, stamp=result.stamp, seq=result.seq, captured=result.stamp)
