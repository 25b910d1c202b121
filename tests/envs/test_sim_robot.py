"""A task as a robot: time passes for it, observations are late, and a run can be replayed."""

import threading

import numpy as np
import pytest
from fake_env import FACTORY, SPEC, PointEnv, PointPolicy

from envs.rollout import EpisodeRequest, run_episodes
from envs.sim_robot import SensorFaults, SimRobot
from policies.runtime.chunking import make_schedule
from policies.runtime.clock import SimulatedClock
from policies.runtime.controller import Controller
from policies.runtime.inference import SimulatedInference
from policies.runtime.limits import ChannelLimits, SafetyLimits
from policies.runtime.observation_buffer import StreamLimits
from policies.runtime.recorder import Recorder, audit_recording, read_recording, replay
from policies.runtime.safety import SafetyFilter
from policies.runtime.states import State
from policies.runtime.watchdog import WatchdogLimits
from vla.interface import Robot

DT = 0.05
STILL = np.float32([0.0, 0.0, 1.0])


def make(*, seed=3, **faults):
    clock = SimulatedClock(start_s=7.0)
    env = PointEnv(task="go")
    env.start_episode(seed=seed)
    return SimRobot(env=env, clock=clock, faults=SensorFaults(**faults), seed=1), env, clock


def test_it_is_a_robot():
    robot, _, _ = make()
    assert isinstance(robot, Robot)
    assert robot.robot_spec == SPEC


def test_a_period_without_a_command_is_spent_holding():
    robot, env, clock = make()
    robot.observe()
    robot.command(np.float32([0.05, 0.0, 1.0]))
    place = env.position.copy()
    clock.advance(3 * DT)
    reading = robot.observe()
    assert env.num_steps == 3
    np.testing.assert_allclose(env.position, place)
    assert reading.stamp == clock.now()


def test_a_second_command_for_a_period_comes_too_late():
    robot, env, _ = make()
    robot.observe()
    robot.command(STILL)
    robot.command(np.float32([0.05, 0.0, 1.0]))
    assert env.num_steps == 1


def test_a_stop_during_a_command_keeps_it_from_being_executed_and_later_ones_are():
    robot, env, clock = make()
    robot.observe()
    before, advance = env.position.copy(), env.advance

    def stopped_meanwhile(action):
        robot.stop()  # as from another thread
        robot.stop()
        return advance(action)

    env.advance = stopped_meanwhile
    clock.advance(DT)  # the period that passed is spent first
    robot.command(np.float32([0.05, 0.0, 1.0]))
    np.testing.assert_array_equal(env.position, before)
    env.advance = advance
    robot.command(np.float32([0.05, 0.0, 1.0]))
    assert (env.position != before).any()


def test_observations_arrive_after_their_latency_with_the_stamp_of_their_capture():
    robot, _, clock = make(latency_s=2 * DT)
    began = clock.now()
    stamps = []
    for _ in range(8):
        stamps.append(robot.observe().stamp)
        robot.command(STILL)
        clock.advance(DT)
    np.testing.assert_allclose(
        np.array(stamps) - began, [0.0, 0.0, 0.0, DT, 2 * DT, 3 * DT, 4 * DT, 5 * DT], atol=1e-9
    )


def test_dropped_observations_never_arrive_and_the_rest_keep_their_order():
    robot, _, clock = make(drop_probability=0.5, jitter_s=3 * DT)
    stamps = []
    for _ in range(40):
        stamps.append(robot.observe().stamp)
        robot.command(STILL)
        clock.advance(DT)
    assert stamps == sorted(stamps)
    assert 10 < len(set(stamps)) < 30


def test_it_can_be_stopped_twice_from_another_thread_while_a_camera_waits():
    robot, env, clock = make()
    robot.observe()
    robot.command(np.float32([0.05, 0.0, 1.0]))
    clock.advance(DT)
    drawing, may_go_on, draw = threading.Event(), threading.Event(), env.render_camera

    def slow(name):
        drawing.set()
        assert may_go_on.wait(30.0)
        return draw(name)

    env.render_camera = slow
    observing = threading.Thread(target=robot.observe)
    observing.start()
    assert drawing.wait(30.0)
    robot.stop()
    robot.stop()
    may_go_on.set()
    observing.join(30.0)
    place = env.position.copy()
    clock.advance(5 * DT)
    robot.observe()
    np.testing.assert_array_equal(env.position, place)


def test_faults_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="drop_probability"):
        SensorFaults(drop_probability=1.0)


def controlled(directory, *, schedule, delay_s, **faults):
    """Run an episode through the real controller; return the robot and the limits."""
    robot, env, clock = make(**faults)
    motion = {"low": -1.0, "high": 2.0, "velocity": 1.0, "acceleration": 20.0, "jerk": 800.0}
    limits = SafetyLimits(
        channels={
            "x": ChannelLimits(measured_by="x", **motion),
            "y": ChannelLimits(measured_by="y", **motion),
            "gripper": ChannelLimits(kind="gripper", low=0.0, high=1.0, velocity=20.0),
        }
    )
    with Recorder(directory, spec=SPEC, about={}) as recorder:
        policy = PointPolicy()
        controller = Controller(
            robot=robot,
            inference=SimulatedInference(policy=policy, clock=clock, delay_s=lambda: delay_s),
            schedule=make_schedule(schedule, period_s=DT, execute_horizon=4, num_actions=3, max_committed=0),
            safety=SafetyFilter(spec=SPEC, limits=limits),
            instruction=robot.instruction,
            frame_offsets=(0,),
            clock=clock,
            watchdog=WatchdogLimits(),
            stream=StreamLimits(black_level=0.0),
            recorder=recorder,
        )
        has_started = False

        def on_period(record):
            nonlocal has_started
            if record.index == 4:
                controller.arm()
                controller.start()
                has_started = True
            if robot.is_over:
                controller.finish()
            return not (has_started and controller.state is State.IDLE and controller.is_at_rest)

        controller.run(on_period)
    return robot, env, limits


@pytest.mark.parametrize("schedule", ["sync", "async", "ensemble", "rtc"])
def test_every_schedule_reaches_the_goal_through_a_slow_policy_and_late_cameras(tmp_path, schedule):
    robot, _, limits = controlled(tmp_path, schedule=schedule, delay_s=2 * DT, latency_s=DT / 2)
    assert robot.success
    assert audit_recording(read_recording(tmp_path), limits) == []


def test_replaying_the_recorded_commands_gives_the_same_episode(tmp_path):
    robot, env, _ = controlled(tmp_path, schedule="async", delay_s=DT)
    recording = read_recording(tmp_path)
    again, env_again, clock = make()
    count = replay(recording, robot=again, clock=clock)
    assert count == sum(one.commanded is not None for one in recording.periods)
    assert again.success == robot.success
    np.testing.assert_allclose(env_again.position, env.position, atol=1e-9)


@pytest.mark.parametrize("schedule", ["sync", "async"])
def test_an_evaluation_by_the_robot_s_road_executes_what_the_controller_sends(tmp_path, schedule):
    robot, _, limits = controlled(tmp_path, schedule=schedule, delay_s=0.0)
    assert robot.success
    periods = read_recording(tmp_path).periods
    sent = [one.commanded for one in periods if one.commanded is not None and one.state == "RUNNING"]
    (evaluated,) = run_episodes(
        PointPolicy(),
        [EpisodeRequest(task="go", env_config={"task": "go"}, seed=3)],
        execute_horizon=4,
        num_workers=1,
        schedule=schedule,
        limits=limits,
        env_factory=FACTORY,
    )
    assert evaluated.success
    np.testing.assert_array_equal(np.array(sent, np.float32)[: len(evaluated.actions)], evaluated.actions)
