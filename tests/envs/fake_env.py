"""A toy world that workers build in no time: a point that moves on a square to one of two goals.

Frames carry numbers: pixel (0, 0) holds the red goal (x, y) and the step, pixel (0, 1) the blue goal, so a
fake policy can see where to go and tests can see which step a frame shows.
"""

import errno
import os
import signal
import time

import numpy as np

from envs.base import ManipulationEnv
from vla.disk_faults import DiskFault
from vla.interface import Observation
from vla.spec import CameraSpec, Channel, RobotSpec

SPEC = RobotSpec(
    name="point",
    cameras=(CameraSpec(name="top", height=8, width=8), CameraSpec(name="side", height=8, width=8)),
    state=(Channel(name="x", unit="m", low=-1.0, high=2.0), Channel(name="y", unit="m", low=-1.0, high=2.0)),
    action=(
        Channel(name="x", unit="m", low=-0.05, high=0.05),
        Channel(name="y", unit="m", low=-0.05, high=0.05),
        Channel(name="gripper", unit="1", low=0.0, high=1.0),
    ),
    control_hz=20.0,
    action_convention="end_effector_delta",
    gripper_sign="positive_opens",
)
FACTORY = "fake_env:make_fake"


class PointEnv(ManipulationEnv):
    def __init__(self, *, task, level="train", broken=None, expert_fails=False, step_s=0.0):
        super().__init__(robot_spec=SPEC, task=task, max_steps=60)
        self.level, self.broken, self.expert_fails, self.step_s = level, broken, expert_fails, step_s
        self.seed = None

    def start_episode(self, *, seed=None, options=None):
        self.seed = seed
        if self.broken == "disk" and seed == 7:
            raise DiskFault(errno.ENOSPC, "No space left on device", "videos/7.mp4")
        if self.broken == "reset" and seed == 7:
            raise RuntimeError("the table fell over")
        super().start_episode(seed=seed, options=options)

    def _reset_scene(self, options):
        self.goals = np.round(self.np_random.uniform(0, 1, (2, 2)) * 255) / 255
        self.color = int(self.np_random.integers(2))
        self.position = self.np_random.uniform(0, 1, 2)
        return f"go to {('red', 'blue')[self.color]}"

    def _apply(self, action):
        if self.broken == "die" and self.seed == 7 and self.num_steps == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.step_s)
        self.position = self.position + action[:2]

    def _goal_holds(self):
        return bool(np.linalg.norm(self.position - self.goals[self.color]) < 0.05)

    def read_state(self):
        return self.position.astype(np.float32)

    def render_camera(self, name):
        frame = np.zeros((8, 8, 3), np.uint8)
        frame[0, :2, :2] = np.round(self.goals * 255)
        frame[0, 0, 2] = self.num_steps
        frame[0, 1, 2] = SPEC.camera_names.index(name)
        return frame

    def render_video_frame(self):
        frame = np.zeros((31, 41, 3), np.uint8)
        frame[..., 0] = 4 * self.num_steps
        return frame

    def swapped_instruction(self):
        return f"go to {('red', 'blue')[1 - self.color]}"

    def expert_action(self):
        if self.expert_fails and self.seed % 3 == 0:
            return np.zeros(3, np.float32)
        return toward(self.goals[self.color], self.position)


def toward(goal, position):
    return np.append(np.clip(goal - position, -0.05, 0.05), 1.0).astype(np.float32)


def make_fake(config):
    return PointEnv(**config)


class PointPolicy:
    """Does what it is told, by what it sees; told nothing it stays where it is."""

    def __init__(self, *, frame_offsets=(0,), action_horizon=8, always=None):
        self.robot_spec, self.frame_offsets, self.action_horizon = SPEC, frame_offsets, action_horizon
        self.always = always
        self.seen: list[Observation] = []
        self.batch_sizes: list[int] = []

    def predict(self, observations):
        self.seen.extend(observations)
        self.batch_sizes.append(len(observations))
        return np.stack([self.chunk(observation) for observation in observations])

    def chunk(self, observation):
        position = observation.state.astype(float)
        goals = observation.images["top"][-1, 0, :2, :2] / 255
        told = self.always or observation.instruction.removeprefix("go to ")
        actions = []
        for _ in range(self.action_horizon):
            goal = goals[("red", "blue").index(told)] if told else position
            actions.append(toward(goal, position))
            position = position + actions[-1][:2]
        return np.stack(actions)
