"""Meta-World's 50 tasks (arXiv:1910.10897, package `metaworld`) as environments of ours.

An adapter: scenes, physics and success are Meta-World's and untouched; seeding, units, pictures and
instructions are ours, and so are the experts of some tasks (experts.py). What it changes is said where it
does. Tasks and wordings are data in tasks.py and instructions.py.
"""

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import mujoco
import numpy as np
from jaxtyping import Float32, UInt8
from metaworld.env_dict import ENV_CLS_MAP
from metaworld.policies import ENV_POLICY_MAP
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from envs.base import ImageSize, ManipulationEnv, VideoSize, require_choice
from envs.metaworld.coarse_model import QUALITIES, model_to_draw
from envs.metaworld.experts import MENDED, mended_action
from envs.metaworld.instructions import phrase, wordings
from envs.metaworld.tasks import MT50, swapped_task
from envs.rendering import Renderer
from envs.view_geometry import render_with_geometry
from envs.wordings import Wording
from vla.geometry import ViewGeometry
from vla.registry import Choices, Range, check_settings
from vla.spec import CameraSpec, Channel, RobotSpec

CAMERAS = ("corner2", "topview", "gripperPOV", "corner", "corner3", "corner4", "behindGripper")
OPTIONS = ("wording",)
_UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")  # turned by half a turn here
# The view of Seo et al. 2022 (arXiv:2206.14244), which VLA papers use; the original is farther away.
_CORNER2_POSITION = (0.75, 0.075, 0.7)
_NUM_STATE = 4  # of Meta-World's observation: hand x, y, z [m] and gripper opening in [0, 1]


def make_robot_spec(simulation: SawyerXYZEnv, *, image_size: int, cameras: tuple[str, ...]) -> RobotSpec:
    """Return what Meta-World's robot looks like from outside; limits and rate are those of the simulation."""
    space = simulation._HAND_SPACE
    step = float(simulation.action_scale)
    return RobotSpec(
        name="sawyer_metaworld",
        cameras=tuple(CameraSpec(name=name, height=image_size, width=image_size) for name in cameras),
        state=(
            *(
                Channel(name=f"hand_{axis}", unit="m", low=float(space.low[i]), high=float(space.high[i]))
                for i, axis in enumerate("xyz")
            ),
            Channel(name="gripper_opening", unit="1", low=0.0, high=1.0),
        ),
        action=(
            *(Channel(name=f"delta_{axis}", unit="m", low=-step, high=step) for axis in "xyz"),
            Channel(name="gripper_effort", unit="1", low=-1.0, high=1.0),
        ),
        control_hz=1.0 / float(simulation.dt),
        action_convention="end_effector_delta",
        gripper_sign="positive_closes",
    )


def make_simulation(
    task: str, *, render_mode: str | None = None, camera_name: str | None = None, image_size: int = 480
) -> SawyerXYZEnv:
    """Return Meta-World's environment, its goal visible to the expert and its layout drawn from a seed.

    `render_mode`, `camera_name` and `image_size` [pixels] are for its own renderer, which ours replaces.
    """
    simulation = ENV_CLS_MAP[f"{task}-v3"](
        render_mode=render_mode, camera_name=camera_name, width=image_size, height=image_size
    )
    simulation._partially_observable = False
    del simulation.sawyer_observation_space  # cached for a hidden goal, which it would clip to zero
    simulation._set_task_called = True
    simulation._freeze_rand_vec = False
    simulation.seeded_rand_vec = True
    simulation.max_path_length = sys.maxsize  # our base class counts the steps
    simulation.model.camera("corner2").pos[:] = _CORNER2_POSITION
    return simulation


class MetaWorldEnv(ManipulationEnv):
    """A Sawyer arm with a gripper, one of Meta-World's 50 tasks, objects and goal placed by the seed.

    Actions move the commanded hand by x, y, z [m] and close the gripper with an effort in [-1, 1] (negative
    opens), at 80 Hz. The state is the hand's position [m] and the gripper's opening. An episode ends as soon
    as Meta-World reports success; several tasks do not hold it. The frames of the corner cameras, which
    Meta-World draws upside down, are turned by half a turn.

    Args:
        task: one of `TASKS`.
        render_mode: Gymnasium's; "rgb_array" makes `render` return the video frame.

    Raises:
        ValueError: the task is unknown, or a setting is not allowed.
    """

    TASKS: ClassVar[tuple[str, ...]] = MT50
    POINTS: ClassVar[tuple[str, ...]] = ("hand", "object", "goal", "other_object")
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 (gymnasium's)

    def __init__(
        self,
        *,
        task: str,
        image_size: ImageSize = 96,
        cameras: Annotated[Sequence[str], Choices(*CAMERAS), "of the robot; they alone are drawn"] = (
            "corner2",
        ),
        render_quality: Annotated[
            str, Choices(*QUALITIES), "simplified has a coarse robot and no shadows, fast no shadows"
        ] = "simplified",
        wording: Wording = "train",
        max_steps: Annotated[int, Range(1, 10**4), "control periods until an episode is truncated"] = 400,
        video_height: VideoSize = 240,
        video_width: VideoSize = 240,
        render_mode: str | None = None,
    ) -> None:
        require_choice("task", task, MT50)
        check_settings(MetaWorldEnv, {"image_size": image_size, "cameras": cameras}, where="env")
        if not cameras:
            raise ValueError(f"env.cameras is empty; name at least one of {CAMERAS}")
        wordings(task, wording)  # raises on an unknown one
        self._simulation = make_simulation(task)
        super().__init__(
            robot_spec=make_robot_spec(self._simulation, image_size=image_size, cameras=tuple(cameras)),
            task=task,
            max_steps=max_steps,
            success_hold_steps=1,
            render_mode=render_mode,
        )
        self.wording = wording
        self._expert = ENV_POLICY_MAP[f"{task}-v3"]()
        self._image_size, self._video_size = image_size, (video_height, video_width)
        self._drawn = model_to_draw(self._simulation.model, render_quality)
        self._renderer: Renderer | None = None  # made when first drawn with: much is done without pictures
        # From the actions of our spec to Meta-World's, which lie in [-1, 1].
        self._to_native = 1.0 / self.robot_spec.action_high.astype(np.float64)
        self._seen = np.zeros(39)  # Meta-World's last observation; the expert knows all of it
        self._reports_success = False
        self._swapped_instruction = ""

    @property
    def simulation(self) -> SawyerXYZEnv:
        """Meta-World's own environment, for those who compare with it."""
        return self._simulation

    def _reset_scene(self, options: dict[str, Any]) -> str:
        for key in options:
            require_choice("reset option", key, OPTIONS)
        wording = options.get("wording", self.wording)
        index = int(self.np_random.integers(1000))
        instruction = phrase(self.task, wording, index)
        simulation = self._simulation
        simulation.seed(int(self.np_random.integers(2**31)))
        self._seen, _ = simulation.reset()
        # Meta-World moves bodies and goal after its last computation of poses: mend them and what it saw.
        mujoco.mj_kinematics(simulation.model, simulation.data)
        mujoco.mj_camlight(simulation.model, simulation.data)
        simulation._prev_obs = simulation._get_curr_obs_combined_no_goal()
        self._seen[:18] = self._seen[18:36] = simulation._prev_obs
        self._reports_success = False
        self._swapped_instruction = phrase(swapped_task(self.task), wording, index)
        return instruction

    def _apply(self, action: Float32[np.ndarray, " action"]) -> None:
        native = (action * self._to_native).astype(np.float32)
        self._seen, _, _, _, info = self._simulation.step(native)
        self._reports_success = bool(info["success"])

    def _goal_holds(self) -> bool:
        return self._reports_success

    def expert_action(self) -> Float32[np.ndarray, " action"]:
        """Return the action of our expert for the task, else of Meta-World's script, within the limits."""
        if self.task in MENDED:
            native = mended_action(self.task, self._seen)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns that actions will be clipped
                native = self._expert.get_action(self._seen)
        return (np.clip(native, -1.0, 1.0) / self._to_native).astype(np.float32)

    def swapped_instruction(self) -> str:
        """Return the instruction of another task: of the same scene, or of one that looks alike.

        What it asks for may be impossible in this scene, or fulfilled from the start.
        """
        return self._swapped_instruction

    def read_state(self) -> Float32[np.ndarray, " state"]:
        """Return hand position [m] and gripper opening."""
        space = self.observation_space["state"]  # pyright: ignore[reportIndexIssue]
        return np.clip(self._seen[:_NUM_STATE].astype(np.float32), space.low, space.high)

    def _ready_renderer(self) -> Renderer:
        self.require_reset("the first picture")
        if self._renderer is None:
            self._renderer = Renderer(
                model=self._drawn,
                max_height=max(self._image_size, self._video_size[0]),
                max_width=max(self._image_size, self._video_size[1]),
                share_context=True,
            )
        return self._renderer

    def _draw(self, camera: str, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
        frame = self._ready_renderer().render(
            self._simulation.data, camera_id=self._drawn.camera(camera).id, height=height, width=width
        )
        return np.ascontiguousarray(frame[::-1, ::-1]) if camera in _UPSIDE_DOWN else frame

    def render_camera(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """Return what a camera of the robot spec sees now."""
        require_choice("camera", name, self.robot_spec.camera_names)
        return self._draw(name, self._image_size, self._image_size)

    def render_with_geometry(self, name: str) -> tuple[UInt8[np.ndarray, "h w 3"], ViewGeometry]:
        """Return a picture, and in it the point between the fingertips, the goal and the task's objects.

        The objects are those that Meta-World tells its experts of: one, or two in some tasks.
        """
        require_choice("camera", name, self.robot_spec.camera_names)
        simulation = self._simulation
        objects = np.reshape(simulation._get_pos_objects(), (-1, 3))
        points: dict[str, np.ndarray] = {"hand": simulation.tcp_center}
        points |= zip(("object", "other_object"), objects, strict=False)
        if simulation._target_pos is not None:
            points["goal"] = simulation._target_pos
        return render_with_geometry(
            self._ready_renderer(),
            model=self._drawn,
            data=simulation.data,
            camera_id=self._drawn.camera(name).id,
            size=self._image_size,
            points=points,
            names=self.POINTS,
            upside_down=name in _UPSIDE_DOWN,
        )

    def render_video_frame(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return the view of `corner2`, larger, for people."""
        return self._draw("corner2", *self._video_size)

    def close(self) -> None:
        """Free the OpenGL context. Safe to call more than once."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
