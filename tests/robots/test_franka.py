"""A Franka arm as a robot: commands become twists that expire, measurements become readings."""

import threading

import numpy as np
import pytest
from robot_fixtures import DOWN, FakeTwistArm, StripedCamera, franka_limits, franka_spec

from policies.robots.franka import Following, FrankaRobot, rotation_from_vector, vector_from_rotation
from policies.robots.franky_arm import FrankaFault
from policies.runtime.chunking import make_schedule
from policies.runtime.clock import SimulatedClock
from policies.runtime.controller import Controller
from policies.runtime.inference import SimulatedInference
from policies.runtime.observation_buffer import StreamLimits
from policies.runtime.recorder import Recorder, audit_recording, read_recording
from policies.runtime.safety import SafetyFilter, UnsafeStart
from policies.runtime.states import State
from policies.runtime.watchdog import WatchdogLimits
from vla.interface import ObservationError

DT = 0.05


def make(following=None, **changes):
    clock = SimulatedClock(start_s=50.0)
    arm, cameras = FakeTwistArm(clock), StripedCamera()
    robot = FrankaRobot(
        spec=franka_spec(**changes),
        arm=arm,
        cameras=cameras,
        clock=clock,
        following=following,
    )
    return robot, arm, clock


def action(*, move=(0, 0, 0), turn=(0, 0, 0), gripper=1.0):
    return np.array([*move, *turn, gripper], np.float32)


def test_the_arm_follows_a_stream_of_deltas():
    robot, arm, clock = make()
    for _ in range(20):
        robot.command(action(move=(0.01, -0.005, 0.002), turn=(0, 0, 0.02)))
        clock.advance(DT)
    reading = arm.read()
    np.testing.assert_allclose(reading.position, [0.7, -0.1, 0.24], atol=1e-6)
    np.testing.assert_allclose(vector_from_rotation(reading.rotation @ DOWN.T), [0, 0, 0.4], atol=1e-6)


def test_what_the_arm_trails_behind_is_made_up_for():
    robot, arm, clock = make()
    robot.command(action(move=(0.02, 0, 0)))
    arm.position = arm.position - [0.01, 0, 0]  # as if it had not come along
    clock.advance(DT)
    for _ in range(60):
        robot.command(action())
        clock.advance(DT)
    np.testing.assert_allclose(arm.read().position, [0.52, 0, 0.2], atol=1e-4)


def test_a_command_expires_by_itself():
    robot, arm, clock = make()
    robot.command(action(move=(0.02, 0, 0)))
    clock.advance(10.0)
    assert arm.read().position[0] == pytest.approx(0.5 + 0.4 * 1.5 * DT)  # patience is 1.5 periods
    robot.command(action())  # starts from where the arm is, not from where it was to go
    np.testing.assert_array_equal(arm.twists[-1][0], np.zeros(3))


def test_a_blocked_arm_does_not_wind_up():
    robot, arm, clock = make(Following(max_tracking_error_m=0.03, max_speed=0.3))
    arm.is_blocked = True
    for _ in range(40):
        robot.command(action(move=(0.025, 0.0, 0.0), turn=(0, 0, 0.1)))
        clock.advance(DT)
    assert max(np.linalg.norm(linear) for linear, _, _ in arm.twists) <= 0.3 + 1e-9
    arm.is_blocked = False
    for _ in range(40):
        robot.command(action())
        clock.advance(DT)
    assert arm.read().position[0] < 0.5 + 0.03 + 0.016  # its limit, and the last push


def test_the_gripper_is_passed_on_and_the_state_has_the_spec_s_order():
    robot, arm, _ = make()
    robot.command(action(gripper=0.25))
    arm.rotation = rotation_from_vector(np.array([0.0, 0.0, 0.5])) @ DOWN
    state = robot.observe().state
    expected = [0.5, 0.0, 0.2, np.sin(0.5), np.cos(0.5), 0.25]
    np.testing.assert_allclose(state, expected, atol=1e-6)


def test_an_arm_that_measures_nothing_new_keeps_its_stamp_whatever_the_cameras_do():
    robot, arm, clock = make()
    first = robot.observe()
    clock.advance(1.0)
    second = robot.observe()
    assert (first.state_stamp, second.state_stamp) == (50.0, 51.0)
    arm.is_silent = True
    clock.advance(1.0)
    assert robot.observe().stamp == 51.0


def test_a_state_out_of_range_is_reported_as_measured_for_the_safety_filter_to_judge():
    robot, arm, _ = make()
    arm.position[0] = 1.1  # the spec ends at 0.8, the limits at 0.7
    state = robot.observe().state
    assert state[0] == np.float32(1.1)
    with pytest.raises(UnsafeStart, match=r"'delta_x' is at 1\.1"):
        SafetyFilter(spec=robot.robot_spec, limits=franka_limits()).reset(state)


def test_a_stop_works_twice_when_cameras_fail():
    robot, arm, _ = make()
    robot._cameras.error = OSError("camera is gone")
    robot.command(action(move=(0.02, 0, 0)))
    with pytest.raises(ObservationError, match="OSError: camera is gone"):
        robot.observe()
    robot.stop()
    robot.stop()
    assert arm.num_stops == 2
    assert arm.until == arm.clock.now()


def test_a_stop_from_another_thread_passes_an_observation_that_waits():
    robot, arm, _ = make()
    waiting, may_go_on, frames = threading.Event(), threading.Event(), robot._cameras.frames

    def slow(*arguments, **stamp):
        waiting.set()
        assert may_go_on.wait(30.0)
        return frames(*arguments, **stamp)

    robot._cameras.frames = slow
    observing = threading.Thread(target=robot.observe)
    observing.start()
    assert waiting.wait(30.0)
    robot.stop()
    assert arm.num_stops == 1
    may_go_on.set()
    observing.join(30.0)


@pytest.mark.parametrize("where", ["read", "follow"])
def test_a_stop_during_a_command_outlasts_it(where):
    robot, arm, clock = make()
    inner = getattr(arm, where)

    def interrupted(*arguments, **settings):
        robot.stop()  # as from another thread
        return inner(*arguments, **settings)

    setattr(arm, where, interrupted)
    robot.command(action(move=(0.02, 0, 0)))
    assert arm.until == clock.now(), "the arm still moves"


@pytest.mark.parametrize(
    "broken", [np.full(7, np.nan, np.float32), np.zeros(6, np.float32), np.full(7, np.inf, np.float32)]
)
def test_a_broken_action_is_refused_and_nothing_is_sent(broken):
    robot, arm, _ = make()
    with pytest.raises(ValueError, match="finite numbers"):
        robot.command(broken)
    assert not arm.twists


def test_other_robots_are_refused():
    with pytest.raises(ValueError, match="end_effector_delta"):
        make(action_convention="joint_delta")
    spec = franka_spec()
    with pytest.raises(ValueError, match="'torque'"):
        make(state=(*spec.state[:5], type(spec.state[5])(name="torque", unit="Nm", low=-1.0, high=1.0)))


@pytest.mark.parametrize(
    ("setting", "words"), [({"gain_hz": 0.0}, "gain_hz"), ({"patience": 1.0}, "patience")]
)
def test_settings_that_make_no_sense_are_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        Following(**setting)


@pytest.mark.parametrize("vector", [(0, 0, 0), (0.3, -0.2, 0.9), (0, 3.0, 0), (1e-9, 0, 0)])
def test_rotations_and_vectors_are_each_other_s_inverse(vector):
    rotation = rotation_from_vector(np.array(vector, float))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(vector_from_rotation(rotation), vector, atol=1e-8)


class ToAndFro:
    frame_offsets, action_horizon = (0,), 8

    def __init__(self, spec):
        self.robot_spec = spec

    def predict(self, observations):
        ways = [np.sin(3.0 * one.stamp) for one in observations]
        return np.stack([np.tile(action(move=(0.0, 0.02 * way, 0.0)), (8, 1)) for way in ways])


def drive(tmp_path):
    robot, arm, clock = make()
    policy = ToAndFro(robot.robot_spec)
    recorder = Recorder(tmp_path, spec=robot.robot_spec, about={})
    controller = Controller(
        robot=robot,
        inference=SimulatedInference(policy=policy, clock=clock, delay_s=lambda: 0.03),
        schedule=make_schedule("async", period_s=DT, execute_horizon=2, num_actions=7, max_committed=0),
        safety=SafetyFilter(spec=robot.robot_spec, limits=franka_limits()),
        instruction="go",
        frame_offsets=(0,),
        clock=clock,
        watchdog=WatchdogLimits(),
        stream=StreamLimits(),
        recorder=recorder,
    )

    def steps(count):
        left = [count]

        def on_period(_record):
            left[0] -= 1
            return left[0] > 0

        controller.run(on_period)

    steps(4)
    controller.arm()
    controller.start()
    steps(40)
    return controller, arm, steps, recorder


def violations(recorder):
    recorder.close()
    return audit_recording(read_recording(recorder.directory), franka_limits())


def test_a_reflex_of_the_arm_is_a_fault_until_somebody_recovers_and_rearms(tmp_path):
    controller, arm, steps, recorder = drive(tmp_path)
    assert controller.state is State.RUNNING
    arm.error = FrankaFault("cartesian_reflex")
    steps(1)
    assert controller.state is State.FAULT
    assert "cartesian_reflex" in controller.reason
    assert arm.num_stops == 1
    sent = len(arm.twists)
    arm.error = None  # the error is gone, but nobody has said so
    steps(20)
    assert controller.state is State.FAULT
    assert len(arm.twists) == sent
    controller.rearm()
    assert controller.state is State.ARMED
    assert not violations(recorder)


def test_an_arm_that_falls_silent_is_held_and_then_stopped(tmp_path):
    controller, arm, steps, recorder = drive(tmp_path)
    arm.is_silent = True
    steps(7)
    assert controller.state is State.HOLD
    assert "old" in controller.reason
    steps(20)
    assert controller.state is State.STOPPED
    assert not violations(recorder)


def test_the_emergency_stop_stops_the_arm_in_the_same_period(tmp_path):
    controller, arm, steps, recorder = drive(tmp_path)
    controller.press_emergency_stop()
    sent = len(arm.twists)
    steps(1)
    assert (controller.state, arm.num_stops, len(arm.twists)) == (State.STOPPED, 1, sent)
    assert not violations(recorder)
