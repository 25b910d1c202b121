"""The watchdog as a function of time and health, and what the observation buffer reports to it."""

import numpy as np
import pytest
from runtime_fixtures import arm_spec, reading_at

from policies.runtime.observation_buffer import (
    FrameHistory,
    ObservationBuffer,
    StreamHealth,
    StreamLimits,
    StreamMonitor,
)
from policies.runtime.watchdog import HealthSnapshot, Level, WatchdogLimits, assess, assess_observation

LIMITS = WatchdogLimits()
NOW = 50.0
GOOD = {"sensor_stamps": {"joints": NOW - 0.02, "camera front": NOW - 0.03}}


def level(**health):
    return assess(NOW, HealthSnapshot(**{**GOOD, **health}), LIMITS).level


def test_all_is_well_when_nothing_is_wrong():
    assert level() is Level.OK


@pytest.mark.parametrize(
    ("health", "expected"),
    [
        ({"sensor_stamps": {}}, Level.HOLD),
        ({"sensor_stamps": {"joints": NOW, "camera front": NOW - 0.3}}, Level.HOLD),
        ({"sensor_stamps": {"joints": NOW - 1.1, "camera front": NOW}}, Level.STOP),
        ({"blind_since": NOW}, Level.HOLD),
        ({"blind_since": NOW - 2.1}, Level.STOP),
        ({"stream": StreamHealth(state_jump="x jumped")}, Level.FAULT),
        ({"underrun_since": NOW}, Level.HOLD),
        ({"underrun_since": NOW - 0.6}, Level.STOP),
        ({"failing_since": NOW}, Level.HOLD),
        ({"failing_since": NOW - 0.6}, Level.STOP),
        ({"refused_since": NOW}, Level.OK),
        ({"refused_since": NOW - 0.6}, Level.STOP),
        ({"waiting_since": NOW - 1.9}, Level.OK),
        ({"waiting_since": NOW - 2.1}, Level.STOP),
        ({"missed_share": 0.29}, Level.OK),
        ({"missed_share": 0.3}, Level.STOP),
        ({"unreadable_since": NOW - 0.4, "unreadable": "OSError: cable"}, Level.OK),
        ({"unreadable_since": NOW - 0.6, "unreadable": "OSError: cable"}, Level.FAULT),
    ],
)
def test_each_problem_has_its_level_and_its_reason(health, expected):
    verdict = assess(NOW, HealthSnapshot(**{**GOOD, **health}), LIMITS)
    assert verdict.level is expected
    assert bool(verdict.reason) or "refused_since" in health or expected is Level.OK


def test_the_worst_verdict_wins():
    assert level(underrun_since=NOW, waiting_since=NOW - 3.0) is Level.STOP
    assert level(underrun_since=NOW - 9.0, stream=StreamHealth(state_jump="x jumped")) is Level.FAULT


def test_problems_never_get_better_with_age():
    for name in ("blind_since", "underrun_since", "failing_since", "refused_since", "waiting_since"):
        levels = [level(**{name: NOW - age}) for age in np.linspace(0.0, 5.0, 40)]
        assert levels == sorted(levels), name
        assert levels[-1] is Level.STOP, name


def test_what_is_wrong_with_inference_does_not_stop_looking():
    health = HealthSnapshot(
        sensor_stamps=GOOD["sensor_stamps"], underrun_since=NOW - 9.0, failing_since=NOW - 9.0
    )
    assert assess_observation(NOW, health, LIMITS).level is Level.OK


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="a robot holds before it stops"):
        WatchdogLimits(observation_hold_s=2.0, observation_stop_s=1.0)


def monitor():
    return StreamMonitor(spec=arm_spec(), limits=StreamLimits(frozen_frames=3))


def test_a_camera_is_frozen_when_the_arm_moves_and_the_frame_does_not():
    watching = monitor()
    health = [watching.update(reading_at(0.05 * k, state=(0.15 * k, 0.0, 1.0), shade=9)) for k in range(6)]
    assert [bool(one.frozen_cameras) for one in health] == [False] * 3 + [True] * 3
    assert watching.update(reading_at(0.4, state=(0.9, 0.0, 1.0), shade=10)).frozen_cameras == ()


def test_a_gripper_that_closes_is_no_motion_that_a_camera_must_see():
    watching = StreamMonitor(spec=arm_spec(), limits=StreamLimits(may_jump=("opening",)))
    for k in range(20):
        health = watching.update(reading_at(0.05 * k, state=(0.0, 0.0, 1.0 - 0.05 * k), shade=9))
        assert health.frozen_cameras == ()


def test_an_observation_that_comes_twice_counts_once():
    watching = monitor()
    seen = reading_at(1.0, state=(1.0, 0.0, 1.0), shade=9)
    for _ in range(20):
        assert watching.update(seen) == StreamHealth()


def test_a_jump_is_judged_by_the_time_that_it_took():
    watching = monitor()
    watching.update(reading_at(0.0))
    slow = watching.update(reading_at(0.5, state=(1.6, 0.0, 1.0)))
    assert slow.state_jump is None
    quick = watching.update(reading_at(0.55, state=(0.0, 0.0, 1.0)))
    assert quick.state_jump is not None
    assert "'at_x' jumped from 1.6 to 0" in quick.state_jump


def test_a_gripper_may_jump_if_it_is_said_so():
    for may_jump, jumps in ((("opening",), False), ((), True)):
        watching = StreamMonitor(spec=arm_spec(), limits=StreamLimits(may_jump=may_jump))
        watching.update(reading_at(0.0))
        health = watching.update(reading_at(0.05, state=(0.0, 0.0, 0.2)))
        assert (health.state_jump is not None) is jumps


def shades(history):
    return history.observation("go on", np.zeros((0, 3), np.float32)).images["front"][:, 0, 0, 0].tolist()


def test_a_policy_that_looks_back_gets_the_frames_of_then():
    history = FrameHistory(spec=arm_spec(), frame_offsets=(4, 0))
    history.add(reading_at(0.0, shade=0))
    assert shades(history) == [0, 0]  # the first stands in for older ones
    for k in range(1, 10):
        if k != 5:  # a frame that never came
            history.add(reading_at(0.05 * k, shade=k))
    assert shades(history) in ([4, 9], [6, 9])


def test_each_camera_looks_back_from_its_own_newest_frame():
    history = FrameHistory(spec=arm_spec(), frame_offsets=(2, 0))
    for k in range(9):  # a camera at half the rate of the joints
        history.add(reading_at(0.05 * k, shade=k - k % 2, image_stamp=0.05 * (k - k % 2)))
    assert shades(history) == [6, 8]
    history.add(reading_at(0.05 * 9, shade=8, image_stamp=0.05 * 8))
    assert shades(history) == [6, 8]
    assert history.observation("", np.zeros((0, 3), np.float32)).stamp == 0.05 * 8  # of the oldest part


def test_a_policy_gets_the_state_within_its_ranges_and_the_buffer_keeps_what_was_measured():
    buffer = ObservationBuffer(spec=arm_spec(), limits=StreamLimits(), frame_offsets=(0,))
    buffer.take(reading_at(0.0, state=(2.2, 0.0, 1.0)), 0.0)
    assert buffer.newest is not None
    assert buffer.newest.state[0] == np.float32(2.2)
    assert buffer.history.observation("", np.zeros((0, 3), np.float32)).state[0] == 2.0


def test_a_reading_in_which_a_sensor_goes_back_in_time_counts_as_none():
    buffer = ObservationBuffer(spec=arm_spec(), limits=StreamLimits(), frame_offsets=(0,))
    assert buffer.take(reading_at(1.0), 1.0)
    assert not buffer.take(reading_at(1.0), 1.0)
    assert not buffer.take(reading_at(1.05, image_stamp=0.9), 1.05)
    assert buffer.take(reading_at(1.05, image_stamp=1.0), 1.05)
