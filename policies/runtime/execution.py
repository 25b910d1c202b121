"""From a planned action to what may be sent: back to the robot's convention, then through the safety filter.

The last part of the road that a robot and a simulated episode share; the controller and envs/rollout.py feed
it with the planned action and the measured state of each period.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from policies.runtime.chunk_queue import ChunkQueue
from policies.runtime.chunking import PlannedAction
from policies.runtime.delta_to_absolute import DeltaToAbsolute
from policies.runtime.safety import SafeCommand, SafetyFilter, UnsafeCommand


class Execution(NamedTuple):
    """What came of one planned action."""

    target: Float32[np.ndarray, " action"]  # what was requested of the filter, in the action convention
    command: SafeCommand
    refusal: str  # why nothing of it may be executed, so that `command` comes to rest; empty if it may


class ActionExecutor:
    """Turns planned actions into safe commands, and reports to the queue what became of them.

    Args:
        queue: where planned actions come from.
        deltas: between the positions of the queue and the actions of the robot.
        safety: what may be sent.
    """

    def __init__(self, *, queue: ChunkQueue, deltas: DeltaToAbsolute, safety: SafetyFilter) -> None:
        self._queue, self._deltas, self._safety = queue, deltas, safety

    def begin_period(self, now: float) -> None:
        """Remember the commanded position, from which chunks that are predicted now will count."""
        self._deltas.note(now, self._safety.position)

    def execute(self, planned: PlannedAction, *, now: float, state: Float[np.ndarray, " state"]) -> Execution:
        """Return the command nearest to a planned action that is safe, or that of a stop if none is.

        Args:
            planned: the action of this period.
            now: when the period began [s].
            state: as measured.
        """
        target: Any = self._deltas.to_request(planned.action, self._safety.position)
        try:
            command = self._safety.step(target, state=state)
        except UnsafeCommand as refusal:
            self._queue.note_refusal(now, str(refusal))
            return Execution(target, self._safety.hold(), str(refusal))
        self._queue.note_execution(now)
        return Execution(target, command, "")
