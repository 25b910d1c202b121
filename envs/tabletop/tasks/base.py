"""What a tabletop task is: a way to lay out a scene, goals in it, words for them, an expert."""

import abc
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64

from envs.tabletop.experts import Grasp, Hand, wrapped
from envs.tabletop.randomization import Level, draw_tint
from envs.tabletop.scene_state import SceneState

MIN_GRASP_HEIGHT_M = 0.024  # of the point between the fingertips above the table


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """One goal that an instruction may name: indices of object and target, whose meaning the task knows."""

    object_slot: int = 0
    target: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where the hand begins: position [m], yaw [rad]; the gripper is open."""

    position: Float64[np.ndarray, "3"]
    yaw: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """What a task is about at this moment [m]: the middle of the object, and where it, or the hand, goes."""

    object: Float64[np.ndarray, "3"]
    goal: Float64[np.ndarray, "3"]


class Task(abc.ABC):
    """A kind of goal. Stateless: the scene is in `SceneState`, the choice in `Goal`.

    `same_color_share` is the share of the objects that take another's color, so that the shape word matters.
    """

    name: ClassVar[str]
    max_steps: ClassVar[int]

    def __init__(self, *, same_color_share: float) -> None:
        self.same_color_share = same_color_share

    @abc.abstractmethod
    def lay_out(self, scene: SceneState, rng: np.random.Generator, level: Level) -> list[Goal]:
        """Furnish a cleared scene and return every goal that an instruction may name in it, at least two."""

    @abc.abstractmethod
    def words(self, scene: SceneState, goal: Goal) -> dict[str, str]:
        """Return what fills the instruction's template."""

    @abc.abstractmethod
    def places(self, scene: SceneState, goal: Goal) -> Places:
        """Return where the object is that the goal is about, and where it has to be."""

    @abc.abstractmethod
    def is_reached(self, scene: SceneState, hand: Hand, goal: Goal) -> bool:
        """Whether the goal is fulfilled right now."""

    @abc.abstractmethod
    def expert(self, scene: SceneState, hand: Hand, goal: Goal) -> Float32[np.ndarray, "7"]:
        """Return the expert's action for the present state."""

    def draw_start(self, rng: np.random.Generator) -> Start:
        """Draw where the hand begins: above the middle of the table."""
        return Start(
            position=rng.uniform([0.43, -0.10, 0.17], [0.55, 0.10, 0.22]), yaw=float(rng.uniform(-0.1, 0.1))
        )


def add_objects(
    scene: SceneState,
    rng: np.random.Generator,
    level: Level,
    names: list[tuple[str, str]],
    places: Float64[np.ndarray, "count 2"],
) -> None:
    """Stand objects at places, each turned a little."""
    for (color, shape), xy in zip(names, places, strict=True):
        yaw = float(rng.uniform(-0.35, 0.35))
        scene.add_object(color=color, shape=shape, xy=xy, yaw=yaw, tint=draw_tint(rng, level))


def grasp_of(scene: SceneState, slot: int) -> Grasp:
    """Return how to grip an object: across it, as low as the fingers fit."""
    form = scene.objects[slot].form
    middle = scene.object_position(slot)
    height = max(form.half_height, MIN_GRASP_HEIGHT_M) - form.half_height
    symmetry = np.pi if form.size[0] != form.size[1] else np.pi / 2
    yaw = wrapped(scene.object_yaw(slot), symmetry) if form.turns else 0.0
    return Grasp(position=middle + np.array([0.0, 0.0, height]), yaw=yaw, width=form.width)


def standing_grasp_height(scene: SceneState, slot: int) -> float:
    """Return how high above the table the fingers grip an object that stands on it [m]."""
    return max(scene.objects[slot].form.half_height, MIN_GRASP_HEIGHT_M)


def is_settled(scene: SceneState, slot: int) -> bool:
    """Whether an object has been let go and lies still."""
    return not scene.is_touched(slot) and scene.object_speed(slot) < 0.05
