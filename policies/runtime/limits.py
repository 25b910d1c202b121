"""What a robot's commands may never exceed, and an independent check of recorded commands against it.

Limits are plain data, one entry for each channel of `RobotSpec.action`. They are about the *commanded
position* of a channel: where actions are positions, the action itself; where they are changes or velocities,
their sum since arming, started at what the state measures. This file moves nothing and filters nothing;
safety.py does. `audit` shares no code with the filter, so that one may be held against the other.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from policies.runtime.braking import PeriodLimits
from vla.registry import Choices, Range, check_attributes, check_settings
from vla.spec import RobotSpec

MOTION, GRIPPER = "motion", "gripper"
_POSITIVE = Range(0, math.inf, open_low=True)
_POSITION = Range(-(10**6), 10**6)
_UNLIMITABLE = ("velocity", "acceleration", "jerk", "step")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelLimits:
    """Limits of one action channel, in its unit (u). `math.inf` switches one off, except for the range.

    Raises:
        ValueError: a value is not allowed (`SettingError`), or the range is empty or excludes the start.
    """

    low: Annotated[float, _POSITION, "least commanded position [u]"]
    high: Annotated[float, _POSITION, "greatest commanded position [u]"]
    velocity: Annotated[float, _POSITIVE, "[u/s]"]
    acceleration: Annotated[float, _POSITIVE, "[u/s2]"] = math.inf
    jerk: Annotated[float, _POSITIVE, "[u/s3]"] = math.inf
    step: Annotated[float, _POSITIVE, "largest change in one control period [u]"] = math.inf
    kind: Annotated[
        str, Choices(MOTION, GRIPPER), "a gripper's action is its position under every convention"
    ] = MOTION
    measured_by: Annotated[
        str | None, "state channel that measures the position; null: it is zero where it is armed"
    ] = None

    def __post_init__(self) -> None:
        check_attributes(self, where="limits")
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; low must be less than high")
        if self.measured_by is None and not self.low <= 0.0 <= self.high:
            raise ValueError(
                "no state channel measures it (measured_by), so it counts from zero where it is armed, but "
                f"zero is not between low, {self.low}, and high, {self.high}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetyLimits:
    """The limits of a robot's channels, and what counts as gross excess.

    A request within its limits passes unchanged. One that exceeds a limit by up to the factor is clamped and
    counted; beyond it, it is refused. Acceleration and jerk are always clamped: a request in range that
    comes abruptly is a seam, not nonsense. `max_tracking_error` bounds how far a delta channel's commanded
    position may be pushed away from the measured one [u of the channel]; it may exceed it by the way it takes
    to stop.
    """

    channels: Annotated[Mapping[str, ChannelLimits], "by action channel, in the order of the robot's spec"]
    refuse_position_factor: Annotated[float, Range(1, math.inf), "of half the range, from its center"] = 1.5
    refuse_speed_factor: Annotated[float, Range(1, math.inf), "of velocity and step"] = 5.0
    max_tracking_error: Annotated[float, _POSITIVE, "between the commanded and the measured position [u]"] = (
        math.inf
    )

    def __post_init__(self) -> None:
        check_attributes(self, where="limits")

    def to_json(self) -> dict[str, Any]:
        """Return the limits as JSON-ready data; None stands for unlimited."""

        def plain(value: Any) -> Any:
            return None if value == math.inf else value

        channels = [
            {"name": name} | {key: plain(value) for key, value in dataclasses.asdict(one).items()}
            for name, one in self.channels.items()
        ]
        factors = {key: getattr(self, key) for key in ("refuse_position_factor", "refuse_speed_factor")}
        return {"channels": channels, "max_tracking_error": plain(self.max_tracking_error), **factors}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SafetyLimits":
        """Rebuild limits from `to_json`.

        Raises:
            ValueError: a key is missing or unknown, or a value makes no sense.
        """

        def unlimited(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
            return {
                key: math.inf if value is None and key in names else value for key, value in values.items()
            }

        if "leash" in data:  # as recordings of before call it
            data = {key: value for key, value in data.items() if key != "leash"} | {
                "max_tracking_error": data["leash"]
            }
        try:
            channels = {one["name"]: unlimited(one, _UNLIMITABLE) for one in data["channels"]}
        except (KeyError, TypeError) as error:
            raise ValueError(f"invalid safety limits: {error}") from error
        for one in channels.values():
            del one["name"]
        values = unlimited(data, ("max_tracking_error",)) | {"channels": channels}
        return cls(**check_settings(cls, values, where="limits"))

    def require_fitting(self, spec: RobotSpec) -> None:
        """Check that the limits belong to a robot.

        Raises:
            ValueError: channels are missing, unknown or in another order, or the state lacks one that
                `measured_by` names.
        """
        names = tuple(self.channels)
        if names != spec.action_names:
            raise ValueError(f"safety limits are for {names}, robot {spec.name!r} takes {spec.action_names}")
        for name, channel in self.channels.items():
            if channel.measured_by is not None and channel.measured_by not in spec.state_names:
                raise ValueError(
                    f"limits of {name!r}: measured_by {channel.measured_by!r} is not a state channel of "
                    f"{spec.name!r}; it has {spec.state_names}"
                )

    @property
    def is_gripper(self) -> Bool[np.ndarray, " action"]:
        """Which channels are grippers."""
        return np.array([channel.kind == GRIPPER for channel in self.channels.values()])


def is_absolute(spec: RobotSpec, limits: SafetyLimits) -> Bool[np.ndarray, " action"]:
    """Which action channels give positions; the others give changes of positions."""
    return limits.is_gripper | spec.gives_positions


def in_periods(limits: SafetyLimits, period_s: float, *, margins: bool) -> PeriodLimits:
    """Return limits in units of one period; with margins, a little less, so that rounding breaks none."""
    low, high, velocity, acceleration, jerk, step = (
        np.array([getattr(channel, name) for channel in limits.channels.values()])
        for name in ("low", "high", "velocity", "acceleration", "jerk", "step")
    )
    speed = velocity * period_s
    if not margins:
        return PeriodLimits(
            low=low,
            high=high,
            velocity=speed,
            acceleration=acceleration * period_s**2,
            jerk=jerk * period_s**3,
        )
    low32, high32 = low.astype(np.float32), high.astype(np.float32)
    return PeriodLimits(  # the range's ends are the nearest float32 inside
        low=np.where(low32 < low, np.nextafter(low32, np.float32(np.inf)), low32).astype(float),
        high=np.where(high32 > high, np.nextafter(high32, np.float32(-np.inf)), high32).astype(float),
        velocity=np.minimum(speed, step) * (1 - 1e-4),
        acceleration=acceleration * period_s**2 * (1 - 1e-3),
        jerk=jerk * period_s**3 * (1 - 1e-3),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """A command that should not have been emitted."""

    index: int  # in the audited stream
    channel: str
    kind: str
    value: float
    limit: float


def audit(
    actions: Float[np.ndarray, "time action"],
    *,
    start: Float64[np.ndarray, " action"],
    spec: RobotSpec,
    limits: SafetyLimits,
    tolerance: float = 1e-6,
) -> list[Violation]:
    """Return every violation of a limit in a stream of emitted commands, one a control period.

    Args:
        actions: what the robot was sent, from rest at `start` on.
        start: commanded position of each channel before the first action.
        spec: the robot.
        limits: its limits.
        tolerance: relative excess that is put down to rounding.
    """
    absolute = is_absolute(spec, limits)
    sent = np.asarray(actions, np.float64)
    changes = np.where(absolute, 0.0, sent * spec.change_per_action)
    positions = np.where(absolute, sent, start + np.cumsum(changes, axis=0))
    before = np.repeat(start[None], 3, axis=0)  # at rest
    track = np.concatenate([before, positions])
    dt = 1.0 / spec.control_hz
    steps = np.diff(track, axis=0)
    found: list[Violation] = []
    for column, (name, channel) in enumerate(limits.channels.items()):
        span = channel.high - channel.low
        excess = np.maximum(channel.low - positions[:, column], positions[:, column] - channel.high)
        kinds: Sequence[tuple[str, np.ndarray, float]] = (
            ("position", excess / span, 0.0),
            ("velocity", np.abs(steps[2:, column]) / dt, channel.velocity),
            ("acceleration", np.abs(np.diff(steps[1:, column])) / dt**2, channel.acceleration),
            ("jerk", np.abs(np.diff(steps[:, column], n=2)) / dt**3, channel.jerk),
            ("step", np.abs(steps[2:, column]), channel.step),
        )
        for kind, values, limit in kinds:
            allowed = limit * (1 + tolerance) + (tolerance if kind == "position" else 0.0)
            for index in np.flatnonzero(~(values <= allowed)):  # the negation catches NaN
                found.append(
                    Violation(
                        index=int(index),
                        channel=name,
                        kind=kind,
                        value=float(values[index]),
                        limit=limit,
                    )
                )
    return found
