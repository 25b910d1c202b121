"""A family of environments that is no part of the package: what a user writes, in one file."""

from typing import Annotated

import numpy as np

from envs.base import ImageSize, ManipulationEnv
from envs.registry import ENVIRONMENTS
from vla.registry import Range
from vla.spec import CameraSpec, Channel, RobotSpec

ENVIRONMENTS.add("toy", "toy_env:ToyEnv")


class ToyEnv(ManipulationEnv):
    """A point on a line that has to come to the right or to the left end."""

    TASKS = ("go_right", "go_left")

    def __init__(
        self,
        *,
        task: str,
        image_size: ImageSize = 16,
        speed: Annotated[float, Range(0, 1, open_low=True), "of the point, a period"] = 0.1,
    ) -> None:
        spec = RobotSpec(
            name="toy",
            cameras=(CameraSpec(name="top", height=image_size, width=image_size),),
            state=(Channel(name="x", unit="m", low=-1.0, high=1.0),),
            action=(Channel(name="dx", unit="m", low=-speed, high=speed),),
            control_hz=20.0,
            action_convention="end_effector_delta",
            gripper_sign="positive_opens",
        )
        super().__init__(robot_spec=spec, task=task, max_steps=60)
        self.speed, self.goal, self.x = speed, 1.0 if task == "go_right" else -1.0, 0.0

    def _reset_scene(self, options):
        self.x = float(self.np_random.uniform(-0.2, 0.2))
        return self.task.replace("_", " ")

    def _apply(self, action):
        self.x = float(np.clip(self.x + action[0], -1.0, 1.0))

    def _goal_holds(self):
        return abs(self.x - self.goal) < 0.1

    def read_state(self):
        return np.array([self.x], np.float32)

    def render_camera(self, name):
        return self.render_video_frame()

    def render_video_frame(self):
        size = self.robot_spec.cameras[0].height
        return np.full((size, size, 3), round(100 * (self.x + 1)), np.uint8)

    def swapped_instruction(self):
        return "go left" if self.goal > 0 else "go right"

    def expert_action(self):
        return np.array([np.sign(self.goal - self.x) * self.speed], np.float32)
