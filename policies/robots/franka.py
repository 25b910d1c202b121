"""A Franka arm as a `Robot`: end-effector deltas at control rate in, twists for the arm's own 1 kHz loop out.

Each action moves a commanded pose of the point between the fingertips. The arm gets the velocity that
follows it: the action's own, plus a share of what the arm trails behind. Every such command expires: an arm
that receives nothing more comes to rest by itself, within its own limits. How the arm is reached is `Arm`
(franky_arm.py is one); what the cameras see is `Cameras`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from policies.runtime.clock import Clock
from vla.interface import ObservationError, SensorReading
from vla.registry import Range, check_attributes
from vla.spec import RobotSpec

ACTION_NAMES = ("delta_x", "delta_y", "delta_z", "delta_roll", "delta_pitch", "delta_yaw", "gripper")
STATE_NAMES = ("tcp_x", "tcp_y", "tcp_z", "yaw_sin", "yaw_cos", "gripper_opening")


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmReading:
    """What an arm reports. Poses are of the point between the fingertips, in the arm's base frame."""

    time_s: float  # of the arm's own clock; stands still when nothing new was received
    joints: Float64[np.ndarray, "7"]  # [rad]
    position: Float64[np.ndarray, "3"]  # [m]
    rotation: Float64[np.ndarray, "3 3"]  # the hand's axes, as columns
    opening: float  # of the gripper, in [0, 1]


@runtime_checkable
class Arm(Protocol):
    """An arm that follows twists. What fails raises `RuntimeError` or `OSError`."""

    def read(self) -> ArmReading:
        """Return the newest reading; does not wait while a motion is under way."""
        ...

    def follow(
        self, linear: Float64[np.ndarray, "3"], angular: Float64[np.ndarray, "3"], *, for_s: float
    ) -> None:
        """Move at a twist [m/s, rad/s, base frame] for a while, then come to rest unless commanded."""
        ...

    def grip(self, opening: float) -> None:
        """Open or close the gripper to a share of its width; returns at once."""
        ...

    def stop(self) -> None:
        """Begin to come to rest within the arm's limits; returns at once, safe to call more than once."""
        ...


@runtime_checkable
class Cameras(Protocol):
    """What gives a frame from every camera. Real cameras ignore the arguments; rendered ones need them.

    What fails raises `RuntimeError` or `OSError`.
    """

    def frames(
        self, joints: Float64[np.ndarray, "7"], opening: float, *, stamp: float
    ) -> tuple[Mapping[str, UInt8[np.ndarray, "h w 3"]], Mapping[str, float]]:
        """Return the newest frame of every camera, RGB, and when each was captured [s].

        Args:
            joints: where the arm was measured to be [rad].
            opening: of the gripper, in [0, 1].
            stamp: when that was [s]; a picture that is drawn of it is as old.
        """
        ...


def rotation_from_vector(vector: Float[np.ndarray, "3"]) -> Float64[np.ndarray, "3 3"]:
    """Return the rotation about a vector by its length [rad]."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = np.asarray(vector, np.float64) / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def vector_from_rotation(rotation: Float[np.ndarray, "3 3"]) -> Float64[np.ndarray, "3"]:
    """Inverse of `rotation_from_vector`, for angles below pi."""
    twice_sine = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    length = float(np.linalg.norm(twice_sine))
    if length < 1e-12:
        return np.zeros(3)
    angle = float(np.arctan2(length, np.trace(rotation) - 1.0))
    return twice_sine * (angle / length)


def shortened(vector: Float64[np.ndarray, "3"], longest: float) -> Float64[np.ndarray, "3"]:
    """Return a vector, scaled down to a length if it is longer."""
    length = float(np.linalg.norm(vector))
    return vector if length <= longest else vector * (longest / length)


@dataclass(frozen=True, kw_only=True, slots=True)
class Following:
    """How the arm follows the commanded pose."""

    gain_hz: Annotated[
        float,
        Range(0, 100, open_low=True),
        "share of the distance to the commanded pose that is made up for in a second",
    ] = 3.0
    max_speed: Annotated[float, Range(0, 3, open_low=True), "of the fingertips [m/s]"] = 0.5
    max_turn: Annotated[float, Range(0, 10, open_low=True), "of the hand [rad/s]"] = 2.0
    max_tracking_error_m: Annotated[
        float,
        Range(0, 1, open_low=True),
        "of the commanded from the measured position: a blocked arm must not wind up [m]",
    ] = 0.03
    max_tracking_error_rad: Annotated[
        float, Range(0, 3, open_low=True), "of the commanded from the measured rotation [rad]"
    ] = 0.3
    patience: Annotated[
        float, Range(1, 4, open_low=True), "control periods after which a command expires"
    ] = 1.5

    def __post_init__(self) -> None:
        check_attributes(self, where="following")


@dataclass(kw_only=True, slots=True)
class _Target:
    position: Float64[np.ndarray, "3"]
    rotation: Float64[np.ndarray, "3 3"]
    expires_at: float


class FrankaRobot:
    """A Franka arm with cameras, observed and commanded from one thread, stopped from any.

    Args:
        spec: names, units and ranges; state and action must be those of the tabletop's arm.
        arm: who moves.
        cameras: what is seen, with the names of the spec.
        clock: of stamps.
        following: how commands become twists.

    Raises:
        ValueError: the spec is of another kind of robot.
    """

    def __init__(
        self,
        *,
        spec: RobotSpec,
        arm: Arm,
        cameras: Cameras,
        clock: Clock,
        following: Following | None = None,
    ) -> None:
        if spec.action_names != ACTION_NAMES or spec.action_convention != "end_effector_delta":
            raise ValueError(
                f"{spec.name!r} takes {spec.action_names} as {spec.action_convention}; a Franka arm is "
                f"driven by end_effector_delta with {ACTION_NAMES}"
            )
        unknown = [name for name in spec.state_names if name not in STATE_NAMES]
        if unknown:
            raise ValueError(f"state channels {unknown} are not measured here; there are {STATE_NAMES}")
        self.robot_spec = spec
        self._arm, self._cameras, self._clock = arm, cameras, clock
        self._following = Following() if following is None else following
        self._period_s = 1.0 / spec.control_hz
        self._target: _Target | None = None
        self._num_stops = 0
        self._arm_time_s: float | None = None  # the arm's own clock at the newest reading,
        self._state_stamp = 0.0  # and when that was on ours

    def observe(self) -> SensorReading:
        """Return the newest reading; the state's stamp stays when the arm has measured nothing new.

        Raises:
            ObservationError: a camera gave no frame; the next call may succeed.
            RuntimeError: the arm is in error.
            OSError: the arm cannot be reached.
        """
        reading = self._arm.read()
        if reading.time_s != self._arm_time_s:
            self._arm_time_s, self._state_stamp = reading.time_s, self._clock.now()
        try:
            images, stamps = self._cameras.frames(reading.joints, reading.opening, stamp=self._state_stamp)
        except (OSError, RuntimeError) as error:
            raise ObservationError(f"no frames from the cameras: {type(error).__name__}: {error}") from error
        return SensorReading(
            images=images,
            image_stamps=stamps,
            state=self._state(reading),
            state_stamp=self._state_stamp,
        )

    def command(self, action: Float32[np.ndarray, " action"]) -> None:
        """Move the commanded pose by an action and have the arm follow it for one period.

        Raises:
            ValueError: the action is not finite or has the wrong shape; the arm comes to rest.
            RuntimeError: the arm is in error.
            OSError: the arm cannot be reached.
        """
        wanted = np.asarray(action, np.float64)
        if wanted.shape != (len(ACTION_NAMES),) or not np.isfinite(wanted).all():
            raise ValueError(f"action {wanted.tolist()} must be {len(ACTION_NAMES)} finite numbers")
        num_stops, target = self._num_stops, self._target
        reading, now, how = self._arm.read(), self._clock.now(), self._following
        if target is None or now > target.expires_at:
            target = _Target(position=reading.position, rotation=reading.rotation, expires_at=now)
        trailing = target.position - reading.position
        askew = vector_from_rotation(target.rotation @ reading.rotation.T)
        linear = wanted[:3] / self._period_s + how.gain_hz * trailing
        angular = wanted[3:6] / self._period_s + how.gain_hz * askew
        turned = rotation_from_vector(wanted[3:6]) @ target.rotation
        lead = vector_from_rotation(turned @ reading.rotation.T)
        for_s = how.patience * self._period_s
        self._target = _Target(
            position=reading.position + shortened(trailing + wanted[:3], how.max_tracking_error_m),
            rotation=rotation_from_vector(shortened(lead, how.max_tracking_error_rad)) @ reading.rotation,
            expires_at=now + for_s + self._period_s,
        )
        if self._num_stops == num_stops:
            self._arm.grip(float(np.clip(wanted[6], 0.0, 1.0)))
            self._arm.follow(shortened(linear, how.max_speed), shortened(angular, how.max_turn), for_s=for_s)
        if self._num_stops != num_stops:  # stopped by another thread since this command began
            self.stop()

    def stop(self) -> None:
        """Begin to come to rest within the arm's limits; see `Robot.stop`."""
        self._num_stops += 1
        self._target = None
        self._arm.stop()

    def _state(self, reading: ArmReading) -> Float32[np.ndarray, " state"]:
        # The hand points down at zero yaw: its x axis is the base's x axis.
        sine, cosine = reading.rotation[1, 0], reading.rotation[0, 0]
        length = max(float(np.hypot(sine, cosine)), 1e-9)
        position = [float(value) for value in reading.position]
        measured = (*position, float(sine / length), float(cosine / length), reading.opening)
        values: dict[str, float] = dict(zip(STATE_NAMES, measured, strict=True))
        return np.array([values[name] for name in self.robot_spec.state_names], np.float32)
