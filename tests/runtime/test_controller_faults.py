"""Every fault of robot, cameras and policy that the controller has to survive, on a simulated clock."""

import dataclasses

import numpy as np
import pytest
from control_fixtures import DT, FakeArm, Harness
from runtime_fixtures import arm_spec, reading_at

from policies.runtime.clock import SimulatedClock
from policies.runtime.controller import ArmingRefused
from policies.runtime.observation_buffer import ObservationBuffer, StreamLimits
from policies.runtime.states import State
from vla.interface import DecodeError


def test_stale_observations_hold_then_stop_and_nothing_is_inferred_on_them(tmp_path):
    run = Harness(tmp_path).started()
    run.arm.is_silent = True
    assert run.until(State.HOLD, at_most=8) <= 6  # 0.25 s
    asked = len(run.policy.seen)
    assert run.until(State.STOPPED, at_most=30) <= 16  # 1 s in all
    assert len(run.policy.seen) == asked
    assert run.violations() == []


@pytest.mark.parametrize("stuck", ["camera", "joints"])
def test_a_sensor_that_stands_still_makes_the_whole_reading_stale(tmp_path, stuck):
    run = Harness(tmp_path).started()
    since = run.clock.now()

    def edit(reading):
        if stuck == "camera":  # its last frame, time and again, while the joints are fresh
            return dataclasses.replace(reading, image_stamps={"front": since})
        return dataclasses.replace(reading, state_stamp=since)

    run.arm.edit = edit
    run.steps(7)  # 0.25 s
    asked = len(run.policy.seen)
    assert run.until(State.STOPPED, at_most=30) <= 16  # 1 s in all
    assert f"old ({'camera front' if stuck == 'camera' else 'joints'})" in run.controller.reason
    assert len(run.policy.seen) == asked
    with pytest.raises(ArmingRefused, match="old"):
        run.controller.rearm()
    assert run.violations() == []


def test_a_hold_ends_by_itself_when_observations_come_back(tmp_path):
    run = Harness(tmp_path).started()
    run.arm.is_silent = True
    run.until(State.HOLD, at_most=8)
    run.arm.is_silent = False
    assert run.until(State.RUNNING, at_most=3) <= 2
    assert run.violations() == []


def test_a_jump_of_the_state_is_a_fault(tmp_path):
    run = Harness(tmp_path).started()
    run.arm.position[0] += 1.5
    run.steps(1)
    assert run.state is State.FAULT
    assert "jumped" in run.controller.reason
    assert run.arm.num_stops == 1
    assert run.violations() == []


def test_a_frozen_camera_holds_while_the_arm_moves(tmp_path):
    run = Harness(tmp_path).started()
    run.policy.answer = lambda observation: np.tile(np.float32([0.02, 0.0, 1.0]), (8, 1))
    run.arm.is_frozen = True
    periods = run.until(State.HOLD, at_most=30)
    assert periods > 3
    assert "front is frozen" in run.controller.reason
    run.arm.is_frozen = False
    run.until(State.RUNNING, at_most=4)
    assert run.violations() == []


def test_a_frame_that_does_not_change_while_the_arm_rests_is_no_problem(tmp_path):
    run = Harness(tmp_path)
    run.policy.answer = lambda observation: np.tile(np.float32([0.0, 0.0, 1.0]), (8, 1))
    run.arm.is_frozen = True
    run.started(40)
    assert run.state is State.RUNNING


def test_a_black_camera_holds_at_once_and_stops_in_the_end(tmp_path):
    run = Harness(tmp_path).started()
    run.arm.is_black = True
    run.steps(1)
    assert run.state is State.HOLD
    assert "front is black" in run.controller.reason
    run.until(State.STOPPED, at_most=45)
    assert run.violations() == []


@pytest.mark.parametrize("what", ["size", "dtype", "camera", "nan", "stamps"])
def test_malformed_observations_count_as_none(tmp_path, what):
    def broken(reading):
        frame = reading.images["front"]
        if what == "nan":
            return dataclasses.replace(reading, state=np.float32([0.0, np.nan, 1.0]))
        if what == "stamps":
            return dataclasses.replace(reading, image_stamps={})
        edited = {"size": {"front": frame[:4]}, "camera": {"left": frame}, "dtype": {"front": frame / 255}}
        object.__setattr__(reading, "images", edited[what])  # past the type check, as a driver would be
        return reading

    run = Harness(tmp_path).started()
    run.arm.edit = broken
    run.until(State.HOLD, at_most=8)
    run.until(State.STOPPED, at_most=20)
    assert run.controller.counts["rejected observations"] > 10
    assert run.violations() == []


def test_an_exception_in_the_policy_holds_and_the_next_good_answer_resumes(tmp_path):
    run = Harness(tmp_path).started()
    good = run.policy.answer

    def fail(observation):
        raise DecodeError("token 7 is no action")

    run.policy.answer = fail
    run.until(State.HOLD, at_most=5)
    assert "DecodeError: token 7" in run.controller.reason
    run.policy.answer = good
    assert run.until(State.RUNNING, at_most=3) <= 2
    assert run.violations() == []


def test_a_policy_that_keeps_failing_is_stopped(tmp_path):
    run = Harness(tmp_path).started()

    def fail(observation):
        raise ConnectionError("the server has gone")

    run.policy.answer = fail
    run.until(State.HOLD, at_most=5)
    assert run.until(State.STOPPED, at_most=20) <= 12  # 0.5 s
    assert run.violations() == []


@pytest.mark.parametrize("schedule", ["sync", "async"])
def test_a_policy_that_never_answers_stops_the_robot_by_the_deadline(tmp_path, schedule):
    run = Harness(tmp_path, schedule=schedule, silent_stop_s=1.0).started()
    run.delay_s = 1e9
    assert run.until(State.STOPPED, at_most=40) <= 27
    assert run.violations() == []


def test_a_failure_that_comes_while_the_robot_waits_does_not_begin_the_wait_anew(tmp_path):
    def fail(observation):
        raise DecodeError("gone")

    run = Harness(tmp_path, schedule="async").started()
    run.policy.answer, run.delay_s = fail, 14 * DT  # the horizon is 8: some 0.3 s without an action by then
    run.until(State.HOLD, at_most=12)
    assert run.until(State.STOPPED, at_most=20) <= 11  # 0.5 s
    assert "no action is left" in run.controller.reason
    assert run.controller.counts["failed answers"] == 1
    assert run.violations() == []


@pytest.mark.parametrize("schedule", ["sync", "async", "ensemble", "rtc"])
@pytest.mark.parametrize("convention", ["end_effector_delta", "joint_target"])
def test_a_chunk_that_comes_late_goes_on_where_the_robot_stands(tmp_path, schedule, convention):
    arm = FakeArm(SimulatedClock(start_s=100.0), spec=arm_spec(convention))
    run = Harness(tmp_path, schedule=schedule, arm=arm, underrun_stop_s=5.0)
    step = np.float32([0.01, 0.0, 0.0])

    def answer(observation):
        if convention == "end_effector_delta":
            return np.tile(step + np.float32([0.0, 0.0, 1.0]), (8, 1))
        ahead = np.arange(1, 9, dtype=np.float32)[:, None] * step
        return (ahead + np.float32([arm.position[0], 0.0, 1.0])).astype(np.float32)

    run.policy.answer = answer
    run.started()
    run.delay_s = 7 * DT  # requested after 4 of 8 periods, so that each is used up before the next comes
    run.steps(60)
    assert run.controller.counts["times HOLD"] >= (0 if schedule == "sync" else 3)
    assert run.controller.counts["chunks"] >= 5
    assert run.controller.counts["stale answers"] == 0
    positions = [one.position[0] for one in run.executed()]
    wanted = [
        one.target[0] + (0.0 if convention == "joint_target" else before)
        for before, one in zip([positions[0], *positions], run.executed(), strict=False)
    ]
    ahead = np.abs(np.subtract(wanted[1:], positions[:-1]))
    assert ahead.max() < 3.5 * step[0], "a chunk was taken up ahead of where the robot stood"
    assert run.violations() == []


def test_a_chunk_older_than_it_plans_ahead_is_dropped_by_its_age(tmp_path):
    run = Harness(tmp_path, underrun_stop_s=5.0).started()
    run.delay_s = 9 * DT  # the horizon is 8
    run.steps(30)
    assert run.controller.counts["stale answers"] >= 2
    assert run.state is State.HOLD
    assert run.violations() == []


def test_an_action_that_the_filter_refuses_holds_and_says_why(tmp_path):
    arm = FakeArm(SimulatedClock(start_s=100.0), spec=arm_spec("joint_target"))
    run = Harness(tmp_path, arm=arm, velocity=0.5)
    run.policy.answer = lambda observation: np.tile(np.float32([0.0, 0.0, 1.0]), (8, 1))
    run.started()
    run.policy.answer = lambda observation: np.tile(np.float32([0.4, 0.0, 1.0]), (8, 1))  # in range, too fast
    run.until(State.HOLD, at_most=8)
    assert "x its velocity limit" in run.controller.reason
    assert run.violations() == []


@pytest.mark.parametrize("schedule", ["async", "ensemble", "rtc"])
def test_one_failed_inference_makes_no_jump(tmp_path, schedule):
    run = Harness(tmp_path, schedule=schedule, delay_s=5 * DT, underrun_stop_s=5.0, failing_stop_s=5.0)
    good = lambda observation: np.tile(np.float32([0.01, 0.0, 1.0]), (8, 1))  # noqa: E731
    run.policy.answer = good
    run.started(20)

    def failing(observation):
        run.policy.answer = good
        raise OSError("one packet was lost")

    run.policy.answer = failing
    run.steps(40)
    assert run.controller.counts["failed answers"] == 1
    assert run.state is State.RUNNING
    assert max(abs(one.target[0]) for one in run.executed()) < 0.02
    assert not run.controller.counts["clamped refused velocity"]
    assert run.violations() == []


@pytest.mark.parametrize("schedule", ["async", "ensemble", "rtc"])
def test_a_server_of_any_slowness_never_makes_an_action_run_after_its_time(tmp_path, schedule):
    run = Harness(tmp_path, schedule=schedule, underrun_stop_s=9.0, silent_stop_s=9.0).started()
    tail = np.random.default_rng(2).pareto(1.0, 400)  # most are short, some very long
    slow, good = iter([*[2.0] * 8, *[5.0] * 8, *(1.0 + 2.0 * tail)]), run.policy.answer

    def answer(observation):
        run.delay_s = DT * min(next(slow), 60.0)
        return good(observation)

    run.policy.answer = answer
    run.steps(200)
    assert run.state in (State.RUNNING, State.HOLD), run.controller.reason
    assert run.controller.counts["times HOLD"] >= 1
    assert len(run.executed()) > 50
    assert max(one.chunk_index for one in run.executed()) < run.policy.action_horizon
    assert not run.ran_blind()
    assert run.violations() == []


class Repeating:
    """An inference whose answers come again and again, and out of order."""

    def __init__(self, inner):
        self._inner, self._rng, self._past = inner, np.random.default_rng(3), []

    @property
    def waiting_since(self):
        return self._inner.waiting_since

    @property
    def has_died(self):
        return self._inner.has_died

    def submit(self, observation):
        return self._inner.submit(observation)

    def close(self):
        self._inner.close()

    def poll(self):
        fresh = self._inner.poll()
        again = [self._past[i] for i in self._rng.integers(len(self._past), size=3)] if self._past else []
        self._past += fresh
        return [*again[:2], *fresh, *again[2:]]


def test_answers_that_come_again_or_out_of_order_are_never_executed(tmp_path):
    rng = np.random.default_rng(4)

    def answer(observation):
        return np.tile(np.append(rng.uniform(-0.02, 0.02, 2), 1.0), (8, 1)).astype(np.float32)

    run = Harness(tmp_path, delay_s=DT, make_inference=lambda run: Repeating(run.simulated_inference()))
    run.policy.answer = answer
    run.started(80)
    assert run.controller.counts["duplicate answers"] > 50
    order = [one.chunk_seq for one in run.executed()]
    assert order == sorted(order)
    assert len(set(order)) > 10
    assert run.violations() == []


def test_a_camera_that_goes_back_in_time_brings_no_news():
    buffer = ObservationBuffer(spec=arm_spec(), limits=StreamLimits(), frame_offsets=(0,))
    assert buffer.take(reading_at(1.0), 1.0)
    assert not buffer.take(reading_at(1.05, image_stamp=0.95), 1.05)
    assert buffer.newest.image_stamps == {"front": 1.0}
    assert buffer.take(reading_at(1.1, image_stamp=1.0), 1.1)  # a camera may be slower than the joints


class Held:
    """Keeps its answers back until it is released."""

    def __init__(self, inner):
        self._inner, self.is_released = inner, False
        self.submit, self.close, self.has_died = inner.submit, inner.close, False

    @property
    def waiting_since(self):
        return self._inner.waiting_since

    def poll(self):
        return self._inner.poll() if self.is_released else []


def test_an_answer_requested_before_the_start_is_dropped(tmp_path):
    run = Harness(tmp_path, make_inference=lambda run: Held(run.simulated_inference())).started()
    run.controller.finish()
    run.steps(2)
    run.controller.arm()
    run.controller.start()
    run.inference.is_released = True
    run.steps()
    assert run.controller.counts["late answers"] == 1
    run.steps(3)
    assert run.controller.counts["chunks"] == 1
    assert {one.chunk_seq for one in run.executed()} == {2}


BAD_CHUNKS = {
    "nan": np.full((8, 3), np.nan, np.float32),
    "wrong size": np.zeros((8, 2), np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "flat": np.zeros(3, np.float32),
    "words": "left, please",
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_what_is_no_chunk_never_reaches_the_filter(tmp_path, name):
    run = Harness(tmp_path).started()
    run.policy.answer = lambda observation: BAD_CHUNKS[name]
    run.until(State.HOLD, at_most=5)
    assert run.controller.counts["bad chunk answers"] >= 1
    assert not any(kind.startswith("clamped refused") for kind in run.controller.counts)
    run.until(State.STOPPED, at_most=20)
    assert run.violations() == []


def test_a_command_a_little_over_its_limit_is_clamped_and_counted_and_the_robot_goes_on(tmp_path):
    run = Harness(tmp_path, velocity=0.4)
    run.policy.answer = lambda observation: np.tile(np.float32([1.01 * 0.4 * DT, 0.0, 1.0]), (8, 1))
    run.started(30)
    assert run.state is State.RUNNING
    assert run.controller.counts["clamped velocity"] > 10
    assert max(abs(float(command[0])) for command in run.arm.commands) <= 0.4 * DT
    assert run.violations() == []


def test_a_command_far_beyond_its_limits_is_refused_and_holds(tmp_path):
    run = Harness(tmp_path).started()
    good = run.policy.answer
    run.policy.answer = lambda observation: np.tile(np.float32([0.5, 0.0, 1.0]), (8, 1))
    run.until(State.HOLD, at_most=5)
    assert run.controller.counts["clamped refused velocity"] >= 1
    run.policy.answer = good
    run.until(State.RUNNING, at_most=3)
    assert run.violations() == []


def test_an_adversarial_policy_never_gets_a_bad_command_through(tmp_path):
    rng = np.random.default_rng(5)
    run = Harness(tmp_path, failing_stop_s=1e3, refused_stop_s=1e3, underrun_stop_s=1e3).started()

    def answer(observation):
        kind = rng.integers(6)
        chunk = rng.uniform(-0.025, 0.025, (8, 3)).astype(np.float32)
        chunk[:, 2] = rng.integers(0, 2)
        if kind == 0:
            chunk *= 10
        elif kind == 1:
            chunk[rng.integers(8), rng.integers(3)] = rng.choice([np.nan, np.inf])
        elif kind == 2:
            chunk = chunk[:, :2]
        elif kind == 3:
            chunk[:] = np.float32([rng.choice([-1, 1]) * 0.025, rng.choice([-1, 1]) * 0.025, 1.0])
        elif kind == 4:
            raise OSError("no route to host")
        return chunk

    run.policy.answer = answer
    run.steps(300)
    assert run.violations() == []
    assert all(np.isfinite(command).all() and command.shape == (3,) for command in run.arm.commands)
    assert run.controller.counts["times RUNNING"] > 5
    assert run.controller.counts["times HOLD"] > 5
