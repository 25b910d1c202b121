"""Any robot with LeRobot's interface as a `Robot`, without importing lerobot.

LeRobot's drivers (SO-101, Koch, LeKiwi and the plugins named `lerobot-robot-*`) share four methods:
`connect`, `get_observation`, `send_action`, `disconnect`, with flat dictionaries of one number per motor and
one picture per camera. `LerobotDevice` states them; `LerobotRobot` puts the numbers in the order of a
`RobotSpec` and back. Numbers keep the device's units, so the spec must be in these (degrees, or LeRobot's
-100 to 100). Drivers hold their last target: a robot that must stop by itself when commands cease needs more.

A stop keeps what is held: an arm hangs some degrees below its target, and a gripper presses an object because
its target lies inside of it. Commanding measured positions would let the arm sag and the object fall.
"""

import threading
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from policies.runtime.clock import Clock
from vla.interface import ObservationError, SensorReading
from vla.spec import RobotSpec

_FRESH_S = 0.1  # a measured position older than this is no place to hold at
_BUS_WAIT_S = 0.1  # how long a stop waits for another use of the motors' bus to end
_NEAR_SHARE = 0.05  # of a channel's range: a joint this near to its target keeps it when stopped
_STOP_ATTEMPTS = 3  # a packet on the bus may be lost


@runtime_checkable
class LerobotDevice(Protocol):
    """What of `lerobot.robots.Robot` (lerobot 0.6.1) is used here."""

    @property
    def is_connected(self) -> bool:
        """Whether the driver talks to the robot."""
        ...

    @property
    def observation_features(self) -> Mapping[str, Any]:
        """Names of what it observes: a type for a number, a shape (h, w, 3) for a picture."""
        ...

    @property
    def action_features(self) -> Mapping[str, Any]:
        """Names of what it is commanded."""
        ...

    def connect(self) -> None:
        """Connect, calibrating if need be."""
        ...

    def get_observation(self) -> Mapping[str, Any]:
        """Return numbers and pictures by name."""
        ...

    def send_action(self, action: dict[str, Any]) -> Mapping[str, Any]:
        """Command targets by name; returns what was sent after the driver's own clipping."""
        ...

    def disconnect(self) -> None:
        """Disconnect."""
        ...


class RobotNotStopped(RuntimeError):
    """Motors could not be commanded to hold; the message names them."""


class LerobotRobot:
    """A LeRobot driver as a `Robot`. A context manager: connects, and disconnects finally.

    Args:
        device: the driver.
        spec: joint targets in the device's units; cameras of the device's sizes.
        clock: of stamps.
        state_keys: names of the device for state channels, in the order of the spec; their own if None.
        action_keys: the same for action channels.
        grippers: action channels, by their names in the spec, that keep their last target when stopped,
            however far from it they are; those with `gripper` in the name if None.

    Raises:
        ValueError: the device lacks a channel or camera, or the spec is not of joint targets.
    """

    def __init__(
        self,
        *,
        device: LerobotDevice,
        spec: RobotSpec,
        clock: Clock,
        state_keys: tuple[str, ...] | None = None,
        action_keys: tuple[str, ...] | None = None,
        grippers: tuple[str, ...] | None = None,
    ) -> None:
        if spec.action_convention != "joint_target":
            raise ValueError(f"LeRobot's drivers take joint targets; {spec.name!r} {spec.action_convention}")
        self.robot_spec = spec
        self._device, self._clock = device, clock
        self._targets: dict[str, float] = {}  # sent last
        self._measured: dict[str, float] = {}  # positions of motors, the newest
        self._measured_at = -float("inf")
        self._bus = threading.Lock()  # the motors' bus takes one transfer at a time
        self._num_stops = 0
        self._state_keys = spec.state_names if state_keys is None else state_keys
        self._action_keys = spec.action_names if action_keys is None else action_keys
        if grippers is None:
            grippers = tuple(name for name in spec.action_names if "gripper" in name)
        self._near = {
            key: float("inf") if channel.name in grippers else _NEAR_SHARE * (channel.high - channel.low)
            for key, channel in zip(self._action_keys, spec.action, strict=False)
        }
        sizes = {camera.name: (camera.height, camera.width, 3) for camera in spec.cameras}
        _require("state channels", self._state_keys, device.observation_features, len(spec.state))
        _require("action channels", self._action_keys, device.action_features, len(spec.action))
        _require("cameras", tuple(sizes), device.observation_features, len(sizes))
        for name, size in sizes.items():
            if tuple(device.observation_features[name]) != size:
                raise ValueError(
                    f"camera {name!r} of the device is {device.observation_features[name]}, the spec says "
                    f"{size}"
                )

    def observe(self) -> SensorReading:
        """Return what the driver reads now: one call for motors and cameras, hence one stamp for all.

        Raises:
            ObservationError: something is missing or of the wrong kind, or the driver could not read: a lost
                packet, a camera that gave nothing in time. The next call may succeed.
        """
        stamp = self._clock.now()
        try:
            with self._bus:
                seen = self._device.get_observation()
        except (OSError, RuntimeError) as error:
            raise ObservationError(
                f"the device could not be read: {type(error).__name__}: {error}"
            ) from error
        measured = {key: float(seen[key]) for key in self._action_keys if key in seen}
        self._measured, self._measured_at = measured, stamp
        cameras = self.robot_spec.camera_names
        missing = [name for name in (*self._state_keys, *cameras) if name not in seen]
        if missing:
            raise ObservationError(f"the device did not send {missing}; it sent {sorted(seen)}")
        return SensorReading(
            images={name: _picture(name, seen[name]) for name in cameras},
            image_stamps=dict.fromkeys(cameras, stamp),
            state=np.array([seen[name] for name in self._state_keys], np.float32),
            state_stamp=stamp,
        )

    def command(self, action: Float32[np.ndarray, " action"]) -> None:
        """Send targets.

        Raises:
            ValueError: the action is not finite or has the wrong shape; nothing was sent.
            OSError, RuntimeError: the driver's own.
        """
        num_stops = self._num_stops
        targets = np.asarray(action, np.float32)
        if targets.shape != (len(self._action_keys),) or not np.isfinite(targets).all():
            raise ValueError(f"action {targets.tolist()} must be {len(self._action_keys)} finite numbers")
        named = {key: float(value) for key, value in zip(self._action_keys, targets, strict=True)}
        with self._bus:
            if self._num_stops == num_stops:
                self._device.send_action(named)
                if self._num_stops == num_stops:
                    self._targets = named
        if self._num_stops != num_stops:  # stopped by another thread since this command began
            self.stop()

    def stop(self) -> None:
        """Have the motors hold their last targets, or where they were measured if that is far from these.

        It reads nothing, since the driver reads cameras and motors in one call and a camera may hang. Where
        such a call is under way it waits for it briefly, then sends all the same; see `Robot.stop`.

        Raises:
            RobotNotStopped: a motor has neither a measured position nor a target; the others were stopped.
            OSError, RuntimeError: the driver's own, from sending, three times.
        """
        self._num_stops += 1
        has_bus = self._bus.acquire(timeout=_BUS_WAIT_S)
        try:
            hold = self._hold()
            if hold:
                self._send_surely(hold)
        finally:
            if has_bus:
                self._bus.release()
        unknown = [key for key in self._action_keys if key not in hold]
        if unknown:
            raise RobotNotStopped(
                f"the device measured no position of {unknown} and was given no target for them: they "
                "could not be commanded to hold; if the robot moves, cut its power"
            )

    def _hold(self) -> dict[str, float]:
        """Return where each motor shall stay; none that was neither measured nor commanded."""
        is_fresh = self._clock.now() - self._measured_at <= _FRESH_S
        hold = dict(self._measured)
        for key, target in self._targets.items():
            distance = abs(target - self._measured.get(key, target))
            if not is_fresh or distance <= self._near[key]:
                hold[key] = target
        return hold

    def _send_surely(self, hold: dict[str, float]) -> None:
        for attempts_left in reversed(range(_STOP_ATTEMPTS)):
            try:
                self._device.send_action(hold)
                return
            except (OSError, RuntimeError):
                if not attempts_left:
                    raise

    def __enter__(self) -> "LerobotRobot":
        if not self._device.is_connected:
            self._device.connect()
        return self

    def __exit__(self, *exception: object) -> None:
        self._device.disconnect()


def _require(what: str, keys: tuple[str, ...], features: Mapping[str, Any], count: int) -> None:
    unknown = [key for key in keys if key not in features]
    if unknown or len(keys) != count:
        raise ValueError(
            f"{what} {list(keys)}: {count} are needed, and the device does not have {unknown}; it has "
            f"{sorted(features)}"
        )


def _picture(name: str, frame: Any) -> UInt8[np.ndarray, "h w 3"]:
    picture = np.asarray(frame)
    if picture.dtype != np.uint8 or picture.ndim != 3:
        raise ObservationError(f"camera {name!r} sent {picture.dtype}{list(picture.shape)}, not uint8[h w 3]")
    return picture
