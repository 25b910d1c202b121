"""Tasks that bring an object somewhere: push it onto a mat, place it in the bowl or on a mat."""

from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64

from envs.tabletop.experts import CLOSED, Hand, approach, carry, holds, move, retreat
from envs.tabletop.layout import MIN_SPACING_M, draw_names, scatter, scatter_with_free_ways
from envs.tabletop.randomization import Level, draw_tint
from envs.tabletop.scene import COLORS, MAT_HALF_SIZE, NUM_MATS
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

_CLEARANCE_M = 0.078  # of a pushed object's path from the other objects
_ON_TABLE_M = 0.015  # an object whose underside is below this stands on the table
BOWL = -1  # as a goal's target, instead of a mat's index


def _is_on_mat(scene: SceneState, slot: int, mat: int) -> bool:
    position = scene.object_position(slot)
    offset = np.abs(position - scene.mat_position(mat))[:2]
    low = position[2] - scene.objects[slot].form.half_height < _ON_TABLE_M
    return bool(low and (offset < MAT_HALF_SIZE).all())


def _draw_mat_colors(rng: np.random.Generator, stage_names: list[tuple[str, str]], count: int) -> list[str]:
    free = [color for color in COLORS if color not in {color for color, _ in stage_names}]
    return [str(color) for color in rng.permutation(free)[:count]]


def _draw_receptacle_places(rng: np.random.Generator) -> Float64[np.ndarray, "2 2"]:
    """Return two places, one at the robot's left and one at its right, in random order."""
    left = np.array([rng.uniform(0.45, 0.57), rng.uniform(0.148, 0.178)])
    right = np.array([rng.uniform(0.45, 0.57), -rng.uniform(0.148, 0.178)])
    return np.array([left, right]) if rng.random() < 0.5 else np.array([right, left])


class Push(Task):
    """Bring the named object's middle over the named mat, without lifting it.

    The fingers close on the object and slide it along.
    """

    name: ClassVar[str] = "push"
    max_steps: ClassVar[int] = 110
    shapes: ClassVar[tuple[str, ...]] = ("cube", "ball", "cylinder")

    def lay_out(self, scene: SceneState, rng: np.random.Generator, level: Level) -> list[Goal]:
        """Stand three objects between two mats.

        All of them are free to go to either mat, so that the layout does not give away which is meant.
        """
        mats, places = _draw_receptacle_places(rng), None
        while places is None:
            mats = _draw_receptacle_places(rng)
            places = scatter_with_free_ways(
                rng,
                count=3,
                low=(0.40, -0.065),
                high=(0.62, 0.065),
                targets=mats,
                spacing=MIN_SPACING_M,
                clearance=_CLEARANCE_M,
            )
        names = self._draw_names(rng)
        add_objects(scene, rng, level, names, places)
        for color, xy in zip(_draw_mat_colors(rng, names, NUM_MATS), mats, strict=True):
            scene.add_mat(color=color, xy=xy, tint=draw_tint(rng, level))
        return [Goal(object_slot=slot, target=mat) for slot in range(3) for mat in range(NUM_MATS)]

    def _draw_names(self, rng: np.random.Generator) -> list[tuple[str, str]]:
        while True:
            names = draw_names(rng, count=3, same_color_share=self.same_color_share)
            if all(shape in self.shapes for _, shape in names):
                return names

    def words(self, scene: SceneState, goal: Goal) -> dict[str, str]:
        """Name the object and the mat."""
        return {
            "object": scene.objects[goal.object_slot].name,
            "mat": f"{scene.mat_colors[goal.target]} mat",
        }

    def places(self, scene: SceneState, goal: Goal) -> Places:
        """Return the object, and the middle of the mat."""
        return Places(object=scene.object_position(goal.object_slot), goal=scene.mat_position(goal.target))

    def is_reached(self, scene: SceneState, hand: Hand, goal: Goal) -> bool:
        """Whether the object stands with its middle over the mat."""
        return _is_on_mat(scene, goal.object_slot, goal.target)

    def expert(self, scene: SceneState, hand: Hand, goal: Goal) -> Float32[np.ndarray, "7"]:
        """Grasp across the object as if to lift it, then slide it over the table, wherever its mat is.

        The grasp is that of the other tasks, so one policy for several of them learns it once.
        """
        grasp = grasp_of(scene, goal.object_slot)
        if not holds(hand, grasp):
            return approach(hand, grasp)
        to_go = (scene.mat_position(goal.target) - scene.object_position(goal.object_slot))[:2]
        height = standing_grasp_height(scene, goal.object_slot)
        return move(hand, np.array([*to_go, height - hand.position[2]]), gripper=CLOSED)


class Place(Task):
    """Set the named object down in the bowl or on the named mat and let go."""

    name: ClassVar[str] = "place"
    max_steps: ClassVar[int] = 140
    bowl_share: ClassVar[float] = 0.5  # of the scenes that have the bowl and one mat instead of two mats

    def lay_out(self, scene: SceneState, rng: np.random.Generator, level: Level) -> list[Goal]:
        """Stand three objects between two mats, or between the bowl and a mat."""
        receptacles = _draw_receptacle_places(rng)
        has_bowl = bool(rng.random() < self.bowl_share)
        places = scatter(
            rng,
            count=3,
            low=(0.40, -0.10),
            high=(0.62, 0.10),
            keep_off=tuple(receptacles),
            keep_off_distance=0.13,
        )
        names = draw_names(rng, count=3, same_color_share=self.same_color_share)
        add_objects(scene, rng, level, names, places)
        targets: list[int] = []
        colors = _draw_mat_colors(rng, names, NUM_MATS)
        for i, xy in enumerate(receptacles):
            if has_bowl and i == 0:
                scene.add_bowl(xy=xy)
                targets.append(BOWL)
            else:
                targets.append(scene.add_mat(color=colors[i], xy=xy, tint=draw_tint(rng, level)))
        return [Goal(object_slot=slot, target=target) for slot in range(3) for target in targets]

    def words(self, scene: SceneState, goal: Goal) -> dict[str, str]:
        """Name the object and say where it belongs."""
        where = "in the bowl" if goal.target == BOWL else f"on the {scene.mat_colors[goal.target]} mat"
        return {"object": scene.objects[goal.object_slot].name, "where": where}

    def _is_there(self, scene: SceneState, goal: Goal) -> bool:
        if goal.target != BOWL:
            return _is_on_mat(scene, goal.object_slot, goal.target)
        offset = scene.object_position(goal.object_slot) - scene.bowl_position()
        low = offset[2] - scene.objects[goal.object_slot].form.half_height < 0.028
        return bool(low and np.linalg.norm(offset[:2]) < 0.05)

    def places(self, scene: SceneState, goal: Goal) -> Places:
        """Return the object, and the middle of the mat or of the bowl's underside."""
        return Places(object=scene.object_position(goal.object_slot), goal=self._target(scene, goal))

    def _target(self, scene: SceneState, goal: Goal) -> Float64[np.ndarray, "3"]:
        return scene.bowl_position() if goal.target == BOWL else scene.mat_position(goal.target)

    def is_reached(self, scene: SceneState, hand: Hand, goal: Goal) -> bool:
        """Whether the object lies there, still, let go."""
        return self._is_there(scene, goal) and is_settled(scene, goal.object_slot)

    def expert(self, scene: SceneState, hand: Hand, goal: Goal) -> Float32[np.ndarray, "7"]:
        """Grasp, carry over, lower, let go, rise."""
        grasp = grasp_of(scene, goal.object_slot)
        to_go = (self._target(scene, goal) - scene.object_position(goal.object_slot))[:2]
        holding = holds(hand, grasp)
        if self._is_there(scene, goal) and (not holding or float(np.linalg.norm(to_go)) < 0.03):
            return retreat(hand, width=grasp.width, to_go=to_go, height=0.17)
        if not holding:
            return approach(hand, grasp)
        floor = standing_grasp_height(scene, goal.object_slot)
        height = floor + (0.034 if goal.target == BOWL else 0.006)
        return carry(hand, to_go=to_go, height=height, floor=floor, tolerance=0.015)
