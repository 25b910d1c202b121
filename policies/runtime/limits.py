"""What a robot's commands may never exceed, and an independent check of recorded commands against it.

Limits are plain data, one entry for each channel of `RobotSpec.action`. They are about the *commanded
position* of a channel: for absolute conventions the action itself, for delta conventions the sum of the
actions since arming, started at what the state measures. This file moves nothing and filters nothing;
safety.py does. `audit` shares no code with the filter, so that one may be held against the other.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from policies.runtime.braking import PeriodLimits
from vla.spec import RobotSpec

MOTION, GRIPPER = "motion", "gripper"
_UNLIMITABLE = ("velocity", "acceleration", "jerk", "step")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelLimits:
    """Limits of one action channel, in its unit (u). `math.inf` switches one off, except for the range."""

    name: str
    low: float  # commanded position [u]
    high: float
    velocity: float  # [u/s]
    acceleration: float = math.inf  # [u/s2]
    jerk: float = math.inf  # [u/s3]
    step: float = math.inf  # largest change in one control period [u]
    kind: str = MOTION  # motion | gripper; a gripper's action is its position under every convention
    measured_by: str | None = None  # state channel that measures the position; none: zero where it is armed

    def __post_init__(self) -> None:
        if self.kind not in (MOTION, GRIPPER):
            raise ValueError(f"limits of {self.name!r}: kind {self.kind!r} is none of {(MOTION, GRIPPER)}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"limits of {self.name!r}: range [{self.low}, {self.high}] must be finite, low < high"
            )
        for what in _UNLIMITABLE:
            if not getattr(self, what) > 0:
                raise ValueError(f"limits of {self.name!r}: {what} is {getattr(self, what)}; must be > 0")
        if self.measured_by is None and not self.low <= 0.0 <= self.high:
            raise ValueError(
                f"limits of {self.name!r}: no state channel measures it, so it counts from zero where it is "
                f"armed, but its range [{self.low}, {self.high}] excludes zero"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetyLimits:
    """The limits of a robot's channels, in the order of `RobotSpec.action`, and what counts as gross excess.

    A request within its limits passes unchanged. One that exceeds a limit by up to the factor is clamped and
    counted; beyond it, it is refused. Acceleration and jerk are always clamped: a request in range that
    comes abruptly is a seam, not nonsense. `max_tracking_error` bounds how far a delta channel's commanded
    position may be pushed away from the measured one [u of the channel]; it may exceed it by the way it takes
    to stop.
    """

    channels: tuple[ChannelLimits, ...]
    refuse_position_factor: float = 1.5  # of half the range, from its centre
    refuse_speed_factor: float = 5.0  # of velocity and step
    max_tracking_error: float = math.inf

    def __post_init__(self) -> None:
        for name in ("refuse_position_factor", "refuse_speed_factor"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.max_tracking_error > 0:
            raise ValueError(f"max_tracking_error is {self.max_tracking_error}; it must be positive")

    def to_json(self) -> dict[str, Any]:
        """Return the limits as JSON-ready data; None stands for unlimited."""

        def plain(value: Any) -> Any:
            return None if value == math.inf else value

        channels = [
            {key: plain(value) for key, value in dataclasses.asdict(one).items()} for one in self.channels
        ]
        factors = {key: getattr(self, key) for key in ("refuse_position_factor", "refuse_speed_factor")}
        return {"channels": channels, "max_tracking_error": plain(self.max_tracking_error), **factors}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SafetyLimits":
        """Rebuild limits from `to_json`.

        Raises:
            ValueError: a key is missing or unknown, or a value makes no sense.
        """

        def limit(value: Any) -> Any:
            return math.inf if value is None else value

        try:
            channels = tuple(
                ChannelLimits(
                    **{key: limit(value) if key in _UNLIMITABLE else value for key, value in one.items()}
                )
                for one in data["channels"]
            )
            return cls(
                channels=channels,
                refuse_position_factor=data["refuse_position_factor"],
                refuse_speed_factor=data["refuse_speed_factor"],
                max_tracking_error=limit(data["max_tracking_error"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no safety limits: {error}") from error

    def require_fitting(self, spec: RobotSpec) -> None:
        """Check that the limits belong to a robot.

        Raises:
            ValueError: channels are missing, unknown or in another order, or the state lacks one that
                `measured_by` names.
        """
        names = tuple(channel.name for channel in self.channels)
        if names != spec.action_names:
            raise ValueError(f"safety limits are for {names}, robot {spec.name!r} takes {spec.action_names}")
        for channel in self.channels:
            if channel.measured_by is not None and channel.measured_by not in spec.state_names:
                raise ValueError(
                    f"limits of {channel.name!r}: measured_by {channel.measured_by!r} is no state channel of "
                    f"{spec.name!r}; it has {spec.state_names}"
                )

    @property
    def is_gripper(self) -> Bool[np.ndarray, " action"]:
        """Which channels are grippers."""
        return np.array([channel.kind == GRIPPER for channel in self.channels])


def is_absolute(spec: RobotSpec, limits: SafetyLimits) -> Bool[np.ndarray, " action"]:
    """Which action channels give positions; the others give changes of positions."""
    return limits.is_gripper | (spec.action_convention == "joint_target")


def in_periods(limits: SafetyLimits, period_s: float, *, margins: bool) -> PeriodLimits:
    """Return limits in units of one period; with margins, a little less, so that rounding breaks none."""
    low, high, velocity, acceleration, jerk, step = (
        np.array([getattr(channel, name) for channel in limits.channels])
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
    positions = np.where(absolute, sent, start + np.cumsum(np.where(absolute, 0.0, sent), axis=0))
    before = np.repeat(start[None], 3, axis=0)  # at rest
    track = np.concatenate([before, positions])
    dt = 1.0 / spec.control_hz
    steps = np.diff(track, axis=0)
    found: list[Violation] = []
    for column, channel in enumerate(limits.channels):
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
                        channel=channel.name,
                        kind=kind,
                        value=float(values[index]),
                        limit=limit,
                    )
                )
    return found
