"""Joint velocities for a twist of the hand, for an arm with a joint to spare.

Damped least squares for the twist; the null motion of the seventh joint draws the arm toward a posture.
Joints slow down before they reach the end of their range.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64


@dataclass(frozen=True, kw_only=True, slots=True)
class JointRange:
    """What the joints may do, in their order."""

    low: Float64[np.ndarray, " joint"]  # [rad]
    high: Float64[np.ndarray, " joint"]
    speed: Float64[np.ndarray, " joint"]  # [rad/s]

    def __post_init__(self) -> None:
        if not ((self.low < self.high).all() and (self.speed > 0).all()):
            raise ValueError(f"{self}: every joint needs low < high and a speed above 0")


# Franka Robotics' FR3 documentation ("Robot and interface specifications"); the speeds are franky's for all
# of Franka's arms, below those of the FR3, and the range is 0.1 rad inside of the FR3's at either end, where
# its speed limits depend on the position.
FR3 = JointRange(
    low=np.array([-2.6437, -1.6837, -2.8007, -2.9421, -2.7065, 0.6445, -2.9159]),
    high=np.array([2.6437, 1.6837, 2.8007, -0.2518, 2.7065, 4.4169, 2.9159]),
    speed=np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61]),
)


def joint_velocities(
    twist: Float[np.ndarray, "6"],
    *,
    jacobian: Float[np.ndarray, "6 joint"],
    joints: Float[np.ndarray, " joint"],
    posture: Float[np.ndarray, " joint"],
    limits: JointRange,
    posture_gain_hz: float = 4.0,
    posture_speed: float = 0.4,
    damping: float = 0.02,
    braking_s: float = 0.4,
) -> Float64[np.ndarray, " joint"]:
    """Return joint velocities [rad/s] that move the hand at a twist [m/s, rad/s, base frame].

    Args:
        twist: linear, then angular.
        jacobian: of the hand, base frame.
        joints: where the joints are [rad].
        posture: where they would rather be [rad].
        limits: speeds; all joints go slower together, so that the direction stays. Within `braking_s` of the
            end of its range a joint goes slower by itself.
        posture_gain_hz: share of the way to the posture that is gone in a second, where the twist allows it.
        posture_speed: the most that a joint moves for the posture's sake [rad/s].
        damping: of the least squares, against great speeds near singular positions [m or 1].
        braking_s: see `limits`.
    """
    transposed = np.asarray(jacobian, np.float64).T
    inverse = transposed @ np.linalg.inv(jacobian @ transposed + damping**2 * np.eye(6))
    to_posture = posture_gain_hz * (np.asarray(posture) - joints)
    null_motion = to_posture - np.linalg.pinv(jacobian) @ (jacobian @ to_posture)
    null_motion = null_motion * min(1.0, posture_speed / max(float(np.abs(null_motion).max()), 1e-9))
    velocity = inverse @ twist + null_motion
    velocity = velocity / max(1.0, float((np.abs(velocity) / limits.speed).max()))
    upwards = np.maximum(0.0, limits.high - joints) / braking_s
    downwards = np.maximum(0.0, joints - limits.low) / braking_s
    return np.clip(velocity, -downwards, upwards)
