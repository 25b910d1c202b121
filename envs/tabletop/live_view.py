"""A tabletop scene around an arm that moves elsewhere: a real one, or another simulator's.

The arm's measured joints are put into the scene, and its cameras draw what they would see there. So a policy
of the tabletop can drive an arm that stands at no table. Objects never move, hence tasks that touch them
(push, lift and so on) make no sense here. It imports no robot driver.
"""

from collections.abc import Mapping

import mujoco
import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from envs.base import require_choice
from envs.tabletop.arm import FINGER_JOINT_NAMES, JOINT_NAMES, MAX_OPENING
from envs.tabletop.control import angles_from_rotation
from envs.tabletop.env import TabletopEnv
from envs.tabletop.experts import Hand
from vla.spec import RobotSpec

TASKS = ("reach",)  # those whose objects stay where they are


class LiveView:
    """Draws the tabletop with its arm as measured, and judges where the hand is.

    Args:
        env: the scene, of a task of `TASKS`; `close` closes it.

    Raises:
        ValueError: the task moves objects.
    """

    def __init__(self, env: TabletopEnv) -> None:
        require_choice("task of a live view", env.task, TASKS)
        self._env = env
        self._model, self._data = env.scene()
        self._joints = [int(self._model.joint(name).qposadr[0]) for name in JOINT_NAMES]
        self._fingers = [int(self._model.joint(name).qposadr[0]) for name in FINGER_JOINT_NAMES]
        self._tcp = self._model.site("tcp").id
        self._held_periods = 0  # in a row, in which the goal held
        self.success = False  # whether it has held for as long as the task's own rule asks for

    @property
    def robot_spec(self) -> RobotSpec:
        """The tabletop's robot."""
        return self._env.robot_spec

    @property
    def instruction(self) -> str:
        """What the episode asks for."""
        return self._env.instruction

    def begin(self, *, seed: int) -> Float64[np.ndarray, "7"]:
        """Lay out a scene and return the joints [rad] that the arm starts from in it."""
        self._env.start_episode(seed=seed)
        self._held_periods, self.success = 0, False
        return self._data.qpos[self._joints].copy()

    def show(self, joints: Float[np.ndarray, "7"], opening: float) -> None:
        """Put the arm where it was measured: joints [rad], gripper opening in [0, 1]."""
        self._data.qpos[self._joints] = joints
        self._data.qpos[self._fingers] = opening * MAX_OPENING / 2
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)

    def frames(
        self, joints: Float[np.ndarray, "7"], opening: float, *, stamp: float
    ) -> tuple[Mapping[str, UInt8[np.ndarray, "h w 3"]], Mapping[str, float]]:
        """Return what every camera of the spec would see of the arm in this scene, and when that was [s]."""
        self.show(joints, opening)
        names = self.robot_spec.camera_names
        return {name: self._env.render_camera(name) for name in names}, dict.fromkeys(names, stamp)

    def note_period(self) -> None:
        """Count whether the goal holds now; once a control period, as in the simulated task."""
        self._held_periods = self._held_periods + 1 if self._env.goal_holds() else 0
        self.success = self.success or self._held_periods >= self._env.success_hold_steps

    def hand(self) -> Hand:
        """Return where the hand is shown."""
        rotation = self._data.site_xmat[self._tcp].reshape(3, 3)
        opening = float(np.clip(self._data.qpos[self._fingers].sum() / MAX_OPENING, 0.0, 1.0))
        return Hand(
            position=self._data.site_xpos[self._tcp].copy(),
            angles=angles_from_rotation(rotation),
            opening=opening,
        )

    def rotation(self) -> Float64[np.ndarray, "3 3"]:
        """Return the hand's axes in the base frame, as columns."""
        return self._data.site_xmat[self._tcp].reshape(3, 3).copy()

    def expert_chunk(self, hand: Hand, *, horizon: int) -> Float32[np.ndarray, "time 7"]:
        """Return the scripted expert's actions from a hand on, as if it followed them exactly."""
        actions = []
        for _ in range(horizon):
            action = self._env.expert_action_of(hand)
            actions.append(action)
            hand = Hand(
                position=hand.position + action[:3], angles=hand.angles + action[3:6], opening=hand.opening
            )
        return np.stack(actions)

    def close(self) -> None:
        """Close the scene; safe to call more than once."""
        self._env.close()
