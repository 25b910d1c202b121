"""Turns end-effector deltas into joint targets by differential inverse kinematics, within every limit.

The arm follows a commanded pose, which actions move. The commanded pose stays inside the workspace and near
the measured pose (`MAX_TRACKING_ERROR_M`), so that a blocked arm cannot wind it up. Each control period, mink
solves for joint velocities that respect the joint position and velocity limits; the servos get a ramp to the
result.
"""

from dataclasses import dataclass

import mink
import mujoco
import numpy as np
from jaxtyping import Float, Float64

from envs.tabletop.arm import (
    FINGER_JOINT_NAMES,
    HOME_JOINTS,
    JOINT_HIGH,
    JOINT_LOW,
    JOINT_NAMES,
    JOINT_SPEED,
    MAX_OPENING,
    NUM_JOINTS,
    SERVO_LAG_S,
    add_arm,
)
from envs.tabletop.scene import CONTROL_HZ, NUM_SUBSTEPS

WORKSPACE_LOW = np.array([0.32, -0.34, 0.014])  # of the commanded point between the fingertips [m]
WORKSPACE_HIGH = np.array([0.68, 0.34, 0.34])
ANGLE_LIMITS = np.array([0.5, 0.5, 1.6])  # of roll, pitch and yaw, zero pointing straight down [rad]
MAX_TRACKING_ERROR_M = 0.05  # between commanded and measured position
MAX_TRACKING_ERROR_RAD = 0.3  # between commanded and measured roll, pitch and yaw, each
MAX_ACCELERATION = 20.0  # of every joint's target [rad/s2]
# Of the published joint speeds; the rest is room for the servos' overshoot, largest in the weak wrist.
_SPEED_SHARES = (0.75, 0.75, 0.75, 0.75, 0.5, 0.5, 0.5)
_FINGER_STEP = 0.008  # largest change of a finger's target in one period [m]: fully open to closed in 0.25 s
_IK_ITERATIONS = 2
_LIMIT_MARGIN = 0.02  # from the joint limits [rad]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pose:
    """Position [m] of the point between the fingertips, and roll, pitch, yaw [rad]; all zero points down."""

    position: Float64[np.ndarray, "3"]
    angles: Float64[np.ndarray, "3"]


def rotation_from_angles(angles: Float[np.ndarray, "3"]) -> Float64[np.ndarray, "3 3"]:
    """Return the hand's orientation for roll, pitch and yaw about the base's axes, in that order."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(angles), np.sin(angles)
    tilted = np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )
    return tilted * np.array([1.0, -1.0, -1.0])  # times the rotation that points the hand down


def angles_from_rotation(rotation: Float[np.ndarray, "3 3"]) -> Float64[np.ndarray, "3"]:
    """Inverse of `rotation_from_angles` for tilts below 90 degrees."""
    tilted = rotation * np.array([1.0, -1.0, -1.0])
    return np.array(
        [
            np.arctan2(tilted[2, 1], tilted[2, 2]),
            np.arcsin(np.clip(-tilted[2, 0], -1.0, 1.0)),
            np.arctan2(tilted[1, 0], tilted[0, 0]),
        ]
    )


def _compile_arm() -> mujoco.MjModel:
    spec = mujoco.MjSpec()
    add_arm(spec, movable_fingers=False)
    return spec.compile()


class ArmController:
    """Keeps the commanded pose and drives the arm's servos toward it."""

    def __init__(self, *, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self._model, self._data = model, data
        self._joint_qpos = np.array([int(model.joint(name).qposadr[0]) for name in JOINT_NAMES])
        self._joint_dof = np.array([int(model.joint(name).dofadr[0]) for name in JOINT_NAMES])
        self._joint_ctrl = np.array([model.actuator(name).id for name in JOINT_NAMES])
        self._finger_qpos = np.array([int(model.joint(name).qposadr[0]) for name in FINGER_JOINT_NAMES])
        self._finger_ctrl = np.array([model.actuator(name).id for name in FINGER_JOINT_NAMES])
        self._tcp_site = model.site("tcp").id
        arm = _compile_arm()
        self._configuration = mink.Configuration(arm)
        self._frame_task = mink.FrameTask(
            frame_name="tcp", frame_type="site", position_cost=1.0, orientation_cost=0.3, lm_damping=1e-6
        )
        self._posture_task = mink.PostureTask(model=arm, cost=2e-3)
        speeds = {
            name: np.array([share * speed])
            for name, share, speed in zip(JOINT_NAMES, _SPEED_SHARES, JOINT_SPEED, strict=True)
        }
        self._limits = [
            mink.ConfigurationLimit(model=arm, min_distance_from_limits=_LIMIT_MARGIN),
            mink.VelocityLimit(arm, speeds),
        ]
        self._configuration.update(np.array(HOME_JOINTS))
        self._posture_task.set_target(np.array(HOME_JOINTS))
        self.commanded = self._pose_of(self._configuration.data, arm.site("tcp").id)
        self._finger_target = MAX_OPENING / 2
        self._last_travel = np.zeros(NUM_JOINTS)  # of the joint targets in the last period [rad]

    @staticmethod
    def _pose_of(data: mujoco.MjData, site: int) -> Pose:
        rotation = data.site_xmat[site].reshape(3, 3)
        return Pose(position=data.site_xpos[site].copy(), angles=angles_from_rotation(rotation))

    def measured(self) -> Pose:
        """Where the hand is now."""
        return self._pose_of(self._data, self._tcp_site)

    def opening(self) -> float:
        """How far the gripper is open: 0 closed, 1 open."""
        return float(np.clip(self._data.qpos[self._finger_qpos].sum() / MAX_OPENING, 0.0, 1.0))

    def joint_speeds(self) -> Float64[np.ndarray, "7"]:
        """Measured joint velocities [rad/s]."""
        return self._data.qvel[self._joint_dof].copy()

    def place_at(self, *, position: Float[np.ndarray, "3"], yaw: float, opening: float) -> None:
        """Put the arm, at rest, into a pose that points down. Call after the data has been reset."""
        self.commanded = Pose(position=np.array(position, dtype=float), angles=np.array([0.0, 0.0, yaw]))
        self._configuration.update(np.array(HOME_JOINTS))
        for _ in range(12):
            # Long periods, so that the speed limit does not bind.
            self._solve(period_s=1.0)
        self._finger_target = opening * MAX_OPENING / 2
        self._data.qpos[self._joint_qpos] = self._configuration.q
        self._data.ctrl[self._joint_ctrl] = self._configuration.q
        self._data.qpos[self._finger_qpos] = self._finger_target
        self._data.ctrl[self._finger_ctrl] = self._finger_target
        self._data.qvel[self._joint_dof] = 0.0
        self._last_travel = np.zeros(NUM_JOINTS)

    def _solve(self, *, period_s: float) -> None:
        target = mink.SE3.from_rotation_and_translation(
            mink.SO3.from_matrix(rotation_from_angles(self.commanded.angles)), self.commanded.position
        )
        self._frame_task.set_target(target)
        velocity = mink.solve_ik(
            self._configuration,
            [self._frame_task, self._posture_task],
            period_s,
            solver="daqp",
            damping=1e-6,
            limits=self._limits,
        )
        joints = self._configuration.q + velocity * period_s
        low, high = np.array(JOINT_LOW) + _LIMIT_MARGIN, np.array(JOINT_HIGH) - _LIMIT_MARGIN
        self._configuration.update(np.clip(joints, low, high))

    def apply(self, action: Float[np.ndarray, "7"]) -> None:
        """Move the commanded pose by an action and run the physics for one control period."""
        measured = self.measured()
        position = self.commanded.position + action[:3]
        stretch = position - measured.position
        distance = float(np.linalg.norm(stretch))
        if distance > MAX_TRACKING_ERROR_M:
            position = measured.position + stretch * (MAX_TRACKING_ERROR_M / distance)
        angles = self.commanded.angles + action[3:6]
        turn = np.clip(angles - measured.angles, -MAX_TRACKING_ERROR_RAD, MAX_TRACKING_ERROR_RAD)
        angles = measured.angles + turn
        self.commanded = Pose(
            position=np.clip(position, WORKSPACE_LOW, WORKSPACE_HIGH),
            angles=np.clip(angles, -ANGLE_LIMITS, ANGLE_LIMITS),
        )
        self._track_commanded()
        wanted = float(action[6]) * MAX_OPENING / 2
        finger_start = self._finger_target
        self._finger_target = float(np.clip(wanted, finger_start - _FINGER_STEP, finger_start + _FINGER_STEP))
        self._run_servos(self._configuration.q.copy(), finger_start)

    def _track_commanded(self) -> None:
        """Move the joint targets toward the commanded pose, by as much as one period allows."""
        before = self._configuration.q.copy()
        for _ in range(_IK_ITERATIONS):
            self._solve(period_s=1.0 / CONTROL_HZ / _IK_ITERATIONS)
        # No joint target changes its speed faster than MAX_ACCELERATION.
        change = MAX_ACCELERATION / CONTROL_HZ**2
        travel = np.clip(
            self._configuration.q - before, self._last_travel - change, self._last_travel + change
        )
        # A blocked joint must not wind up: freed, the servo closes a lead at the speed lead / SERVO_LAG_S.
        expected = self._data.qpos[self._joint_qpos] + self._data.qvel[self._joint_dof] / CONTROL_HZ
        lead = 0.9 * SERVO_LAG_S * np.array(JOINT_SPEED)
        joints = np.clip(before + travel, expected - lead, expected + lead)
        self._configuration.update(np.clip(joints, JOINT_LOW, JOINT_HIGH))
        self._last_travel = self._configuration.q - before

    def _run_servos(self, joints: Float[np.ndarray, "7"], finger_start: float) -> None:
        start = self._data.ctrl[self._joint_ctrl].copy()
        for k in range(1, NUM_SUBSTEPS + 1):
            share = k / NUM_SUBSTEPS
            self._data.ctrl[self._joint_ctrl] = start + share * (joints - start)
            self._data.ctrl[self._finger_ctrl] = finger_start + share * (self._finger_target - finger_start)
            mujoco.mj_step(self._model, self._data)
        # Positions of bodies and sites as of the new joint angles, for whoever looks next.
        mujoco.mj_kinematics(self._model, self._data)
