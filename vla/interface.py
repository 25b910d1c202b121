"""The contract between anything that acts and anything that is acted on.

A torch model, an ONNX bundle and a remote server are all a `Policy`. Rollouts and the robot runtime see
only this file, so it imports numpy and nothing heavier.

Axes: h, w are pixels; frames runs oldest to newest; state and action follow the name order of `RobotSpec`;
time counts control periods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from vla.spec import RobotSpec

Arrays = Mapping[str, np.ndarray]  # by name; the first axis is the batch


class ArraySpec(NamedTuple):
    """What one named array looks like, without its batch axis."""

    dtype: str  # as numpy names it: uint8, int64, float32
    shape: tuple[int | None, ...]  # None where a length varies
    num_ids: int | None = None  # ids lie in [0, num_ids); None for measured numbers


class ObservationError(ValueError):
    """An observation lacks something that the robot spec promises, or holds it in the wrong form."""


class DecodeError(ValueError):
    """Generated tokens are no action chunk. Hold the last command; never substitute zeros."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """All that a policy may know when it acts."""

    images: Mapping[str, UInt8[np.ndarray, "frames h w 3"]]  # by camera; RGB, oldest first, last is now
    state: Float32[np.ndarray, " state"]  # in the units of RobotSpec.state
    instruction: str
    committed: Float32[np.ndarray, "committed action"]  # actions already promised to the robot, or none
    stamp: float  # capture time of the newest frame, monotonic clock [s]


@runtime_checkable  # so that tests can check annotations
class Policy(Protocol):
    """Maps observations to chunks of future actions. Keeps nothing from one call to the next."""

    @property
    def robot_spec(self) -> RobotSpec:
        """The robot that the policy was trained for."""
        ...

    @property
    def frame_offsets(self) -> tuple[int, ...]:
        """Which frames it looks at, in control periods before now, oldest first; ``(0,)`` is now alone."""
        ...

    @property
    def action_horizon(self) -> int:
        """Number of control periods in a predicted chunk."""
        ...

    def predict(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "batch time action"]:
        """Return chunks in the units of `RobotSpec.action`, the first action for the period that starts now.

        Raises:
            ObservationError: a camera or state dimension of the robot spec is missing or malformed.
            DecodeError: the generated tokens are no action chunk. Hold the last command; a policy
                never substitutes zeros.
        """
        ...


def temporal_ensemble(
    said: Sequence[Float32[np.ndarray, " action"]], *, decay: float
) -> Float32[np.ndarray, " action"]:
    """Return the mean of what several chunks say about one period, oldest first (ACT, arXiv:2304.13705).

    The weight of the i-th is exp(-decay * i): at 0 all count alike, above 0 the oldest counts most.
    """
    weights = np.exp(-decay * np.arange(len(said)))
    return np.average(np.stack(said), axis=0, weights=weights).astype(np.float32)


@runtime_checkable
class Robot(Protocol):
    """Something that can be observed and commanded at `robot_spec.control_hz`."""

    @property
    def robot_spec(self) -> RobotSpec:
        """What the robot offers and accepts."""
        ...

    def observe(self) -> Observation:
        """Return the newest observation; its `stamp` tells how old it is."""
        ...

    def command(self, action: Float32[np.ndarray, " action"]) -> None:
        """Execute one action for one control period."""
        ...

    def stop(self) -> None:
        """Bring the robot to rest; safe to call more than once."""
        ...
