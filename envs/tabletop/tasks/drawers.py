"""Open or close one of two drawers, named by its color."""

from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from envs.tabletop.experts import CLOSED, HOVER_M, Grasp, Hand, approach, holds, move, ramp
from envs.tabletop.layout import draw_names, scatter
from envs.tabletop.randomization import Level, draw_tint
from envs.tabletop.scene import COLORS, KNOB_HALF_SIZE, NUM_DRAWERS
from envs.tabletop.scene_state import SceneState
from envs.tabletop.tasks.base import Goal, Places, Start, Task, add_objects

OPEN_AT_M = 0.12  # a drawer counts as open from here on
CLOSED_AT_M = 0.010  # and as closed up to here
_PULL_TO_M = 0.140
_FINGER_HALF_DEPTH_M = 0.011
_CONTACT_M = KNOB_HALF_SIZE[0] + _FINGER_HALF_DEPTH_M  # of the hand's middle from the knob's when they touch


class _DrawerTask(Task):
    def words(self, scene: SceneState, goal: Goal) -> dict[str, str]:
        """Name the drawer."""
        return {"drawer": f"{scene.drawer_colors[goal.target]} drawer"}

    def draw_start(self, rng: np.random.Generator) -> Start:
        """Draw where the hand begins: above the table in front of the cabinet."""
        return Start(
            position=rng.uniform([0.48, -0.08, 0.18], [0.58, 0.08, 0.23]), yaw=float(rng.uniform(-0.1, 0.1))
        )

    def _add_cabinet(self, scene: SceneState, rng: np.random.Generator, level: Level) -> list[Goal]:
        front = np.array([rng.uniform(0.345, 0.375), rng.uniform(-0.05, 0.05)])
        colors = [str(color) for color in rng.permutation(list(COLORS))[:NUM_DRAWERS]]
        scene.add_cabinet(front=front, colors=colors, tint=draw_tint(rng, level))
        # One or two objects further out, where no drawer comes.
        count = int(rng.integers(1, 3))
        places = scatter(rng, count=count, low=(0.60, -0.20), high=(0.66, 0.20), spacing=0.12)
        free = [color for color in COLORS if color not in colors]
        names = draw_names(rng, count=count, same_color_share=self.same_color_share, colors=free)
        add_objects(scene, rng, level, names, places)
        return [Goal(target=i) for i in range(NUM_DRAWERS)]


def _knob_places(scene: SceneState, goal: Goal, *, opening: float) -> Places:
    """Return the knob of a drawer, and where it is when the drawer is pulled out so far [m]."""
    knob = scene.knob_position(goal.target)
    to_go = np.array([opening - scene.drawer_opening(goal.target), 0.0, 0.0])
    return Places(object=knob, goal=knob + to_go)


class OpenDrawer(_DrawerTask):
    """Pull the named drawer out by at least 12 cm."""

    name: ClassVar[str] = "open_drawer"
    max_steps: ClassVar[int] = 120

    def lay_out(self, scene: SceneState, rng: np.random.Generator, level: Level) -> list[Goal]:
        """Put the cabinet on the table with both drawers shut, or nearly."""
        goals = self._add_cabinet(scene, rng, level)
        for i in range(NUM_DRAWERS):
            scene.set_drawer(i, rng.uniform(0.0, 0.015))
        return goals

    def places(self, scene: SceneState, goal: Goal) -> Places:
        """Return the knob, and where it is when the drawer counts as open."""
        return _knob_places(scene, goal, opening=OPEN_AT_M)

    def is_reached(self, scene: SceneState, hand: Hand, goal: Goal) -> bool:
        """Whether the drawer is open."""
        return scene.drawer_opening(goal.target) >= OPEN_AT_M

    def expert(self, scene: SceneState, hand: Hand, goal: Goal) -> Float32[np.ndarray, "7"]:
        """Grasp the knob from above and pull."""
        knob = scene.knob_position(goal.target)
        grasp = Grasp(position=knob, yaw=0.0, width=2 * KNOB_HALF_SIZE[1])
        if not holds(hand, grasp):
            return approach(hand, grasp)
        to_go = _PULL_TO_M - scene.drawer_opening(goal.target)
        rise = float(knob[2] - hand.position[2])
        return move(hand, np.array([1.3 * to_go, 0.0, rise]), yaw_error=-hand.angles[2], gripper=CLOSED)


class CloseDrawer(_DrawerTask):
    """Push the named drawer in until at most 1 cm is left."""

    name: ClassVar[str] = "close_drawer"
    max_steps: ClassVar[int] = 120

    def lay_out(self, scene: SceneState, rng: np.random.Generator, level: Level) -> list[Goal]:
        """Put the cabinet on the table with both drawers pulled out."""
        goals = self._add_cabinet(scene, rng, level)
        for i in range(NUM_DRAWERS):
            scene.set_drawer(i, rng.uniform(0.08, 0.125))
        return goals

    def places(self, scene: SceneState, goal: Goal) -> Places:
        """Return the knob, and where it is when the drawer is closed."""
        return _knob_places(scene, goal, opening=0.0)

    def is_reached(self, scene: SceneState, hand: Hand, goal: Goal) -> bool:
        """Whether the drawer is closed."""
        return scene.drawer_opening(goal.target) <= CLOSED_AT_M

    def expert(self, scene: SceneState, hand: Hand, goal: Goal) -> Float32[np.ndarray, "7"]:
        """Lower the closed fingers in front of the knob and push."""
        knob = scene.knob_position(goal.target)
        x, y, z = hand.position - knob
        low = ramp(float(z), 0.012, 0.025)  # 0 when the fingertips are beside the knob, 1 when above it
        if x > 0.5 * _CONTACT_M and abs(y) < 0.025 and low < 1.0:
            to_go = -scene.drawer_opening(goal.target) - 0.010 - max(x - _CONTACT_M, 0.0)
            return move(
                hand, np.array([(1.0 - low) * to_go, -y, -z]), yaw_error=-hand.angles[2], gripper=CLOSED
            )
        offset = np.array([_CONTACT_M + 0.035 - x, -y])
        height = (HOVER_M + 0.01) * ramp(float(np.linalg.norm(offset)), 0.012, 0.05)
        return move(hand, np.array([*offset, height - z]), yaw_error=-hand.angles[2], gripper=CLOSED)
