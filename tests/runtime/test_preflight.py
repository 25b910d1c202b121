"""The dry run: what it says about a robot in order, and about each thing that can be wrong with one."""

import dataclasses
import math

import numpy as np
import pytest
from control_fixtures import FakeArm, FakePolicy
from runtime_fixtures import arm_limits, arm_spec

from policies.runtime.clock import SimulatedClock
from policies.runtime.observation_buffer import StreamLimits
from policies.runtime.preflight import BAD, DOUBTFUL, GOOD, checks, observe_and_infer, worst_level
from policies.runtime.watchdog import WatchdogLimits


class Untouched(FakeArm):
    """An arm that must not be commanded, on a clock that the looks move."""

    look_s = 0.001

    def observe(self):
        self.clock.advance(self.look_s)
        return super().observe()

    def command(self, action):
        raise AssertionError("a dry run sent a command")

    def stop(self):
        raise AssertionError("a dry run sent a stop")


class Timed(FakePolicy):
    """A policy that takes simulated time."""

    def __init__(self, clock, took_s):
        super().__init__()
        self.clock, self.took_s = clock, took_s

    def predict(self, observations):
        self.clock.advance(self.took_s)
        return super().predict(observations)


def findings(prepare=lambda arm, policy: None, *, took_s=0.02, schedule="async", **limits):
    clock = SimulatedClock(start_s=100.0)
    arm = Untouched(clock)
    policy = Timed(clock, took_s)
    prepare(arm, policy)
    seen = observe_and_infer(arm, policy, instruction="go on", clock=clock, seconds=4.0)
    found = checks(
        seen,
        spec=arm.robot_spec,
        limits=arm_limits(**{"low": -1.0, "high": 1.0, **limits}),
        watchdog=WatchdogLimits(),
        stream=StreamLimits(),
        schedule=schedule,
        execute_horizon=4,
    )
    return {one.what: one for one in found}


def test_a_robot_in_order_gets_green_lines_alone_and_is_sent_nothing():
    found = findings()
    assert worst_level(list(found.values())) == GOOD, [one for one in found.values() if one.level != GOOD]
    assert found["time to infer"].found.startswith("median 20 ms")


def camera_dies(arm, policy):
    arm.observe_error = TimeoutError("no frame from camera front")


def camera_black(arm, policy):
    arm.is_black = True


def camera_late(arm, policy):
    arm.edit = lambda one: dataclasses.replace(one, image_stamps={"front": one.state_stamp - 2.0})


def camera_slow(arm, policy):
    arm.edit = lambda one: dataclasses.replace(
        one, image_stamps={"front": math.floor(one.state_stamp * 10) / 10}
    )


def degrees(arm, policy):
    arm.robot_spec = dataclasses.replace(
        arm.robot_spec,
        state=tuple(dataclasses.replace(one, unit="rad") for one in arm.robot_spec.state),
    )
    arm.position[0] = 45.0


def slow_looks(arm, policy):
    arm.look_s = 0.06


def far_away(arm, policy):
    arm.position[0] = 1.9


def nonsense(arm, policy):
    policy.answer = lambda observation: np.full((8, 3), np.nan, np.float32)


def wild(arm, policy):
    policy.answer = lambda observation: np.tile(np.float32([4.0, 0.0, 1.0]), (8, 1))


def hasty(arm, policy):
    policy.answer = lambda observation: np.tile(np.float32([0.05, 0.0, 1.0]), (8, 1))


@pytest.mark.parametrize(
    ("prepare", "what", "level", "words"),
    [
        (camera_dies, "readings", BAD, "no frame from camera front"),
        (camera_black, "camera front: picture", BAD, "brightness 0"),
        (camera_late, "camera front: new pictures", BAD, "2000 ms old"),
        (camera_slow, "camera front: new pictures", DOUBTFUL, "10.0 a second"),
        (degrees, "state at_x", BAD, "45 rad"),
        (slow_looks, "time to observe", BAD, "of the periods missed"),
        (far_away, "chunks and the safety filter", BAD, "move the robot into its range"),
        (nonsense, "chunks", BAD, "NaN"),
        (wild, "chunks and the safety filter", BAD, "x its velocity limit"),
        (hasty, "first action against where the robot stands", DOUBTFUL, "2 of the way"),
        (hasty, "actions that the limits would clamp", DOUBTFUL, "velocity:x"),
    ],
)
def test_what_is_wrong_gets_a_red_or_yellow_line(prepare, what, level, words):
    one = findings(prepare)[what]
    assert one.level == level, one
    assert words in one.found, one


def test_degrees_are_suspected():
    assert "degrees" in findings(degrees)["state at_x"].advice


def test_a_slow_policy_is_told_with_the_schedule_that_suits_it():
    one = findings(took_s=0.5)["time to infer"]
    assert one.level == BAD
    assert "schedule=sync" in one.advice
    assert findings(took_s=0.3, schedule="sync")["time to infer"].level == GOOD


def test_a_limit_that_is_missing_is_told():
    one = findings(jerk=math.inf)["limits"]
    assert (one.level, "x, y" in one.found) == (DOUBTFUL, True)


def test_the_fake_arm_is_the_one_of_the_spec():
    assert arm_spec().control_hz == 20.0
