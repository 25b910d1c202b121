"""What input encoders are: what they are fitted to, what they are handed, and observations in that form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from vla.interface import Arrays, ArraySpec, Moments, Observation, ObservationError
from vla.resize import Resizing
from vla.spec import RobotSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstrations:
    """What encoders and codecs are fitted to."""

    robot_spec: RobotSpec
    states: Float32[np.ndarray, "demonstration state"]
    actions: Float32[np.ndarray, "demonstration action"]
    chunks: Float32[np.ndarray, "sample time action"]  # whole chunks, a sample of them
    instructions: Sequence[str]  # the distinct ones
    resizing: Resizing | None = None  # of their frames


@runtime_checkable  # so that tests can check annotations
class InputEncoder(Protocol):
    """One modality on its way into the model: moments to named arrays.

    Besides what stands here, an encoder has a class method ``fit(demonstrations, *, frame_offsets, ...)``
    whose further arguments are its settings.
    """

    def specs(self) -> Mapping[str, ArraySpec]:
        """Return what `encode` makes, by name."""
        ...

    def encode(self, moments: Moments) -> Arrays:
        """Return the arrays of a batch.

        Raises:
            ObservationError: something is missing or malformed; the message says what and in which moment.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data, with the encoder's name under `kind`."""
        ...

    @classmethod
    def from_json(
        cls, data: dict[str, Any], *, robot_spec: RobotSpec, frame_offsets: Sequence[int]
    ) -> "InputEncoder":
        """Rebuild from `to_json`, exactly."""
        ...


def moments_of(observations: Sequence[Observation], *, robot_spec: RobotSpec, action_horizon: int) -> Moments:
    """Return observations as one batch of moments.

    Raises:
        ObservationError: there is none, one lacks a camera or the state, or they differ in form; the message
            says which and what.
    """
    if not observations:
        raise ObservationError("there are no observations to encode")
    for i, observation in enumerate(observations):
        _require_complete(observation, robot_spec, index=i)
    committed = np.zeros((len(observations), action_horizon, len(robot_spec.action)), dtype=np.float32)
    for row, observation in zip(committed, observations, strict=True):
        given = observation.committed[:action_horizon]
        if len(given):
            row[: len(given)] = given
    return Moments(
        images={
            name: np.stack([observation.images[name] for observation in observations])
            for name in robot_spec.camera_names
        },
        state=np.stack([observation.state for observation in observations]),
        instructions=[observation.instruction for observation in observations],
        committed=committed,
        num_committed=np.array([len(observation.committed) for observation in observations], dtype=np.int64),
    )


def _require_complete(observation: Observation, spec: RobotSpec, *, index: int) -> None:
    for camera in spec.cameras:
        if camera.name not in observation.images:
            raise ObservationError(
                f"observation {index} has no camera {camera.name!r}; it has {sorted(observation.images)}, "
                f"robot spec {spec.name!r} needs {list(spec.camera_names)}"
            )
        frames = observation.images[camera.name]
        size = (camera.height, camera.width, 3)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != size:
            raise ObservationError(
                f"observation {index}, camera {camera.name!r}: {frames.dtype}{list(frames.shape)} given, "
                f"uint8[frames, {camera.height}, {camera.width}, 3] (frames, height, width, RGB) needed"
            )
    state, names = observation.state, spec.state_names
    if state.dtype != np.float32 or state.shape != (len(names),):
        raise ObservationError(
            f"observation {index} has a state {state.dtype}{list(state.shape)}; "
            f"float32[{len(names)}] is needed: {list(names)}"
        )
    if len(observation.committed) and observation.committed.shape[1:] != (len(spec.action),):
        raise ObservationError(
            f"observation {index} has committed actions of shape {list(observation.committed.shape)}; "
            f"[committed, {len(spec.action)}] is needed: {list(spec.action_names)}"
        )
