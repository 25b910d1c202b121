"""The contract between anything that acts and anything that is acted on.

A torch model, an ONNX bundle and a remote server are all a `Policy`. Rollouts and the robot runtime see
only this file, so it imports numpy and nothing heavier.

Axes: h, w are pixels; frames runs oldest to newest; state and action follow the name order of `RobotSpec`;
time counts control periods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from vla.errors import VLAError
from vla.spec import RobotSpec

Arrays = Mapping[str, np.ndarray]  # by name; the first axis is the batch
PAD_ID = 0  # among text ids: fills an instruction up to the longest
NOTHING = -1  # among ids of actions: none is committed here, or the sequence is over


class ArraySpec(NamedTuple):
    """What one named array looks like, without its batch axis."""

    dtype: str  # as numpy names it: uint8, int64, float32
    shape: tuple[int, ...]
    num_ids: int = 0  # ids lie in [0, num_ids); 0 for measured numbers


class ModelSpecs(NamedTuple):
    """All that a model knows of its input and output arrays; no size is passed by hand."""

    inputs: Mapping[str, ArraySpec]  # what `Processor.encode` makes
    targets: Mapping[str, ArraySpec]  # what the action codec learns from and decodes
    constants: Arrays  # tables of the action codec, without a batch axis

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""

        def plain(specs: Mapping[str, ArraySpec]) -> dict[str, Any]:
            return {name: [spec.dtype, list(spec.shape), spec.num_ids] for name, spec in specs.items()}

        return {
            "inputs": plain(self.inputs),
            "targets": plain(self.targets),
            "constants": {name: table.tolist() for name, table in self.constants.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelSpecs":
        """Rebuild from `to_json`, exactly; tables hold int64."""

        def specs(group: str) -> dict[str, ArraySpec]:
            return {
                name: ArraySpec(dtype, tuple(shape), num_ids)
                for name, (dtype, shape, num_ids) in data[group].items()
            }

        constants = {name: np.asarray(table, np.int64) for name, table in data["constants"].items()}
        return cls(inputs=specs("inputs"), targets=specs("targets"), constants=constants)


class ObservationError(VLAError):
    """An observation lacks something that the robot spec declares, or holds it in the wrong form."""


class DecodeError(VLAError):
    """Generated tokens are no action chunk. Hold the last command; never substitute zeros."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SensorReading:
    """What a robot's sensors measured last, each at a time of its own.

    Attributes:
        images: the newest frame of every camera of the robot spec, RGB.
        image_stamps: when each of these frames was captured, monotonic clock [s].
        state: the joints as measured, in the units of `RobotSpec.state`. It may lie outside the ranges of
            the spec: judging that is for the safety filter, so drivers never clip it.
        state_stamp: when the state was measured, same clock [s].
    """

    images: Mapping[str, UInt8[np.ndarray, "h w 3"]]
    image_stamps: Mapping[str, float]
    state: Float32[np.ndarray, " state"]
    state_stamp: float

    @property
    def stamp(self) -> float:
        """When the oldest part was captured [s]: a reading is as fresh as its stalest sensor."""
        return min((self.state_stamp, *self.image_stamps.values()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """All that a policy may know when it acts.

    Attributes:
        images: by camera; RGB, oldest first, the last is now.
        state: in the units and within the ranges of `RobotSpec.state`.
        instruction: what to do, in words.
        committed: actions that will be executed whatever the policy predicts, or none.
        stamp: when the oldest of the newest frames and the state was captured, monotonic clock [s].
    """

    images: Mapping[str, UInt8[np.ndarray, "frames h w 3"]]
    state: Float32[np.ndarray, " state"]
    instruction: str
    committed: Float32[np.ndarray, "committed action"]
    stamp: float

    @classmethod
    def of(
        cls,
        observation: Mapping[str, Any],
        instruction: str,
        *,
        committed: Float32[np.ndarray, "committed action"] | None = None,
        stamp: float = 0.0,
    ) -> "Observation":
        """Return what an observation of Gymnasium and a sentence make.

        Args:
            observation: ``{"images": {camera: uint8[h w 3]}, "state": float32[state]}``, as our environments
                return it; other keys are not looked at. For a policy that looks at several frames, an image
                is [frames h w 3], oldest first.
            instruction: what to do, in words.
            committed: actions that will be executed whatever the policy predicts; None for none.
            stamp: when it was captured, monotonic clock [s].

        Raises:
            ObservationError: `images` or `state` is missing. Whether all cameras are there, in the right
                form, a policy says, which knows its robot.
        """
        missing = [key for key in ("images", "state") if key not in observation]
        if missing or not isinstance(observation["images"], Mapping):
            raise ObservationError(
                f"an observation needs 'images', by camera, and 'state'; this one has {sorted(observation)}. "
                "Give what env.reset() and env.step() return without a wrapper around the observation"
            )
        images = {name: np.asarray(image) for name, image in observation["images"].items()}
        return cls(
            images={name: image[None] if image.ndim == 3 else image for name, image in images.items()},
            state=np.asarray(observation["state"], dtype=np.float32),
            instruction=instruction,
            committed=np.zeros((0, 0), dtype=np.float32) if committed is None else committed,
            stamp=stamp,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """What a policy may know at each of several moments: observations, batched; the same in training."""

    images: Mapping[str, UInt8[np.ndarray, "batch frames h w 3"]]  # by camera; RGB, oldest frame first
    state: Float32[np.ndarray, "batch state"]  # in the units of RobotSpec.state
    instructions: Sequence[str]
    committed: Float32[np.ndarray, "batch time action"]  # in the units of RobotSpec.action
    num_committed: Int64[np.ndarray, " batch"]  # first actions of each chunk that count; the others do not


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


@runtime_checkable
class Robot(Protocol):
    """Something that can be observed and commanded at `robot_spec.control_hz`."""

    @property
    def robot_spec(self) -> RobotSpec:
        """What the robot offers and accepts."""
        ...

    def observe(self) -> SensorReading:
        """Return the newest reading of every sensor; its stamps tell how old each part is.

        A sensor that has measured nothing new keeps its last value and stamp. May wait for a sensor, and
        raises what the driver documents when one fails.
        """
        ...

    def command(self, action: Float32[np.ndarray, " action"]) -> None:
        """Execute one action for one control period. `observe` and `command` are called by one thread."""
        ...

    def stop(self) -> None:
        """Bring the robot to rest.

        May be called from any thread, more than once, when cameras fail, and while `observe` or `command`
        waits in another thread: it waits for no sensor. A command that is under way then is not sent any
        more; later ones are, so a caller that stops a robot permanently stops sending them.
        """
        ...
