"""Chunks of changes, tied to where the robot was commanded to be when the policy looked.

A policy that predicts changes (deltas, velocities) means: from the position of the moment of capture, this
way. While it was thinking, the robot went on, perhaps otherwise than the new chunk begins. Executing the
chunk's later changes as they are would lose the first ones; a policy that needs only those to arrive would
never arrive. So each chunk becomes positions, counted from the commanded position at capture, and each
period the change that leads there is requested, within the action's range. Channels that are positions stay
as they are.
"""

from collections import deque

import numpy as np
from jaxtyping import Bool, Float32, Float64

from policies.runtime.safety import UnsafeCommand
from vla.spec import RobotSpec

_REMEMBERED = 400  # periods


class DeltaToAbsolute:
    """Remembers commanded positions and converts between changes and positions.

    Args:
        spec: the robot.
        absolute: which action channels are positions already.
        is_enabled: false leaves changes as they are, for comparison.
    """

    def __init__(
        self, *, spec: RobotSpec, absolute: Bool[np.ndarray, " action"], is_enabled: bool = True
    ) -> None:
        self._low, self._high = spec.action_low, spec.action_high
        self._change = spec.change_per_action
        self._as_is = absolute if is_enabled else np.ones_like(absolute)
        self._positions: deque[tuple[float, Float64[np.ndarray, " action"]]] = deque(maxlen=_REMEMBERED)

    def note(self, now: float, position: Float64[np.ndarray, " action"]) -> None:
        """Remember the commanded position at the beginning of a period."""
        self._positions.append((now, position))

    def clear(self) -> None:
        """Forget all positions."""
        self._positions.clear()

    def to_positions(
        self, actions: Float32[np.ndarray, "time action"], stamp: float
    ) -> Float32[np.ndarray, "time action"]:
        """Return where a chunk wants the robot after each of its periods.

        Raises:
            UnsafeCommand: no commanded position is known that the changes could count from.
        """
        wanted = self._at(stamp) + np.cumsum(actions, axis=0, dtype=np.float64) * self._change
        return np.where(self._as_is, actions, wanted).astype(np.float32)

    def to_actions(
        self, positions: Float32[np.ndarray, "time action"], stamp: float
    ) -> Float32[np.ndarray, "time action"]:
        """Return the actions that lead from one position to the next, the first from `stamp`'s.

        Raises:
            UnsafeCommand: no commanded position is known that the first could start from.
        """
        if not len(positions):
            return positions
        steps = np.diff(np.concatenate([self._at(stamp)[None], positions]), axis=0) / self._change
        return np.where(self._as_is, positions, np.clip(steps, self._low, self._high)).astype(np.float32)

    def to_request(
        self, wanted: Float32[np.ndarray, " action"], position: Float64[np.ndarray, " action"]
    ) -> Float32[np.ndarray, " action"]:
        """Return the action that leads from `position` toward what a converted chunk wants."""
        step = np.clip((wanted - position) / self._change, self._low, self._high)
        return np.where(self._as_is, wanted, step).astype(np.float32)

    def _at(self, stamp: float) -> Float64[np.ndarray, " action"]:
        if self._as_is.all():
            return np.zeros(len(self._low))  # of no consequence: nothing counts from it
        if not self._positions:
            raise UnsafeCommand(
                "position", "no commanded position is known yet that changes could count from"
            )
        return min(self._positions, key=lambda noted: abs(noted[0] - stamp))[1]
