"""The tabletop environments: one robot arm, one scene, seven tasks, told apart by instructions."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, get_args

import mujoco
import numpy as np
from jaxtyping import Float32, UInt8

from envs.base import ImageSize, ManipulationEnv, VideoSize, require_choice
from envs.rendering import Renderer, RenderQuality, apply_quality
from envs.tabletop.control import WORKSPACE_HIGH, WORKSPACE_LOW, ArmController
from envs.tabletop.experts import MAX_STEP_M, MAX_TURN_RAD, Hand
from envs.tabletop.instructions import phrase, read_instruction, wordings
from envs.tabletop.randomization import Level, apply_look, checked_level, paint_textures
from envs.tabletop.scene import CONTROL_HZ, build_model
from envs.tabletop.scene_state import SceneState
from envs.tabletop.tasks.base import Goal, Task
from envs.tabletop.tasks.drawers import CloseDrawer, OpenDrawer
from envs.tabletop.tasks.mats import Place, Push
from envs.tabletop.tasks.single_object import Lift, Reach
from envs.tabletop.tasks.stack import Stack
from envs.view_geometry import render_with_geometry
from envs.wordings import Wording
from vla.errors import VLAError
from vla.geometry import ViewGeometry
from vla.registry import Choices, Range, check_settings
from vla.spec import CameraSpec, Channel, RobotSpec

CAMERAS = ("exterior", "wrist")
OPTIONS = ("wording", "instruction")
_TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Reach, Push, Lift, Place, Stack, OpenDrawer, CloseDrawer)
}
TASKS = tuple(_TASKS)
_STATE_MARGIN_M = 0.06  # how far the measured hand may be outside the commanded workspace


def make_robot_spec(*, image_size: int, cameras: tuple[str, ...]) -> RobotSpec:
    """Return what the tabletop robot looks like from outside."""
    low, high = WORKSPACE_LOW - _STATE_MARGIN_M, WORKSPACE_HIGH + _STATE_MARGIN_M
    positions = [
        Channel(name=f"tcp_{axis}", unit="m", low=float(low[i]), high=float(high[i]))
        for i, axis in enumerate("xyz")
    ]
    deltas = [Channel(name=f"delta_{axis}", unit="m", low=-MAX_STEP_M, high=MAX_STEP_M) for axis in "xyz"]
    turns = [
        Channel(name=f"delta_{angle}", unit="rad", low=-MAX_TURN_RAD, high=MAX_TURN_RAD)
        for angle in ("roll", "pitch", "yaw")
    ]
    return RobotSpec(
        name="fr3_tabletop",
        cameras=tuple(CameraSpec(name=name, height=image_size, width=image_size) for name in cameras),
        state=(
            *positions,
            Channel(name="yaw_sin", unit="1", low=-1.0, high=1.0),
            Channel(name="yaw_cos", unit="1", low=-1.0, high=1.0),
            Channel(name="gripper_opening", unit="1", low=0.0, high=1.0),
        ),
        action=(*deltas, *turns, Channel(name="gripper", unit="1", low=0.0, high=1.0)),
        control_hz=CONTROL_HZ,
        action_convention="end_effector_delta",
        gripper_sign="positive_opens",
    )


class GoalNotInScene(VLAError):
    """The scene of a seed has not the objects that an instruction names."""


class TabletopEnv(ManipulationEnv):
    """A Franka FR3 at a table with objects of several colors and shapes.

    Actions move the commanded pose by x, y, z [m] and roll, pitch, yaw [rad] about the base's axes and set
    the gripper's opening in [0, 1], at 20 Hz. The state is the point between the fingertips [m], sine and
    cosine of the hand's yaw, and the gripper's opening. The seed chooses one of the scene's goals, unless
    `reset(options={"instruction": "lift the red cube"})` names one.

    Args:
        task: one of `TASKS`.
        render_mode: Gymnasium's; "rgb_array" makes `render` return the video frame.

    Raises:
        ValueError: the task is unknown, or a setting is not allowed.
    """

    TASKS: ClassVar[tuple[str, ...]] = TASKS
    POINTS: ClassVar[tuple[str, ...]] = ("hand", "object", "goal")

    def __init__(
        self,
        *,
        task: str,
        image_size: ImageSize = 96,
        cameras: Annotated[Sequence[str], Choices(*CAMERAS), "of the robot; they alone are drawn"] = CAMERAS,
        render_quality: Annotated[
            str, Choices(*get_args(RenderQuality)), "full has shadows, multisampling and reflections"
        ] = "fast",
        level: Annotated[
            str, Choices(*get_args(Level)), "none is one look; the others vary textures, light and camera"
        ] = "train",
        wording: Wording = "train",
        same_color_share: Annotated[
            float, Range(0, 1), "share of the objects that take another's color"
        ] = 0.2,
        max_steps: Annotated[
            int | None, Range(1, 10**4), "control periods until an episode is truncated; null: the task's own"
        ] = None,
        video_height: VideoSize = 240,
        video_width: VideoSize = 320,
        render_mode: str | None = None,
    ) -> None:
        require_choice("task", task, TASKS)
        given = {"image_size": image_size, "cameras": cameras, "same_color_share": same_color_share}
        check_settings(TabletopEnv, given, where="env")
        if not cameras:
            raise ValueError(f"env.cameras is empty; name at least one of {CAMERAS}")
        self._task = _TASKS[task](same_color_share=same_color_share)
        super().__init__(
            robot_spec=make_robot_spec(image_size=image_size, cameras=tuple(cameras)),
            task=task,
            max_steps=self._task.max_steps if max_steps is None else max_steps,
            render_mode=render_mode,
        )
        wordings(task, wording)  # raises on an unknown one
        self.level: Level = checked_level(level)
        self.wording = wording
        self._image_size, self._video_size = image_size, (video_height, video_width)
        self._model = build_model()
        paint_textures(self._model)
        apply_quality(self._model, render_quality)
        self._data = mujoco.MjData(self._model)
        self._scene = SceneState(model=self._model, data=self._data)
        self._arm = ArmController(model=self._model, data=self._data)
        self._renderer: Renderer | None = None  # made when first drawn with: much is done without pictures
        self._goals: list[Goal] = []  # all that an instruction may name in this scene
        self._goal = Goal()
        self._swapped_instruction = ""

    def _reset_scene(self, options: dict[str, Any]) -> str:
        for key in options:
            require_choice("reset option", key, OPTIONS)
        wording = options.get("wording", self.wording)
        wordings(self.task, wording)
        # The task is part of the seed: the same seed gives different scenes in different tasks.
        rng = np.random.default_rng([int(self.np_random.integers(2**32)), TASKS.index(self.task)])
        self._scene.clear()
        apply_look(self._model, rng, self.level)
        self._goals = goals = self._task.lay_out(self._scene, rng, self.level)
        start = self._task.draw_start(rng)
        self._arm.place_at(position=start.position, yaw=start.yaw, opening=1.0)
        mujoco.mj_forward(self._model, self._data)
        self._goal = goals[int(rng.integers(len(goals)))]
        index = int(rng.integers(1000))
        sentence = options.get("instruction")
        if sentence is not None:
            self._goal = self._named_goal(sentence)
        hand = self.hand()
        others = [
            goal
            for goal in goals
            if goal != self._goal and not self._task.is_reached(self._scene, hand, goal)
        ]
        other = others[int(rng.integers(len(others)))]
        self._swapped_instruction = phrase(self.task, wording, index, self._task.words(self._scene, other))
        drawn = phrase(self.task, wording, index, self._task.words(self._scene, self._goal))
        return drawn if sentence is None else sentence

    def _named_goal(self, sentence: str) -> Goal:
        """Return the goal of this scene that a sentence names."""
        task, words = read_instruction(str(sentence))
        for goal in self._goals if task == self.task else ():
            if self._task.words(self._scene, goal) == words:
                return goal
        there = [phrase(self.task, "train", 0, self._task.words(self._scene, goal)) for goal in self._goals]
        raise GoalNotInScene(f"{sentence!r} names no goal of this scene of {self.task!r}; there are {there}")

    def _apply(self, action: Float32[np.ndarray, " action"]) -> None:
        self._arm.apply(action.astype(np.float64))

    def _goal_holds(self) -> bool:
        return self._task.is_reached(self._scene, self.hand(), self._goal)

    def hand(self) -> Hand:
        """Return where the hand is, measured."""
        pose = self._arm.measured()
        return Hand(position=pose.position, angles=pose.angles, opening=self._arm.opening())

    def expert_action(self) -> Float32[np.ndarray, " action"]:
        """Return the scripted expert's action for the present state."""
        return self.expert_action_of(self.hand())

    def expert_action_of(self, hand: Hand) -> Float32[np.ndarray, " action"]:
        """Return the scripted expert's action for a hand that is somewhere else in the present scene."""
        return self._task.expert(self._scene, hand, self._goal)

    def goal_holds(self) -> bool:
        """Whether the goal is fulfilled at this moment."""
        return self._goal_holds()

    def scene(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Return the model and its state: for those who move the arm by other means (live_view.py)."""
        return self._model, self._data

    def swapped_instruction(self) -> str:
        """Return the same wording for another goal of this scene, one that was not fulfilled at reset."""
        return self._swapped_instruction

    def joint_speeds(self) -> np.ndarray:
        """Return the arm's measured joint velocities [rad/s]."""
        return self._arm.joint_speeds()

    def read_state(self) -> Float32[np.ndarray, " state"]:
        """Return hand position [m], sine and cosine of its yaw, and gripper opening."""
        hand = self.hand()
        yaw = hand.angles[2]
        state = np.array([*hand.position, np.sin(yaw), np.cos(yaw), hand.opening], dtype=np.float32)
        space = self.observation_space["state"]  # pyright: ignore[reportIndexIssue]
        return np.clip(state, space.low, space.high)

    def _ready_renderer(self) -> Renderer:
        self.require_reset("the first picture")
        if self._renderer is None:
            self._renderer = Renderer(
                model=self._model,
                max_height=max(self._image_size, self._video_size[0]),
                max_width=max(self._image_size, self._video_size[1]),
            )
        return self._renderer

    def _draw(self, camera: str, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
        renderer, camera_id = self._ready_renderer(), self._model.camera(camera).id
        return renderer.render(self._data, camera_id=camera_id, height=height, width=width)

    def render_camera(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """Return what a camera of the robot spec sees now."""
        require_choice("camera", name, self.robot_spec.camera_names)
        return self._draw(name, self._image_size, self._image_size)

    def render_with_geometry(self, name: str) -> tuple[UInt8[np.ndarray, "h w 3"], ViewGeometry]:
        """Return a picture, and in it the point between the fingertips, the named object and its goal."""
        require_choice("camera", name, self.robot_spec.camera_names)
        renderer = self._ready_renderer()
        places = self._task.places(self._scene, self._goal)
        return render_with_geometry(
            renderer,
            model=self._model,
            data=self._data,
            camera_id=self._model.camera(name).id,
            size=self._image_size,
            points={"hand": self.hand().position, "object": places.object, "goal": places.goal},
            names=self.POINTS,
        )

    def render_video_frame(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return the exterior view, larger, for people."""
        return self._draw("exterior", *self._video_size)

    def close(self) -> None:
        """Free the OpenGL context. Safe to call more than once."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
