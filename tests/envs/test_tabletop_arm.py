"""The arm against Franka's published numbers, and the controller against its limits."""

import mujoco
import numpy as np
import pytest

from envs.tabletop.arm import (
    FLANGE_OFFSET,
    HOME_JOINTS,
    JOINT_NAMES,
    JOINT_SPEED,
    LINK_FRAMES,
    MAX_OPENING,
    TCP_OFFSET,
)
from envs.tabletop.control import (
    MAX_TRACKING_ERROR_M,
    WORKSPACE_HIGH,
    WORKSPACE_LOW,
    angles_from_rotation,
    rotation_from_angles,
)
from envs.tabletop.env import TASKS, TabletopEnv
from envs.tabletop.scene import build_model

# Franka Robotics, FR3: "Robot and interface specifications", joint space limits.
PUBLISHED_LOW = [-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159]
PUBLISHED_HIGH = [2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159]
PUBLISHED_SPEED = [2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26]


@pytest.fixture(scope="module")
def model():
    return build_model()


def craig(a, d, alpha, theta):
    """One link's transform from the textbook, independent of how the model is written."""
    ca, sa, ct, st = np.cos(alpha), np.sin(alpha), np.cos(theta), np.sin(theta)
    return np.array(
        [
            [ct, -st, 0, a],
            [st * ca, ct * ca, -sa, -d * sa],
            [st * sa, ct * sa, ca, d * ca],
            [0, 0, 0, 1],
        ]
    )


def test_joint_limits_are_the_published_ones(model):
    ranges = np.array([model.joint(name).range for name in JOINT_NAMES])
    np.testing.assert_allclose(ranges[:, 0], PUBLISHED_LOW)
    np.testing.assert_allclose(ranges[:, 1], PUBLISHED_HIGH)
    np.testing.assert_allclose(JOINT_SPEED, PUBLISHED_SPEED)
    assert all(model.joint(name).limited for name in JOINT_NAMES)


def test_link_lengths_are_the_published_ones():
    assert [frame.a for frame in LINK_FRAMES] == [0, 0, 0, 0.0825, -0.0825, 0, 0.088]
    assert [frame.d for frame in LINK_FRAMES] == [0.333, 0, 0.316, 0, 0.384, 0, 0]
    assert FLANGE_OFFSET == 0.107


@pytest.mark.parametrize("seed", range(5))
def test_compiled_kinematics_follow_the_published_table(model, seed):
    joints = np.random.default_rng(seed).uniform(PUBLISHED_LOW, PUBLISHED_HIGH)
    data = mujoco.MjData(model)
    for name, angle in zip(JOINT_NAMES, joints, strict=True):
        data.joint(name).qpos[0] = angle
    mujoco.mj_kinematics(model, data)
    pose = np.eye(4)
    for frame, angle in zip(LINK_FRAMES, joints, strict=True):
        pose = pose @ craig(frame.a, frame.d, frame.alpha, angle)
    expected = pose @ np.array([0, 0, FLANGE_OFFSET + TCP_OFFSET, 1])
    np.testing.assert_allclose(data.site("tcp").xpos, expected[:3], atol=1e-9)


def test_angles_and_rotation_are_inverse():
    for angles in np.random.default_rng(0).uniform(-0.6, 0.6, (20, 3)):
        np.testing.assert_allclose(angles_from_rotation(rotation_from_angles(angles)), angles, atol=1e-12)
    np.testing.assert_allclose(rotation_from_angles(np.zeros(3))[:, 2], [0, 0, -1])


def test_home_pose_lies_within_the_limits():
    assert (np.array(HOME_JOINTS) > PUBLISHED_LOW).all()
    assert (np.array(HOME_JOINTS) < PUBLISHED_HIGH).all()


def test_gripper_opens_eight_centimeters():
    env = TabletopEnv(task="reach")
    env.start_episode(seed=0)
    action = np.zeros(7, np.float32)
    for command in (1.0, 0.0):
        action[6] = command
        for _ in range(12):
            env.advance(action)
        fingers = [env._data.geom(name).xpos for name in ("finger_left", "finger_right")]
        gap = np.linalg.norm(fingers[0] - fingers[1]) - 2 * 0.006
        assert gap == pytest.approx(command * MAX_OPENING, abs=2e-3)
        assert env.read_state()[5] == pytest.approx(command, abs=0.03)


def run_extreme_actions(seed, num_steps=60):
    """Drive with actions at their limits, held for a few periods each; return the speeds and poses seen."""
    env = TabletopEnv(task="reach")
    env.start_episode(seed=seed)
    rng = np.random.default_rng(seed)
    speeds, stretches, joints = [], [], []
    for k in range(num_steps):
        if k % 6 == 0:
            action = rng.choice([-1.0, 1.0], 7) * env.robot_spec.action_high
        env.advance(np.maximum(action, env.robot_spec.action_low).astype(np.float32))
        commanded, measured = env._arm.commanded.position, env._arm.measured().position
        assert (commanded >= WORKSPACE_LOW - 1e-9).all()
        assert (commanded <= WORKSPACE_HIGH + 1e-9).all()
        speeds.append(np.abs(env.joint_speeds()))
        stretches.append(np.linalg.norm(commanded - measured))
        joints.append([env._data.joint(name).qpos[0] for name in JOINT_NAMES])
    return np.array(speeds), np.array(stretches), np.array(joints)


@pytest.mark.parametrize("seed", range(4))
def test_extreme_actions_stay_within_every_limit(seed):
    speeds, stretches, joints = run_extreme_actions(seed)
    assert (speeds <= PUBLISHED_SPEED).all(), (speeds.max(axis=0) / PUBLISHED_SPEED).round(2)
    assert (stretches < MAX_TRACKING_ERROR_M + 0.03).all()  # limited before the period, measured after
    assert (joints >= PUBLISHED_LOW).all()
    assert (joints <= PUBLISHED_HIGH).all()


@pytest.mark.parametrize("task", TASKS)
def test_expert_stays_below_the_published_speeds(task):
    env = TabletopEnv(task=task)
    env.start_episode(seed=11)
    for _ in range(env.max_steps):
        done = env.advance(env.expert_action()).terminated
        assert (np.abs(env.joint_speeds()) <= PUBLISHED_SPEED).all()
        if done:
            break


def test_hand_goes_where_it_is_told():
    env = TabletopEnv(task="reach")
    env.start_episode(seed=1)
    start = env.hand()
    for _ in range(8):
        env.advance(np.array([0.01, -0.005, 0.004, 0, 0, 0.02, 1], np.float32))
    for _ in range(8):
        env.advance(np.array([0, 0, 0, 0, 0, 0, 1], np.float32))
    end = env.hand()
    np.testing.assert_allclose(end.position - start.position, [0.08, -0.04, 0.032], atol=2e-3)
    np.testing.assert_allclose(end.angles - start.angles, [0, 0, 0.16], atol=0.01)
