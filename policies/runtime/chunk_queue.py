"""The controller's exchange with a policy: requests a chunk when the schedule wants one, keeps what is valid.

It brings together where the policy runs (inference.py), which answers count (`ResultGate`) and when which
action is due (chunking.py), and remembers since when answers fail, are missing or are refused. It judges
nothing; watchdog.py does.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from policies.runtime.chunking import PlannedAction, Schedule
from policies.runtime.delta_to_absolute import DeltaToAbsolute
from policies.runtime.inference import BadResult, Inference, InferenceResult, ResultGate
from policies.runtime.observation_buffer import FrameHistory
from policies.runtime.safety import UnsafeCommand
from policies.runtime.watchdog import HealthSnapshot


class ChunkQueue:
    """One policy's chunks, from one start of the robot to the next.

    Args:
        inference: where the policy runs.
        schedule: when to request a chunk, and which action is due.
        instruction: for the policy.
        num_actions: numbers in an action.
        deltas: between predicted actions and the positions that the schedule keeps.
        require_sane: raises UnsafeCommand for a chunk that must not be executed, not even in part.
    """

    def __init__(
        self,
        *,
        inference: Inference,
        schedule: Schedule,
        instruction: str,
        num_actions: int,
        deltas: DeltaToAbsolute,
        require_sane: Callable[[Float32[np.ndarray, "time action"]], None],
    ) -> None:
        self._inference, self._schedule, self._instruction = inference, schedule, instruction
        self._gate = ResultGate(num_actions=num_actions)
        self._deltas, self._require_sane = deltas, require_sane
        self._started_at = 0.0
        self._stands_from, self._stands_to = -math.inf, math.inf  # when the robot stood last: without a plan
        self._requested_stamp = -math.inf  # of the newest observation submitted since the start
        self._last_seq = 0
        self._has_chunk = False
        self._failing_since: float | None = None
        self._underrun_since: float | None = None
        self._refused_since: float | None = None
        self._failure = ""  # or refusal, whichever came last
        self.counts: Counter[str] = Counter()

    def start(self, now: float) -> None:
        """Forget everything before now; answers to earlier requests no longer count."""
        self._schedule.clear()
        self._gate.reset(next_seq=self._last_seq + 1)
        self._started_at, self._requested_stamp, self._has_chunk = now, -math.inf, False
        self._stands_from, self._stands_to = -math.inf, math.inf
        self._failing_since = self._underrun_since = self._refused_since = None
        self._failure = ""

    def drop_plan(self, now: float) -> None:
        """Forget what was to be executed, as the robot comes to rest; a request under way still counts."""
        self._schedule.clear()
        if self._stands_to < now:  # it was moving; else it stands since earlier
            self._stands_from, self._stands_to = now, math.inf

    def next_action(self, now: float) -> PlannedAction | None:
        """Return what is to be executed in the period that starts now."""
        return self._schedule.next_action(now)

    def note_plan(self, now: float, *, is_empty: bool, is_seeing: bool) -> None:
        """Remember since when there has been nothing to execute.

        What explains it when it begins has a time of its own. What comes later does not: a failed answer
        to a robot that has been waiting for 0.4 s must not begin the wait anew.
        """
        may_wait = self._schedule.waits or not self._has_chunk
        if not is_empty or may_wait or not is_seeing:
            self._underrun_since = None
        elif self._underrun_since is None and self._failing_since is None and self._refused_since is None:
            self._underrun_since = now

    def note_refusal(self, now: float, reason: str) -> None:
        """Remember that an action was refused; the rest of its chunk is not tried."""
        self._failure = reason
        self._refused_since = now if self._refused_since is None else self._refused_since
        self.drop_plan(now)

    def note_execution(self, now: float) -> None:
        """Remember that an action is executed in the period that starts now."""
        self._refused_since = None
        self._stands_to = min(self._stands_to, now)

    def wants_chunk(self, now: float) -> bool:
        """Whether a chunk is due that is predicted from a reading captured now."""
        return self._schedule.wants_chunk(now)

    @property
    def health(self) -> HealthSnapshot:
        """What is known about inference; the controller adds the sensors and the loop.

        The wait for an answer counts from the start if the request was made before it.
        """
        since = self._inference.waiting_since
        return HealthSnapshot(
            underrun_since=self._underrun_since,
            failing_since=self._failing_since,
            refused_since=self._refused_since,
            failure=self._failure,
            waiting_since=None if since is None else max(since, self._started_at),
        )

    @property
    def has_died(self) -> bool:
        """Whether no answer will ever come again."""
        return self._inference.has_died

    def request(self, history: FrameHistory) -> None:
        """Request a chunk for the newest reading if the schedule wants one and the last answer is there."""
        if history.newest is None:
            return
        stamp = history.newest.stamp
        is_new = stamp > self._requested_stamp or self._failing_since is not None
        is_first = self._requested_stamp == -math.inf  # replaces a request from before the start
        if not is_new or not (is_first or self._inference.waiting_since is None):
            return
        if self._schedule.wants_chunk(stamp):
            committed = self._deltas.to_actions(self._schedule.commit(stamp), stamp)
            self._requested_stamp = stamp
            self._last_seq = self._inference.submit(history.observation(self._instruction, committed))

    def collect(self, now: float, *, is_active: bool) -> tuple[float | None, list[str]]:
        """Take in answers. Only an active controller uses them.

        Returns:
            How long the inference of a chunk that came took [s], if one came, and what is worth noting.
        """
        inference_s, notes = None, []
        for result in self._inference.poll():
            try:
                if self._take(result, now, is_active=is_active):
                    inference_s = result.finished_at - result.submitted_at
            except BadResult as bad:
                self.counts[f"{bad.kind} answers"] += 1
                notes.append(f"{bad.kind} answer: {bad}")
                if bad.kind in ("failed", "bad chunk", "unsafe") and is_active:
                    self._failing_since = now if self._failing_since is None else self._failing_since
                    self._failure = str(bad)
        return inference_s, notes

    def _take(self, result: InferenceResult, now: float, *, is_active: bool) -> bool:
        chunk = self._gate.admit(result)
        if not is_active:
            return False
        try:
            self._require_sane(chunk.actions)
            positions = self._deltas.to_positions(chunk.actions, chunk.stamp)
        except UnsafeCommand as refusal:
            raise BadResult("unsafe", str(refusal)) from refusal
        # A chunk's time stands still with the robot: its next action is the one after the last executed.
        stood_s = max(0.0, min(now, self._stands_to) - max(chunk.stamp, self._stands_from))
        begins = chunk.stamp + stood_s
        age = now - chunk.stamp
        # The robot may stand, but the scene goes on: a chunk older than it plans ahead is not believed.
        is_old = age >= len(chunk.actions) * self._schedule.period_s
        if (is_old and self._has_chunk and not self._schedule.waits) or not self._schedule.add(
            dataclasses.replace(chunk, actions=positions, stamp=begins), now
        ):
            raise BadResult("stale", f"chunk {chunk.seq} arrived {age:.2f} s after its observation")
        self._failing_since, self._has_chunk = None, True
        self.counts["chunks"] += 1
        return True
