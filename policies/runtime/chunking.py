"""When to ask a policy for a chunk of actions, and which action of which chunk is next.

Every schedule has the same interface and keeps time in control periods from the capture of the observation:
action k of a chunk belongs to the period that starts k periods after it. Actions whose period has passed are
dropped, never executed late. An example with an inference of 2 periods and execute_horizon 4:

    period          0  1  2  3  4  5  6  7  8
    asks at         0           4
    first chunk           2  3  4  5               (its actions 0 and 1 came too late)
    second chunk                      2  3  4      (actions 0 and 1 of it are 4 and 5 of the first)

The synchronous schedule differs: the robot stands still while it waits, so a chunk starts when it arrives.
No threads, no clock and no robot here: the controller passes the time in.
"""

import abc
import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Predicted actions.

    Attributes:
        actions: one per control period.
        stamp: start of the period that the first of them is for [s].
        seq: number of the request that they answer.
        captured: when the observation was captured that they were predicted from [s]. It differs from
            `stamp` where the robot stood still between the two.
    """

    actions: Float32[np.ndarray, "time action"]
    stamp: float
    seq: int
    captured: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedAction:
    """One action to execute now, and where it comes from."""

    action: Float32[np.ndarray, " action"]
    seq: int  # of the (newest) chunk
    index: int  # in that chunk
    captured: float  # when the (oldest) observation behind it was captured [s]


def temporal_ensemble(
    predictions: Sequence[Float32[np.ndarray, " action"]], *, decay: float
) -> Float32[np.ndarray, " action"]:
    """Return the mean of what several chunks predict for one period, oldest first (ACT, arXiv:2304.13705).

    The weight of the i-th is exp(-decay * i): at 0 all count alike, above 0 the oldest counts most.
    """
    weights = np.exp(-decay * np.arange(len(predictions)))
    return np.average(np.stack(predictions), axis=0, weights=weights).astype(np.float32)


def _action_of(chunk: Chunk, index: int) -> PlannedAction:
    return PlannedAction(action=chunk.actions[index], seq=chunk.seq, index=index, captured=chunk.captured)


class Schedule(abc.ABC):
    """Decides when to ask and what to execute.

    Args:
        period_s: length of a control period [s].
        execute_horizon: periods from one observation that is inferred on to the next, at least.
        num_actions: numbers in an action.
    """

    waits = False  # whether having nothing to execute while an inference runs is as it should be

    def __init__(self, *, period_s: float, execute_horizon: int, num_actions: int) -> None:
        if execute_horizon < 1:
            raise ValueError(f"execute_horizon is {execute_horizon}; it must be at least 1 period")
        self.period_s, self.execute_horizon, self.num_actions = period_s, execute_horizon, num_actions

    @abc.abstractmethod
    def wants_chunk(self, now: float) -> bool:
        """Whether to infer on an observation captured now."""

    @abc.abstractmethod
    def add(self, chunk: Chunk, now: float) -> bool:
        """Take in a chunk; false when all of it belongs to the past or a newer one is known."""

    @abc.abstractmethod
    def next_action(self, now: float) -> PlannedAction | None:
        """Return the action of the period that starts now, or None if there is none."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Forget all chunks and committed actions."""

    def commit(self, stamp: float) -> Float32[np.ndarray, "committed action"]:
        """Return the actions that will be executed from `stamp` on, whatever an inference on it predicts."""
        return np.zeros((0, self.num_actions), np.float32)

    def _periods_since(self, stamp: float, now: float) -> int:
        return max(0, math.floor((now - stamp) / self.period_s + 0.5))


class SynchronousSchedule(Schedule):
    """Executes `execute_horizon` actions, then stands still until the next chunk is there."""

    waits = True

    def __init__(self, *, period_s: float, execute_horizon: int, num_actions: int) -> None:
        super().__init__(period_s=period_s, execute_horizon=execute_horizon, num_actions=num_actions)
        self._chunk: Chunk | None = None
        self._started = 0.0

    def wants_chunk(self, now: float) -> bool:
        """Whether the last chunk has been executed."""
        return self.next_action(now) is None

    def add(self, chunk: Chunk, now: float) -> bool:
        """Start a chunk now."""
        if self._chunk is not None and chunk.seq <= self._chunk.seq:
            return False
        self._chunk, self._started = chunk, now
        return True

    def next_action(self, now: float) -> PlannedAction | None:
        """Return the next of at most `execute_horizon` actions."""
        if self._chunk is None:
            return None
        index = self._periods_since(self._started, now)
        if index >= min(self.execute_horizon, len(self._chunk.actions)):
            return None
        return _action_of(self._chunk, index)

    def clear(self) -> None:
        """Forget the chunk."""
        self._chunk = None


class AsynchronousSchedule(Schedule):
    """Goes on with the old chunk while the next is inferred, and switches when that arrives."""

    def __init__(self, *, period_s: float, execute_horizon: int, num_actions: int) -> None:
        super().__init__(period_s=period_s, execute_horizon=execute_horizon, num_actions=num_actions)
        self._chunk: Chunk | None = None

    def wants_chunk(self, now: float) -> bool:
        """Whether the chunk in use was inferred `execute_horizon` periods ago, or there is none."""
        return self._chunk is None or self._periods_since(self._chunk.stamp, now) >= self.execute_horizon

    def add(self, chunk: Chunk, now: float) -> bool:
        """Switch to a chunk unless it is over already."""
        if self._chunk is not None and chunk.seq <= self._chunk.seq:
            return False
        if self._periods_since(chunk.stamp, now) >= len(chunk.actions):
            return False
        self._chunk = chunk
        return True

    def next_action(self, now: float) -> PlannedAction | None:
        """Return the action for this period; the whole chunk may be used if the next is late."""
        if self._chunk is None:
            return None
        index = self._periods_since(self._chunk.stamp, now)
        if index >= len(self._chunk.actions):
            return None
        return _action_of(self._chunk, index)

    def clear(self) -> None:
        """Forget the chunk."""
        self._chunk = None


class EnsemblingSchedule(Schedule):
    """Averages what all chunks predict for a period (ACT, arXiv:2304.13705).

    ACT asks in every period: `execute_horizon` 1. See `temporal_ensemble` for `decay`.
    """

    def __init__(
        self, *, period_s: float, execute_horizon: int, num_actions: int, decay: float = 0.01
    ) -> None:
        super().__init__(period_s=period_s, execute_horizon=execute_horizon, num_actions=num_actions)
        self._decay = decay
        self._chunks: list[Chunk] = []  # oldest first

    def wants_chunk(self, now: float) -> bool:
        """Whether the newest chunk was inferred `execute_horizon` periods ago, or there is none."""
        if not self._chunks:
            return True
        return self._periods_since(self._chunks[-1].stamp, now) >= self.execute_horizon

    def add(self, chunk: Chunk, now: float) -> bool:
        """Add a chunk to the average unless it is over already or older than one that is in it."""
        self._forget_old(now)
        if self._chunks and chunk.seq <= self._chunks[-1].seq:
            return False
        if self._periods_since(chunk.stamp, now) >= len(chunk.actions):
            return False
        self._chunks.append(chunk)
        return True

    def next_action(self, now: float) -> PlannedAction | None:
        """Return the weighted mean of the predictions for this period."""
        self._forget_old(now)
        if not self._chunks:
            return None
        predictions = [chunk.actions[self._periods_since(chunk.stamp, now)] for chunk in self._chunks]
        mean = temporal_ensemble(predictions, decay=self._decay)
        newest = self._chunks[-1]
        return PlannedAction(
            action=mean,
            seq=newest.seq,
            index=self._periods_since(newest.stamp, now),
            captured=min(chunk.captured for chunk in self._chunks),
        )

    def clear(self) -> None:
        """Forget all chunks."""
        self._chunks = []

    def _forget_old(self, now: float) -> None:
        self._chunks = [
            chunk for chunk in self._chunks if self._periods_since(chunk.stamp, now) < len(chunk.actions)
        ]


class RealTimeSchedule(AsynchronousSchedule):
    """Commits to the actions of the time that the inference will take, and lets the policy know them.

    They are part of the observation, so that a policy trained for it (arXiv:2512.05964; for the idea,
    arXiv:2506.07339) continues them. They are executed whatever comes back, so that a chunk that arrives
    early takes over exactly where they end. The delay expected is the largest of the last ten.

    Args:
        period_s: length of a control period [s].
        execute_horizon: periods from one observation that is inferred on to the next, at least.
        num_actions: numbers in an action.
        max_committed: how many committed actions the policy can be given; 0 for one that was not trained for
            it, which leaves an asynchronous schedule whose switches are planned.
        first_delay: periods expected of the first inference that overlaps with motion.
    """

    def __init__(
        self,
        *,
        period_s: float,
        execute_horizon: int,
        num_actions: int,
        max_committed: int,
        first_delay: int = 1,
    ) -> None:
        super().__init__(period_s=period_s, execute_horizon=execute_horizon, num_actions=num_actions)
        if max_committed < 0:
            raise ValueError(f"max_committed is {max_committed}; it must not be negative")
        self._max_committed = max_committed
        self._delays = deque([first_delay], maxlen=10)
        self._committed: dict[float, Float32[np.ndarray, "committed action"]] = {}  # by stamp

    @property
    def expected_delay(self) -> int:
        """Periods that the next inference is expected to take."""
        return max(self._delays)

    def commit(self, stamp: float) -> Float32[np.ndarray, "committed action"]:
        """Remember what will be executed while an inference on `stamp` runs; return the policy's part."""
        if self._chunk is None:
            return super().commit(stamp)
        start = self._periods_since(self._chunk.stamp, stamp)
        committed = self._chunk.actions[start : start + self.expected_delay].copy()
        self._committed = {stamp: committed}  # one inference at a time
        return committed[: self._max_committed]

    def add(self, chunk: Chunk, now: float) -> bool:
        """Switch to a chunk whose first actions are those that were committed."""
        committed = self._committed.pop(chunk.captured, None)
        was_moving = self._chunk is not None
        if committed is not None and len(committed):
            kept = committed[: len(chunk.actions)]
            actions = np.concatenate([kept, chunk.actions[len(kept) :]])
            chunk = dataclasses.replace(chunk, actions=actions)
        if was_moving:
            self._delays.append(self._periods_since(chunk.stamp, now))
        return super().add(chunk, now)

    def clear(self) -> None:
        """Forget the chunk and the committed actions; what was learned about delays stays."""
        super().clear()
        self._committed = {}


SCHEDULES = ("sync", "async", "ensemble", "rtc")


def make_schedule(
    name: str,
    *,
    period_s: float,
    execute_horizon: int,
    num_actions: int,
    max_committed: int,
    ensemble_decay: float = 0.01,
) -> Schedule:
    """Build a schedule by name; see the classes for the arguments.

    Raises:
        ValueError: there is none of that name; the message lists them.
    """
    if name == "sync":
        return SynchronousSchedule(
            period_s=period_s, execute_horizon=execute_horizon, num_actions=num_actions
        )
    if name == "async":
        return AsynchronousSchedule(
            period_s=period_s, execute_horizon=execute_horizon, num_actions=num_actions
        )
    if name == "ensemble":
        return EnsemblingSchedule(
            period_s=period_s,
            execute_horizon=execute_horizon,
            num_actions=num_actions,
            decay=ensemble_decay,
        )
    if name == "rtc":
        return RealTimeSchedule(
            period_s=period_s,
            execute_horizon=execute_horizon,
            num_actions=num_actions,
            max_committed=max_committed,
        )
    raise ValueError(f"schedule {name!r} is unknown; choose from {SCHEDULES}")
