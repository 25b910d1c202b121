"""Movements that scripted experts are made of, each a function of what the scene is like right now.

No expert keeps a memory: whether to approach, grasp, carry or let go follows from where the hand and the
objects are and how far the fingers are open. So an expert labels any state rightly, also one that it was
pushed into, and its labels are smooth functions of what the cameras see.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from envs.tabletop.arm import MAX_OPENING

MAX_STEP_M = 0.025  # the action limit: per control period
MAX_TURN_RAD = 0.1
CRUISE_STEP_M = 0.019  # how fast experts go; the rest is room for corrections
GAIN = 0.35  # share of the remaining distance that one action covers
HOVER_M = 0.085  # above the grasp, while not yet over the object
OPEN, CLOSED = 1.0, 0.0
_TOLERANCE_M = 0.012  # of the hand above an object before the fingers begin to close
_CLOSING_TOLERANCE_M = 0.024  # and while they close
_CLOSING_GAP_M = 0.074  # fingers nearer than this are on their way


@dataclass(frozen=True, kw_only=True, slots=True)
class Hand:
    """Where the hand is: point between the fingertips [m], roll, pitch, yaw [rad], opening in [0, 1]."""

    position: Float64[np.ndarray, "3"]
    angles: Float64[np.ndarray, "3"]
    opening: float

    @property
    def gap(self) -> float:
        """Distance between the fingers [m]."""
        return self.opening * MAX_OPENING


@dataclass(frozen=True, kw_only=True, slots=True)
class Grasp:
    """A place to grip: the point between the fingers [m], the yaw [rad] and the width there [m]."""

    position: Float64[np.ndarray, "3"]
    yaw: float
    width: float


def ramp(value: float, start: float, end: float) -> float:
    """Return 0 below `start`, 1 above `end` and linear in between."""
    return float(np.clip((value - start) / (end - start), 0.0, 1.0))


def wrapped(angle: float, period: float) -> float:
    """Return the angle moved by whole periods into [-period/2, period/2)."""
    return float((angle + period / 2) % period - period / 2)


def move(
    hand: Hand,
    displacement: Float[np.ndarray, "3"],
    *,
    yaw_error: float = 0.0,
    gripper: float,
    speed: float = CRUISE_STEP_M,
) -> Float32[np.ndarray, "7"]:
    """Return the action that goes a share of a displacement [m], upright, at most `speed` a period."""
    step = GAIN * displacement
    length = float(np.linalg.norm(step))
    if length > speed:
        step = step * (speed / length)
    turn = np.clip(
        [-0.3 * hand.angles[0], -0.3 * hand.angles[1], 0.3 * yaw_error], -MAX_TURN_RAD, MAX_TURN_RAD
    )
    return np.array([*step, *turn, gripper], dtype=np.float32)


def holds(hand: Hand, grasp: Grasp) -> bool:
    """Whether the fingers have closed on what is at the grasp."""
    offset = hand.position - grasp.position
    near = np.linalg.norm(offset[:2]) < 0.026 and abs(offset[2]) < 0.026
    return bool(near and hand.gap < grasp.width + 0.007)


def approach(hand: Hand, grasp: Grasp) -> Float32[np.ndarray, "7"]:
    """Come from above, lower around the object, close the fingers. To be used until `holds`."""
    offset = grasp.position - hand.position
    distance = float(np.linalg.norm(offset[:2]))
    tolerance = _TOLERANCE_M if hand.gap > _CLOSING_GAP_M else _CLOSING_TOLERANCE_M
    yaw_error = wrapped(grasp.yaw - hand.angles[2], 2 * np.pi)
    if distance < tolerance and abs(offset[2]) < tolerance:
        return move(hand, offset, yaw_error=yaw_error, gripper=CLOSED)
    blocked = 1.0 - ramp(hand.gap, grasp.width + 0.004, grasp.width + 0.016)  # fingers too close to straddle
    askew = ramp(abs(yaw_error), 0.15, 0.5)  # a hand that turns on its way down knocks things over
    height = HOVER_M * max(ramp(distance, 0.010, 0.05), blocked, askew)
    return move(hand, offset + np.array([0.0, 0.0, height]), yaw_error=yaw_error, gripper=OPEN)


def carry(
    hand: Hand, *, to_go: Float[np.ndarray, "2"], height: float, floor: float, tolerance: float
) -> Float32[np.ndarray, "7"]:
    """Carry what the fingers hold over a target, lower it and let go.

    Args:
        to_go: from the object to the target [m].
        height: of the hand, above the table, at which to let go [m].
        floor: height of the hand at which the object stands on the table [m].
        tolerance: of the object over the target before it is let go [m].
    """
    distance = float(np.linalg.norm(to_go))
    z = float(hand.position[2])
    if distance < tolerance and z < height + 0.010:
        return move(hand, np.array([*to_go, height - z]), gripper=OPEN)
    goal_z = height + 0.09 * ramp(distance, tolerance, 0.08)
    freedom = max(ramp(z, floor + 0.01, floor + 0.06), 1.0 - ramp(distance, 0.02, 0.05), 0.05)  # lift first
    return move(hand, np.array([*(freedom * to_go), goal_z - z]), gripper=CLOSED)


def retreat(
    hand: Hand, *, width: float, to_go: Float[np.ndarray, "2"], height: float
) -> Float32[np.ndarray, "7"]:
    """Open the fingers around what is in place, keeping it there until they are clear; then rise and stay.

    Args:
        width: of what the fingers held [m].
        to_go: from the object to the target [m].
        height: to rise to [m].
    """
    if hand.gap < width + 0.012:
        return move(hand, np.array([*to_go, 0.0]), gripper=OPEN)
    return move(hand, np.array([0.0, 0.0, height - hand.position[2]]), gripper=OPEN)
