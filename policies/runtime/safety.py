"""The last thing before the robot: no command that breaks a limit gets past it, whatever the policy predicts.

The filter keeps the commanded motion of every channel and, always, a stop that leads from it to rest within
all limits. A request passes unchanged if it keeps the limits and a stop from it exists; if not, the filter
goes as far toward it as both allow. What is not finite, of the wrong shape or grossly out of range is
refused, and `hold` then follows the stop. By induction there is always a next command, and it never breaks
a limit. It is no safety-rated component: a robot
needs an independent emergency stop.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from policies.runtime.braking import BrakingPlanner, PeriodLimits
from policies.runtime.limits import SafetyLimits, in_periods, is_absolute
from vla.spec import RobotSpec

_COUNTED = 2e-3  # relative excess that is counted; less is rounding and the margins below
_START_TOLERANCE = 0.05  # of the range: how far out the robot may stand where it is armed
_SHARES = np.linspace(0.0, 1.0, 17)  # of the way from braking to what was requested


class UnsafeCommand(ValueError):
    """A request that must not be executed, not even in part. Call `hold` instead."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind  # finite | shape | position | velocity | step | gripper | workspace


class UnsafeStart(ValueError):
    """The robot stands where its limits do not let it be; move it by hand, or correct the limits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SafeCommand:
    """What may be sent to the robot."""

    action: Float32[np.ndarray, " action"]  # in the robot's action convention
    position: Float64[np.ndarray, " action"]  # commanded position of each channel after it
    clamps: tuple[str, ...]  # "kind:channel" for each limit that the request exceeded


class SafetyFilter:
    """Keeps a stream of commands, one a control period, within limits.

    Args:
        spec: the robot; its action convention decides what a request means.
        limits: a position range, velocity, acceleration, jerk and step for each channel.

    Raises:
        ValueError: the limits belong to another robot.
    """

    def __init__(self, *, spec: RobotSpec, limits: SafetyLimits) -> None:
        limits.require_fitting(spec)
        self._spec, self._limits = spec, limits
        self._planner = BrakingPlanner()
        self._names = spec.action_names
        self._gripper = limits.is_gripper
        self._absolute = is_absolute(spec, limits)
        self._cartesian = spec.action_convention.startswith("end_effector")
        self._change = spec.change_per_action
        self._hard = in_periods(limits, 1.0 / spec.control_hz, margins=False)
        self._bounds = in_periods(limits, 1.0 / spec.control_hz, margins=True)
        self._measured_by = [
            None if channel.measured_by is None else spec.state_names.index(channel.measured_by)
            for channel in limits.channels.values()
        ]
        self.counts: Counter[str] = Counter()  # periods by kind of clamp; refusals as "refused kind"
        self._has_started = False
        self._position = np.zeros(len(self._names))
        self._velocity = np.zeros(len(self._names))  # per period, as the next
        self._acceleration = np.zeros(len(self._names))
        self._stop = np.zeros((len(self._names), self._planner.num_periods))

    @property
    def position(self) -> Float64[np.ndarray, " action"]:
        """Commanded position of every channel."""
        return self._position.copy()

    @property
    def is_at_rest(self) -> bool:
        """Whether the commanded motion has ended."""
        span = self._bounds.high - self._bounds.low
        return bool((np.abs(self._stop - self._position[:, None]) <= 1e-6 * span[:, None]).all())

    def reset(self, state: Float[np.ndarray, " state"]) -> None:
        """Start from rest where the robot stands. A gripper that was commanded before keeps its command.

        Raises:
            UnsafeStart: a channel is far outside its range.
        """
        position = np.array([0.0 if index is None else state[index] for index in self._measured_by])
        if self._has_started:
            position = np.where(self._gripper, self._position, position)
        span = self._bounds.high - self._bounds.low
        outside = np.maximum(self._bounds.low - position, position - self._bounds.high) / span
        for name, value, excess in zip(self._names, position, outside, strict=True):
            if not excess <= _START_TOLERANCE:
                low, high = self._range(name)
                raise UnsafeStart(
                    f"channel {name!r} is at {value:.4g}, outside of [{low:.4g}, {high:.4g}]; move the robot "
                    f"into its range, or correct the limits"
                )
        position = np.clip(position, self._bounds.low, self._bounds.high)
        self._position, self._has_started = position, True
        self._velocity, self._acceleration = np.zeros_like(position), np.zeros_like(position)
        self._stop = np.repeat(position[:, None], self._planner.num_periods, axis=1)

    @property
    def absolute(self) -> Bool[np.ndarray, " action"]:
        """Which action channels are positions; the others are changes."""
        return self._absolute.copy()

    def require_sane(self, actions: Float32[np.ndarray, "time action"]) -> None:
        """Look through a whole chunk before any of it is planned for.

        Raises:
            UnsafeCommand: some action exceeds a limit by more than its factor, wherever it would start.
        """
        middle = (self._hard.low + self._hard.high) / 2
        reach = np.abs(actions - middle) / (self._hard.high - middle)
        fastest = np.minimum(self._hard.velocity, self._step_limits())
        for kind, ratio, allowed in (
            ("position", np.where(self._absolute, reach, 0.0), self._limits.refuse_position_factor),
            (
                "velocity",
                np.where(self._absolute, 0.0, np.abs(actions) * self._change / fastest),
                self._limits.refuse_speed_factor,
            ),
        ):
            if (ratio > allowed).any():
                at, column = np.unravel_index(int(ratio.argmax()), ratio.shape)
                self.counts[f"refused {kind}"] += 1
                raise UnsafeCommand(
                    kind,
                    f"action {at} of a chunk commands {actions[at, column]:.4g} to {self._names[column]!r}: "
                    f"{ratio[at, column]:.3g} x its {kind} limit",
                )

    def step(self, action: Any, *, state: Float[np.ndarray, " state"] | None = None) -> SafeCommand:
        """Return the command nearest to a request that keeps every limit, now and until rest.

        Args:
            action: one number per channel; anything else is refused.
            state: what the robot measures, for the tracking error of delta channels.

        Raises:
            UnsafeCommand: nothing of the request may be executed; call `hold`.
        """
        try:
            request = self._accepted(action)
        except UnsafeCommand as refusal:
            self.counts[f"refused {refusal.kind}"] += 1
            raise
        wanted = np.where(self._absolute, request, self._position + request * self._change)
        clamps = self._excesses(wanted)
        trackable = self._within_tracking_error(wanted, state)
        clamps += [f"tracking_error:{self._names[i]}" for i in np.flatnonzero(trackable != wanted)]
        chosen, stop, is_exact = self._approach(trackable)
        clamps += [
            f"stop:{name}"
            for i, name in enumerate(self._names)
            if not is_exact[i] and not any(clamp.endswith(f":{name}") for clamp in clamps)
        ]
        self.counts.update({clamp.split(":")[0] for clamp in clamps})
        return self._emit(chosen, stop, tuple(clamps))

    def hold(self) -> SafeCommand:
        """Return the next command on the way to rest, or at rest."""
        later = np.concatenate([self._stop[:, 1:], self._stop[:, -1:]], axis=1)
        return self._emit(self._stop[:, 0], later, ())

    def _accepted(self, action: Any) -> Float64[np.ndarray, " action"]:
        """Return a request as numbers, after refusing what is not finite, misshapen or grossly too much."""
        try:
            request = np.asarray(action, np.float64)
        except (TypeError, ValueError):
            raise UnsafeCommand(
                "shape", f"a command of type {type(action).__name__} is not an array"
            ) from None
        if not np.isfinite(request).all():
            raise UnsafeCommand("finite", f"command is not finite: {request.ravel()[:16].tolist()}")
        if request.shape != self._position.shape:
            raise UnsafeCommand(
                "shape", f"command has shape {request.shape}; {len(self._names)} numbers are {self._names}"
            )
        wanted = np.where(self._absolute, request, self._position + request * self._change)
        middle = (self._hard.low + self._hard.high) / 2
        reach = np.abs(wanted - middle) / (self._hard.high - middle)
        speed = np.abs(wanted - self._position) / self._hard.velocity
        step = np.abs(wanted - self._position) / self._step_limits()
        for i, name in enumerate(self._names):
            factors = [(self._range_kind(i), reach[i], self._limits.refuse_position_factor)]
            if not self._gripper[i]:  # a gripper's command may jump; only how fast it follows is limited
                factors += [("velocity", speed[i], self._limits.refuse_speed_factor)]
                factors += [("step", step[i], self._limits.refuse_speed_factor)]
            for kind, ratio, allowed in factors:
                if ratio > allowed:
                    raise UnsafeCommand(
                        kind,
                        f"channel {name!r} was commanded {request[i]:.4g}, {ratio:.3g} x its {kind} limit",
                    )
        return request

    def _excesses(self, wanted: Float64[np.ndarray, " action"]) -> list[str]:
        """Return "kind:channel" for every limit that a request exceeds."""
        velocity = wanted - self._position
        acceleration = velocity - self._velocity
        jerk = acceleration - self._acceleration
        span = self._hard.high - self._hard.low
        beyond = np.maximum(self._hard.low - wanted, wanted - self._hard.high) > _COUNTED * span
        found = []
        for i, name in enumerate(self._names):
            too_fast = abs(velocity[i]) > (1 + _COUNTED) * self._hard.velocity[i]
            exceeded = {
                self._range_kind(i): bool(beyond[i] or (too_fast and self._gripper[i])),
                "velocity": bool(too_fast and not self._gripper[i]),
                "acceleration": abs(acceleration[i]) > (1 + _COUNTED) * self._hard.acceleration[i],
                "jerk": abs(jerk[i]) > (1 + _COUNTED) * self._hard.jerk[i],
                "step": abs(velocity[i]) > (1 + _COUNTED) * self._step_limits()[i],
            }
            found += [f"{kind}:{name}" for kind, is_so in exceeded.items() if is_so]
        return found

    def _within_tracking_error(
        self, wanted: Float64[np.ndarray, " action"], state: Float[np.ndarray, " state"] | None
    ) -> Float64[np.ndarray, " action"]:
        """Keep delta channels from being pushed too far from where the robot is measured to be."""
        if state is None or not np.isfinite(self._limits.max_tracking_error):
            return wanted
        trackable = wanted.copy()
        for i, index in enumerate(self._measured_by):
            if index is not None and not self._absolute[i]:
                low = min(self._position[i], float(state[index]) - self._limits.max_tracking_error)
                high = max(self._position[i], float(state[index]) + self._limits.max_tracking_error)
                trackable[i] = np.clip(wanted[i], low, high)
        return trackable

    def _approach(
        self, wanted: Float64[np.ndarray, " action"]
    ) -> tuple[Float64[np.ndarray, " action"], Float64[np.ndarray, "action period"], np.ndarray]:
        """Return the next position of every channel, the stop from it, and which are exactly as wanted."""
        braking, bounds = self._stop[:, 0], self._bounds
        fastest = np.minimum(bounds.velocity, self._velocity + _least(bounds, self._acceleration))
        slowest = np.maximum(-bounds.velocity, self._velocity - _least(bounds, -self._acceleration))
        low = np.minimum(np.maximum(self._position + slowest, bounds.low), braking)
        high = np.maximum(np.minimum(self._position + fastest, bounds.high), braking)
        target = np.clip(wanted, low, high)
        candidates = braking + _SHARES[:, None] * (target - braking)
        candidates[-1] = target
        velocity = candidates - self._position
        stops = self._planner.stops(candidates, velocity, velocity - self._velocity, bounds)
        allowed = stops.feasible
        # A position that cannot be reached now is approached so that the stop does not shoot past it.
        pulled = self._absolute & ~self._gripper & (np.abs(target - wanted) > _COUNTED * bounds.velocity)
        side = np.sign(wanted - self._position)
        past = ((stops.positions - wanted[:, None]) * side[:, None]).max(-1) > 1e-9
        allowed = allowed & ~(pulled & past)
        best = len(_SHARES) - 1 - allowed[::-1].argmax(0)
        each = np.arange(len(wanted))
        found = allowed.any(0)
        later = np.concatenate([self._stop[:, 1:], self._stop[:, -1:]], axis=1)
        chosen = np.where(found, candidates[best, each], braking)
        stop = np.where(found[:, None], stops.positions[best, each], later)
        is_exact = np.abs(chosen - wanted) <= _COUNTED * (bounds.high - bounds.low)
        is_exact |= np.abs(chosen - wanted) <= _COUNTED * np.abs(wanted - self._position)
        return chosen, stop, is_exact

    def _emit(
        self,
        position: Float64[np.ndarray, " action"],
        stop: Float64[np.ndarray, "action period"],
        clamps: tuple[str, ...],
    ) -> SafeCommand:
        # What counts is what the robot gets, in float32; rounding must not add up.
        change = (position - self._position) / self._change
        action = np.where(self._absolute, position, change).astype(np.float32)
        moved = self._position + action.astype(float) * self._change
        actual = np.where(self._absolute, action.astype(float), moved)
        velocity = actual - self._position
        self._position, self._acceleration, self._velocity = actual, velocity - self._velocity, velocity
        self._stop = stop
        return SafeCommand(action=action, position=actual.copy(), clamps=clamps)

    def _range_kind(self, index: int) -> str:
        """Return what leaving the range of a channel is called."""
        if self._gripper[index]:
            return "gripper"
        return "workspace" if self._cartesian else "position"

    def _range(self, name: str) -> tuple[float, float]:
        channel = self._limits.channels[name]
        return channel.low, channel.high

    def _step_limits(self) -> Float64[np.ndarray, " action"]:
        return np.array([channel.step for channel in self._limits.channels.values()])


def _least(bounds: PeriodLimits, acceleration: Float64[np.ndarray, " action"]) -> np.ndarray:
    """Return the largest change of velocity in the next period."""
    return np.minimum(bounds.acceleration, acceleration + bounds.jerk)
