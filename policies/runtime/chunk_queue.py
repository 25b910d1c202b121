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
        self._asked_stamp = -math.inf  # of the observation last asked about since the start
        self._last_seq = 0
        self._has_chunk = False
        self.failing_since: float | None = None
        self.underrun_since: float | None = None
        self.refused_since: float | None = None
        self.failure = ""  # or refusal, whichever came last
        self.counts: Counter[str] = Counter()

    def start(self, now: float) -> None:
        """Forget everything before now; answers to earlier questions no longer count."""
        self._schedule.clear()
        self._gate.reset(next_seq=self._last_seq + 1)
        self._started_at, self._asked_stamp, self._has_chunk = now, -math.inf, False
        self.failing_since = self.underrun_since = self.refused_since = None
        self.failure = ""

    def drop_plan(self) -> None:
        """Forget what was to be executed; a question that is under way still counts."""
        self._schedule.clear()

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
            self.underrun_since = None
        elif self.underrun_since is None and self.failing_since is None and self.refused_since is None:
            self.underrun_since = now

    def note_refusal(self, now: float, reason: str) -> None:
        """Remember that an action was refused; the rest of its chunk is not tried."""
        self.failure = reason
        self.refused_since = now if self.refused_since is None else self.refused_since
        self._schedule.clear()

    def note_execution(self) -> None:
        """Remember that an action was accepted."""
        self.refused_since = None

    def wants_chunk(self, now: float) -> bool:
        """Whether a reading captured now would be asked about, if no answer is under way."""
        return self._schedule.wants_chunk(now)

    @property
    def health(self) -> HealthSnapshot:
        """What is known about inference; the sensors and the loop are for others to add."""
        return HealthSnapshot(
            underrun_since=self.underrun_since,
            failing_since=self.failing_since,
            refused_since=self.refused_since,
            failure=self.failure,
            waiting_since=self.waiting_since,
        )

    @property
    def has_died(self) -> bool:
        """Whether no answer will ever come again."""
        return self._inference.has_died

    @property
    def waiting_since(self) -> float | None:
        """When the oldest unanswered question was asked, or the start if that is later; None without one."""
        since = self._inference.waiting_since
        return None if since is None else max(since, self._started_at)

    def ask(self, history: FrameHistory) -> None:
        """Ask about the newest reading if the schedule wants it and the last answer is there."""
        if history.newest is None:
            return
        stamp = history.newest.stamp
        is_new = stamp > self._asked_stamp or self.failing_since is not None
        is_first = self._asked_stamp == -math.inf  # replaces a question from before the start
        if not is_new or not (is_first or self._inference.waiting_since is None):
            return
        if self._schedule.wants_chunk(stamp):
            committed = self._deltas.to_actions(self._schedule.commit(stamp), stamp)
            self._asked_stamp = stamp
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
                    self.failing_since = now if self.failing_since is None else self.failing_since
                    self.failure = str(bad)
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
        # The robot has stood still until the first chunk, so that one is as good now as at its capture.
        begins = chunk.stamp if self._has_chunk else now
        if not self._schedule.add(dataclasses.replace(chunk, actions=positions, stamp=begins), now):
            age = now - chunk.stamp
            raise BadResult("stale", f"chunk {chunk.seq} arrived {age:.2f} s after its observation")
        self.failing_since, self._has_chunk = None, True
        self.counts["chunks"] += 1
        return True
