"""Tasks about one object among others: hold the hand over it, lift it."""

from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from envs.tabletop.experts import CLOSED, OPEN, Hand, approach, holds, move, ramp
from envs.tabletop.layout import draw_count, draw_names, scatter
from envs.tabletop.randomization import Level
from envs.tabletop.scene_state import SceneState
from envs.tabletop.tasks.base import Goal, Places, Task, add_objects, grasp_of

_AREA_LOW, _AREA_HIGH = (0.40, -0.21), (0.62, 0.21)  # [m]
REACH_ABOVE_M = 0.04  # the hand's place above an object's top
REACH_TOLERANCE_M = 0.03
LIFT_M = 0.06


class _SingleObjectTask(Task):
    def lay_out(self, scene: SceneState, rng: np.random.Generator, level: Level) -> list[Goal]:
        """Scatter three to five objects over the table."""
        count = draw_count(rng)
        places = scatter(rng, count=count, low=_AREA_LOW, high=_AREA_HIGH)
        add_objects(
            scene, rng, level, draw_names(rng, count=count, same_color_share=self.same_color_share), places
        )
        return [Goal(object_slot=slot) for slot in range(count)]

    def words(self, scene: SceneState, goal: Goal) -> dict[str, str]:
        """Name the object."""
        return {"object": scene.objects[goal.object_slot].name}


class Reach(_SingleObjectTask):
    """Hold the point between the fingertips 4 cm above the named object, within 3 cm."""

    name: ClassVar[str] = "reach"
    max_steps: ClassVar[int] = 60

    def _place(self, scene: SceneState, goal: Goal) -> np.ndarray:
        height = scene.objects[goal.object_slot].form.half_height + REACH_ABOVE_M
        return scene.object_position(goal.object_slot) + np.array([0.0, 0.0, height])

    def places(self, scene: SceneState, goal: Goal) -> Places:
        """Return the object, and where the hand has to be."""
        return Places(object=scene.object_position(goal.object_slot), goal=self._place(scene, goal))

    def is_reached(self, scene: SceneState, hand: Hand, goal: Goal) -> bool:
        """Whether the hand is over the object."""
        return bool(np.linalg.norm(hand.position - self._place(scene, goal)) < REACH_TOLERANCE_M)

    def expert(self, scene: SceneState, hand: Hand, goal: Goal) -> Float32[np.ndarray, "7"]:
        """Go straight there, from above at the end."""
        offset = self._place(scene, goal) - hand.position
        # Stay above the other objects until nearly over this one.
        offset[2] += 0.04 * ramp(float(np.linalg.norm(offset[:2])), 0.02, 0.08)
        return move(hand, offset, yaw_error=-hand.angles[2], gripper=OPEN)


class Lift(_SingleObjectTask):
    """Raise the named object by 6 cm."""

    name: ClassVar[str] = "lift"
    max_steps: ClassVar[int] = 100

    def places(self, scene: SceneState, goal: Goal) -> Places:
        """Return the object, and the height that it has to reach above where it is."""
        middle = scene.object_position(goal.object_slot)
        height = scene.objects[goal.object_slot].form.half_height + LIFT_M
        return Places(object=middle, goal=np.array([*middle[:2], height]))

    def is_reached(self, scene: SceneState, hand: Hand, goal: Goal) -> bool:
        """Whether the object is off the table by `LIFT_M`."""
        form = scene.objects[goal.object_slot].form
        return bool(scene.object_position(goal.object_slot)[2] - form.half_height > LIFT_M)

    def expert(self, scene: SceneState, hand: Hand, goal: Goal) -> Float32[np.ndarray, "7"]:
        """Grasp from above and rise."""
        grasp = grasp_of(scene, goal.object_slot)
        if not holds(hand, grasp):
            return approach(hand, grasp)
        return move(hand, np.array([0.0, 0.0, 0.15 - hand.position[2]]), gripper=CLOSED)
