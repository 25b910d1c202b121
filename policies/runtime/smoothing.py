"""From a target every 20 to 50 ms to a setpoint every millisecond, limited in velocity, acceleration, jerk.

Each target is reached when the next is due, or as soon as the limits allow, and at the speed of the stream,
so that a steady stream is followed without stopping. Ruckig (`pip install ruckig`) computes the motion; its
channels arrive together. When no target comes in time, the motion ends in a jerk-limited stop, a little past
the last target. Channels may be joints [rad], Cartesian positions [m] or angles; position ranges are
safety.py's business, which leaves room to stop in.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from ruckig import ControlInterface, InputParameter, OutputParameter, Result, Ruckig, Synchronization

_FOLLOWED_SHARE = 0.9  # of the velocity limit that a moving target is followed at
_MARGIN = 1.0 - 1e-6  # Ruckig's own limits, so that rounding never breaks ours


class SmoothingError(RuntimeError):
    """Ruckig found no motion; the message holds its result. Stop the robot by its own means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionLimits:
    """Limits of each channel (u is its unit)."""

    velocity: Float64[np.ndarray, " channel"]  # [u/s]
    acceleration: Float64[np.ndarray, " channel"]  # [u/s2]
    jerk: Float64[np.ndarray, " channel"]  # [u/s3]

    def __post_init__(self) -> None:
        for name in ("velocity", "acceleration", "jerk"):
            values = getattr(self, name)
            if not (np.isfinite(values).all() and (values > 0).all()):
                raise ValueError(f"{name} limits are {values.tolist()}; Ruckig needs finite numbers above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setpoint:
    """Where every channel should be at one moment."""

    position: Float64[np.ndarray, " channel"]
    velocity: Float64[np.ndarray, " channel"]
    acceleration: Float64[np.ndarray, " channel"]


class TargetSmoother:
    """Follows targets that come every `target_period_s` with a setpoint every `period_s`.

    Args:
        start: where the robot stands, at rest.
        limits: of the motion.
        target_period_s: time between targets [s].
        period_s: time between setpoints [s], such as 0.001.
        patience: how many target periods after a target the next may come before the motion is stopped.
    """

    def __init__(
        self,
        *,
        start: Float[np.ndarray, " channel"],
        limits: MotionLimits,
        target_period_s: float,
        period_s: float,
        patience: float = 1.2,
    ) -> None:
        if not 0 < period_s <= target_period_s:
            raise ValueError(f"period_s={period_s} must be above 0 and at most {target_period_s=}")
        size = len(start)
        self._limits, self._target_period_s, self._period_s = limits, target_period_s, period_s
        self._patience_s = patience * target_period_s
        self._ruckig = Ruckig(size, period_s)
        self._input, self._output = InputParameter(size), OutputParameter(size)
        self._input.max_velocity = (limits.velocity * _MARGIN).tolist()
        self._input.max_acceleration = (limits.acceleration * _MARGIN).tolist()
        self._input.max_jerk = (limits.jerk * _MARGIN).tolist()
        self._input.synchronization = Synchronization.Time
        self._position = np.asarray(start, np.float64).copy()
        self._velocity, self._acceleration = np.zeros(size), np.zeros(size)
        self._input.current_position = self._position.tolist()
        self._target = self._position.copy()
        self._since_target_s = 0.0
        self._is_stopping = True
        self._begin_stop()

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing moves."""
        return bool((np.abs(self._velocity) < 1e-9).all() and (np.abs(self._acceleration) < 1e-6).all())

    def follow(self, target: Float[np.ndarray, " channel"]) -> None:
        """Take in the next target.

        Raises:
            ValueError: it is not finite or has the wrong shape; the motion goes on as before.
        """
        wanted = np.asarray(target, np.float64)
        if wanted.shape != self._position.shape or not np.isfinite(wanted).all():
            raise ValueError(f"target {wanted.tolist()} must be {len(self._position)} finite numbers")
        # After a stop, the last target tells nothing about the speed of the stream.
        before = self._position if self._is_stopping else self._target
        most = _FOLLOWED_SHARE * self._limits.velocity
        speed = np.clip((wanted - before) / self._target_period_s, -most, most)
        if self._is_stopping:
            speed = np.zeros_like(speed)
        self._target, self._since_target_s, self._is_stopping = wanted.copy(), 0.0, False
        self._input.control_interface = ControlInterface.Position
        self._input.target_position = wanted.tolist()
        self._input.target_velocity = speed.tolist()
        self._input.minimum_duration = self._target_period_s

    def stop(self) -> None:
        """Come to rest as fast as acceleration and jerk allow."""
        if not self._is_stopping:
            self._is_stopping = True
            self._begin_stop()

    def _begin_stop(self) -> None:
        self._input.control_interface = ControlInterface.Velocity
        self._input.target_velocity = [0.0] * len(self._position)
        self._input.minimum_duration = None

    def step(self) -> Setpoint:
        """Return the setpoint of the next millisecond (or whatever `period_s` is).

        Raises:
            SmoothingError: Ruckig found no motion.
        """
        self._since_target_s += self._period_s
        if self._since_target_s > self._patience_s:
            self.stop()
        result = self._ruckig.update(self._input, self._output)
        if result not in (Result.Working, Result.Finished):
            raise SmoothingError(
                f"Ruckig answered {result} from velocity {self._velocity.tolist()}, acceleration "
                f"{self._acceleration.tolist()} to {self._target.tolist()}"
            )
        self._output.pass_to_input(self._input)
        self._position = np.array(self._output.new_position)
        self._velocity = np.array(self._output.new_velocity)
        self._acceleration = np.array(self._output.new_acceleration)
        return Setpoint(
            position=self._position.copy(),
            velocity=self._velocity.copy(),
            acceleration=self._acceleration.copy(),
        )
