"""Joint velocities give the twist that was asked for, within limits, and keep a posture."""

import mujoco
import numpy as np
import pytest

from envs.tabletop.arm import HOME_JOINTS, JOINT_HIGH, JOINT_LOW, JOINT_SPEED, add_arm
from policies.robots.resolved_rate import FR3, JointRange, joint_velocities

HOME = np.array(HOME_JOINTS)


@pytest.fixture(scope="module")
def kinematics():
    spec = mujoco.MjSpec()
    add_arm(spec, movable_fingers=False)
    model = spec.compile()
    data = mujoco.MjData(model)
    site = model.site("tcp").id

    def at(joints):
        data.qpos[:] = joints
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        linear, angular = np.zeros((3, 7)), np.zeros((3, 7))
        mujoco.mj_jacSite(model, data, linear, angular, site)
        return np.concatenate([linear, angular]), data.site_xpos[site].copy()

    return at


def test_the_hand_moves_at_the_twist(kinematics):
    jacobian, _ = kinematics(HOME)
    twist = np.array([0.1, -0.2, 0.05, 0.1, 0.0, -0.3])
    velocity = joint_velocities(twist, jacobian=jacobian, joints=HOME, posture=HOME, limits=FR3)
    np.testing.assert_allclose(jacobian @ velocity, twist, atol=0.02)


def test_a_posture_is_reached_without_moving_the_hand(kinematics):
    joints = HOME + np.array([0.3, 0.1, -0.3, 0.1, 0.2, 0.0, 0.1])
    start = kinematics(joints)[1]
    before = np.linalg.norm(joints - HOME)
    for _ in range(400):
        jacobian, _ = kinematics(joints)
        velocity = joint_velocities(np.zeros(6), jacobian=jacobian, joints=joints, posture=HOME, limits=FR3)
        joints = joints + 0.005 * velocity
    assert np.linalg.norm(kinematics(joints)[1] - start) < 0.005
    assert np.linalg.norm(joints - HOME) < before
    assert np.abs(velocity).max() < 0.05


def test_too_fast_a_twist_is_slowed_in_its_direction(kinematics):
    jacobian, _ = kinematics(HOME)
    slow, fast = (
        joint_velocities(
            speed * np.array([0, 1.0, 0, 0, 0, 0]), jacobian=jacobian, joints=HOME, posture=HOME, limits=FR3
        )
        for speed in (0.1, 50.0)
    )
    assert (np.abs(fast) <= FR3.speed + 1e-9).all()
    np.testing.assert_allclose(fast / np.linalg.norm(fast), slow / np.linalg.norm(slow), atol=1e-6)


def test_joints_slow_down_before_the_end_of_their_range(kinematics):
    joints = HOME.copy()
    joints[3] = FR3.high[3] - 0.01
    jacobian, _ = kinematics(joints)
    away = np.array([0, 0, 0, 0.0, 0, 0]) + jacobian @ np.array([0, 0, 0, 1.0, 0, 0, 0])
    velocity = joint_velocities(away, jacobian=jacobian, joints=joints, posture=joints, limits=FR3)
    assert velocity[3] <= 0.01 / 0.4 + 1e-9


def test_a_stretched_arm_asks_for_no_great_speeds(kinematics):
    joints = np.array([0.0, 0.0, 0.0, FR3.high[3], 0.0, 1.8, 0.0])
    jacobian, _ = kinematics(joints)
    twist = np.array([0.0, 0.0, 0.5, 0.0, 0.0, 0.0])
    velocity = joint_velocities(twist, jacobian=jacobian, joints=joints, posture=joints, limits=FR3)
    assert np.isfinite(velocity).all()
    assert (np.abs(velocity) <= FR3.speed + 1e-9).all()


def test_the_limits_lie_within_the_fr3_s():
    assert (FR3.low > np.array(JOINT_LOW)).all()
    assert (FR3.high < np.array(JOINT_HIGH)).all()
    assert (FR3.speed < np.array(JOINT_SPEED)).all()
    with pytest.raises(ValueError, match="low < high"):
        JointRange(low=np.ones(7), high=np.ones(7), speed=np.ones(7))
