"""Experts of ours for eight tasks whose scripted policy in Meta-World does not recover, or hesitates.

Meta-World's scripts begin to close the gripper on the way down, many never open it again, and most turn
around within two or three centimeters: from where a policy fails, some of them fail too
(experiments/results/metaworld.md). These wait until the gripper holds, open it before every attempt, and go
on within wider bounds than they begin. They know what the scripts know (hand, opening of the gripper, object
and goal) and remember nothing, so they can take over anywhere. Positions are in meters in the world's frame.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

Point = Float64[np.ndarray, "3"]
Move = tuple[Point, float]  # where to move the hand, and the effort of the gripper in [-1, 1]; negative opens

_GAIN = 10.0  # of actions in [-1, 1] per meter
_OPEN = 0.9  # opening from which on the gripper counts as open
_STEP = 0.1  # how far ahead of the hand to aim for its full speed


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What an expert is told: hand, opening of the gripper in [0, 1], object and goal."""

    hand: Point
    opening: float
    thing: Point
    goal: Point


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grip:
    """How to take an object: from above, straight down, and not before the gripper is open.

    Args:
        offset: of the hand to the object.
        closed: opening below which the object is held.
        clearance: height above the object from which to go down.
    """

    offset: tuple[float, float, float]
    closed: float
    clearance: float = 0.1

    def approach(self, scene: Scene) -> Move | None:
        """Return how to get hold of the object, or None if it is held."""
        at = scene.thing + np.array(self.offset)
        aside, above = float(np.linalg.norm((scene.hand - at)[:2])), float(scene.hand[2] - at[2])
        if aside < 0.04 and abs(above) < 0.03 and scene.opening < self.closed:
            return None
        if aside < 0.024 and abs(above) < 0.015:
            return at, 1.0  # close, and wait
        high = above > 0.7 * self.clearance
        if aside < (0.012 if high else 0.024) and (scene.opening > _OPEN or above > 0.05):
            return at, -1.0
        column = at if aside < 0.012 or high else scene.hand  # rise first, so as not to push the object
        return np.array([*column[:2], at[2] + self.clearance]), -1.0


def _up(scene: Scene) -> Point:
    return scene.hand + np.array([0.0, 0.0, _STEP])


_WRENCH = _Grip(offset=(-0.018, 0.0, 0.042), closed=0.65)


def _assembly(scene: Scene) -> Move:
    if approach := _WRENCH.approach(scene):
        return approach
    missing = (scene.goal + np.array([0.13, 0.0, 0.0]) - scene.thing)[:2]  # the ring is beside the handle
    around = scene.thing[2] < scene.goal[2] + 0.07
    if np.linalg.norm(missing) < (0.03 if around else 0.012):
        return np.array([*(scene.hand[:2] + missing), scene.hand[2] - _STEP]), 1.0
    height = scene.goal[2] + 0.15
    return np.array([*(scene.hand[:2] if around else scene.hand[:2] + missing), height]), 1.0


def _disassemble(scene: Scene) -> Move:
    return _WRENCH.approach(scene) or (_up(scene), 1.0)


def _handle_pull_side(scene: Scene) -> Move:
    approach = _Grip(offset=(0.0, 0.0, 0.0), closed=0.75, clearance=0.07).approach(scene)
    # Slowly, or the handle, which is stiff, slips out of the fingers.
    return approach or (scene.thing + np.array([0.0, 0.0, 0.045]), 1.0)


def _lever_pull(scene: Scene) -> Move:
    """Push the lever up from below, with the closed gripper."""
    at = scene.thing + np.array([0.0, -0.055, 0.0])
    off = scene.hand - at
    if -0.04 < off[1] < 0.03 and -0.13 < off[2] < 0.05 and abs(off[0]) < (0.012 if off[2] < -0.085 else 0.05):
        return at + np.array([0.0, 0.05, 0.02]), 1.0
    if off[2] < -0.07:
        return at + np.array([0.0, 0.0, -0.1]), 1.0
    back = at + np.array([0.0, -0.06, 0.0])  # not from above, which would press it down
    return np.array([*back[:2], scene.hand[2] if off[1] > -0.035 else at[2] - 0.1]), 1.0


def _peg_insert_side(scene: Scene) -> Move:
    if approach := _Grip(offset=(0.0, 0.0, 0.028), closed=0.36).approach(scene):
        return approach
    missing = scene.goal - scene.thing
    enters = scene.thing[0] < scene.goal[0] + 0.24
    if np.linalg.norm(missing[1:]) < (0.03 if enters else 0.01):
        return scene.hand + np.array([-1.5 * _STEP, *missing[1:]]), 1.0
    return scene.hand + missing + np.array([0.3, 0.0, 0.0]), 1.0  # before the hole


def _pick_out_of_hole(scene: Scene) -> Move:
    if approach := _Grip(offset=(0.0, 0.0, 0.028), closed=0.62).approach(scene):
        return approach
    in_hole = np.linalg.norm((scene.hand - scene.goal)[:2]) > 0.1 and scene.hand[2] < scene.goal[2] - 0.06
    return (_up(scene) if in_hole else scene.hand + scene.goal - scene.thing), 1.0


def _push_back(scene: Scene) -> Move:
    approach = _Grip(offset=(0.0, 0.0, 0.045), closed=0.62).approach(scene)
    return approach or (np.array([*(scene.hand + scene.goal - scene.thing)[:2], 0.085]), 1.0)


def _soccer(scene: Scene) -> Move:
    """Carry the ball before the goal, which has no room for the hand, let go at rest, and push it in."""
    hand, ball = scene.hand, scene.thing
    missing = (scene.goal - ball)[:2]
    behind, aside = ball[1] - hand[1], abs(hand[0] - ball[0])
    approach = _Grip(offset=(0.0, 0.0, 0.045), closed=0.55).approach(scene)
    if approach is None:
        if abs(missing[0]) < 0.01 and missing[1] < 0.173:
            return hand, -1.0
        first = missing[1] < 0.16 and abs(missing[0]) > 0.03  # not along the front of the goal
        return np.array([hand[0] + (0.0 if first else missing[0]), hand[1] + missing[1] - 0.17, 0.075]), 1.0
    pushes = behind > 0.035 and aside < 0.02 and hand[2] < 0.08
    if abs(missing[0]) > (0.035 if pushes else 0.02) or missing[1] > (0.25 if pushes else 0.2):
        return approach
    if pushes:
        return np.array([ball[0] - 0.5 * missing[0], hand[1] + 0.04, 0.055]), 1.0
    if abs(behind - 0.065) < 0.015 and aside < 0.012:
        return np.array([ball[0], ball[1] - 0.065, 0.055]), 1.0
    if abs(behind) < 0.06 and aside < 0.06 and hand[2] < 0.09 and scene.opening < 0.85:
        return hand, -1.0
    if hand[2] < 0.12:
        return np.array([*hand[:2], 0.16]), -1.0
    return np.array([ball[0], ball[1] - 0.065, 0.15]), 1.0


_EXPERTS: Mapping[str, Callable[[Scene], Move]] = {
    "assembly": _assembly,
    "disassemble": _disassemble,
    "handle-pull-side": _handle_pull_side,
    "lever-pull": _lever_pull,
    "peg-insert-side": _peg_insert_side,
    "pick-out-of-hole": _pick_out_of_hole,
    "push-back": _push_back,
    "soccer": _soccer,
}
MENDED: tuple[str, ...] = tuple(_EXPERTS)


def mended_action(task: str, seen: Float64[np.ndarray, "39"]) -> Float64[np.ndarray, "4"]:
    """Return the action of our expert in Meta-World's units, in which movements are at most 1.

    Args:
        task: one of `MENDED`.
        seen: Meta-World's observation, of which hand, gripper, first object and goal count.
    """
    scene = Scene(hand=seen[:3], opening=float(seen[3]), thing=seen[4:7], goal=seen[-3:])
    target, effort = _EXPERTS[task](scene)
    return np.array([*np.clip(_GAIN * (target - scene.hand), -1.0, 1.0), effort])
