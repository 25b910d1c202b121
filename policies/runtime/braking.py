"""Ways to come to rest from a motion that is sampled once a control period, within every limit.

Units are those of one period: a velocity is the change of position in one period, an acceleration the change
of velocity, a jerk the change of acceleration. A stop that takes n periods has the jerks of least squares
that bring velocity and acceleration to zero; they are linear in the state, so that many stops from many
states are tried at once.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

STOP_LENGTHS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48)  # periods


@dataclass(frozen=True, kw_only=True, slots=True)
class PeriodLimits:
    """Limits of each channel in units of one period; `inf` where there is none."""

    low: Float64[np.ndarray, " channel"]
    high: Float64[np.ndarray, " channel"]
    velocity: Float64[np.ndarray, " channel"]
    acceleration: Float64[np.ndarray, " channel"]
    jerk: Float64[np.ndarray, " channel"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stops:
    """For each candidate state whether some stop keeps all limits, and the shortest that does."""

    feasible: Bool[np.ndarray, "candidate channel"]
    positions: Float64[np.ndarray, "candidate channel period"]  # at rest from the end of the stop on


class BrakingPlanner:
    """Finds stops. Built once, for all states and channels."""

    def __init__(self, *, lengths: tuple[int, ...] = STOP_LENGTHS) -> None:
        self.num_periods = max(lengths)
        maps = [_stop_maps(length, self.num_periods) for length in lengths]
        # Each maps (velocity, acceleration) to a quantity of every period: [stop, period, 2].
        self._travel, self._velocity, self._acceleration, self._jerk = (
            np.stack([one[i] for one in maps]) for i in range(4)
        )

    def stops(
        self,
        position: Float64[np.ndarray, "candidate channel"],
        velocity: Float64[np.ndarray, "candidate channel"],
        acceleration: Float64[np.ndarray, "candidate channel"],
        limits: PeriodLimits,
    ) -> Stops:
        """Return the shortest feasible stop of each candidate state of each channel."""
        state = np.stack([velocity, acceleration], axis=-1)

        def over_time(maps: Float64[np.ndarray, "stop period 2"]) -> np.ndarray:
            return np.tensordot(state, maps, axes=([2], [2]))  # [candidate, channel, stop, period]

        track = position[..., None, None] + over_time(self._travel)
        kept = (track >= limits.low[:, None, None]).all(-1) & (track <= limits.high[:, None, None]).all(-1)
        for maps, bound in (
            (self._velocity, limits.velocity),
            (self._acceleration, limits.acceleration),
            (self._jerk, limits.jerk),
        ):
            kept &= (np.abs(over_time(maps)) <= bound[:, None, None]).all(-1)
        shortest = kept.argmax(-1)
        chosen = np.take_along_axis(track, shortest[..., None, None], axis=2)[:, :, 0]
        return Stops(feasible=np.asarray(kept.any(-1)), positions=chosen)


def _stop_maps(length: int, num_periods: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return travel, velocity, acceleration and jerk of a stop as maps of the state, [period, 2] each."""
    # After n periods: velocity + n * acceleration + sum((n - m) * jerk[m]) = 0, m from 0, and likewise
    # acceleration + sum(jerk[m]) = 0.
    effect = np.stack([np.arange(length, 0, -1.0), np.ones(length)])
    drift = np.array([[1.0, float(length)], [0.0, 1.0]])
    jerk = np.zeros((num_periods, 2))
    jerk[:length] = -np.linalg.pinv(effect) @ drift
    acceleration = np.array([0.0, 1.0]) + np.cumsum(jerk, axis=0)
    velocity = np.array([1.0, 0.0]) + np.cumsum(acceleration, axis=0)
    acceleration[length - 1 :] = 0.0  # exactly at rest, where the sums leave 1e-17
    velocity[length - 1 :] = 0.0
    return np.cumsum(velocity, axis=0), velocity, acceleration, jerk
