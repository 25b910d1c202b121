"""Put one named object on top of another."""

from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from envs.tabletop.experts import Hand, approach, carry, holds, retreat
from envs.tabletop.layout import draw_names, scatter
from envs.tabletop.randomization import Level
from envs.tabletop.scene_state import SceneState
from envs.tabletop.tasks.base import (
    Goal,
    Places,
    Task,
    add_objects,
    grasp_of,
    is_settled,
    standing_grasp_height,
)

_BASES = ("cube",)  # what is flat and wide enough to stand on
_TOPS = ("cube", "brick")  # what lies on something without toppling
_MAX_OFFSET_M = 0.030  # of the upper object's middle from the lower one's
_MAX_HEIGHT_ERROR_M = 0.012


class Stack(Task):
    """Set the named object on top of another named object, let go, and have it stay there."""

    name: ClassVar[str] = "stack"
    max_steps: ClassVar[int] = 150

    def lay_out(self, scene: SceneState, rng: np.random.Generator, level: Level) -> list[Goal]:
        """Stand three or four objects on the table, at least two of them cubes."""
        count = int(rng.integers(3, 5))
        places = scatter(rng, count=count, low=(0.41, -0.17), high=(0.61, 0.17), spacing=0.115)
        add_objects(scene, rng, level, self._draw_names(rng, count), places)
        objects = scene.objects
        return [
            Goal(object_slot=top.slot, target=base.slot)
            for top in objects
            for base in objects
            if top is not base and top.shape in _TOPS and base.shape in _BASES
        ]

    def _draw_names(self, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
        while True:
            names = draw_names(rng, count=count, same_color_share=self.same_color_share)
            shapes = [shape for _, shape in names]
            num_bases, num_tops = (sum(shape in group for shape in shapes) for group in (_BASES, _TOPS))
            if num_bases >= 2 or (num_bases == 1 and num_tops >= 3):
                return names

    def words(self, scene: SceneState, goal: Goal) -> dict[str, str]:
        """Name the upper and the lower object."""
        return {"object": scene.objects[goal.object_slot].name, "target": scene.objects[goal.target].name}

    def _is_there(self, scene: SceneState, goal: Goal) -> bool:
        offset = scene.object_position(goal.object_slot) - scene.object_position(goal.target)
        height = (
            scene.objects[goal.object_slot].form.half_height + scene.objects[goal.target].form.half_height
        )
        return bool(
            np.linalg.norm(offset[:2]) < _MAX_OFFSET_M and abs(offset[2] - height) < _MAX_HEIGHT_ERROR_M
        )

    def places(self, scene: SceneState, goal: Goal) -> Places:
        """Return the upper object, and its place on the lower one."""
        form, base = scene.objects[goal.object_slot].form, scene.objects[goal.target].form
        height = np.array([0.0, 0.0, form.half_height + base.half_height])
        return Places(
            object=scene.object_position(goal.object_slot), goal=scene.object_position(goal.target) + height
        )

    def is_reached(self, scene: SceneState, hand: Hand, goal: Goal) -> bool:
        """Whether the upper object lies still on the lower one, let go."""
        return self._is_there(scene, goal) and is_settled(scene, goal.object_slot)

    def expert(self, scene: SceneState, hand: Hand, goal: Goal) -> Float32[np.ndarray, "7"]:
        """Grasp, carry high over the lower object, set down, let go, rise."""
        grasp = grasp_of(scene, goal.object_slot)
        base = scene.object_position(goal.target)
        to_go = (base - scene.object_position(goal.object_slot))[:2]
        holding = holds(hand, grasp)
        if self._is_there(scene, goal) and (not holding or float(np.linalg.norm(to_go)) < 0.018):
            return retreat(hand, width=grasp.width, to_go=to_go, height=0.22)
        if not holding:
            return approach(hand, grasp)
        floor = standing_grasp_height(scene, goal.object_slot)
        top = base[2] + scene.objects[goal.target].form.half_height
        return carry(hand, to_go=to_go, height=floor + top + 0.005, floor=floor, tolerance=0.010)
