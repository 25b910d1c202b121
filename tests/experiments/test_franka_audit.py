"""The audit of what a Franka was sent finds what breaks its limits; fault times are read off a recording."""

from dataclasses import replace

import numpy as np
import pytest

from envs.tabletop.arm import HOME_JOINTS, JOINT_HIGH
from envs.tabletop.env import make_robot_spec
from experiments.franka.audit import audit_setpoints, last_motion_s
from experiments.franka.trial import fault_times
from policies.robots.franky_arm import Setpoint
from policies.runtime.recorder import PeriodRecord, Recording

HOME = np.array(HOME_JOINTS)


def stream(velocities, *, start_s=1.0, joints=HOME):
    """Setpoints a millisecond apart; all joints alike, measured as commanded."""
    return [
        Setpoint(time_s=start_s + 0.001 * k, commanded=np.full(7, v), joints=joints, speeds=np.full(7, v))
        for k, v in enumerate(velocities)
    ]


def smooth(top=0.5, ticks=200):
    """From rest to a speed and back, at a jerk that never ends abruptly."""
    return top * 0.5 * (1 - np.cos(np.linspace(0, 2 * np.pi, ticks)))


def test_a_smooth_motion_passes():
    audit = audit_setpoints(stream(smooth()))
    assert audit.violations == 0
    assert audit.setpoints == 200
    assert 0 < audit.acceleration < 1
    assert 0 < audit.jerk < 1


def test_two_motions_with_a_pause_pass():
    assert audit_setpoints([*stream(smooth()), *stream(smooth(), start_s=5.0)]).violations == 0


@pytest.mark.parametrize(
    ("velocities", "name"),
    [
        (smooth(top=3.0, ticks=2000), "velocity"),
        (smooth(top=2.0, ticks=300), "acceleration"),
        (np.concatenate([np.zeros(5), 0.008 * np.array([1, 2, 2, 1, 0]), np.zeros(3)]), "jerk"),
    ],
)
def test_a_limit_that_is_broken_is_found(velocities, name):
    audit = audit_setpoints(stream(velocities))
    assert getattr(audit, name) > 1.0
    assert audit.violations > 0


def test_abrupt_ends_and_joints_out_of_range_are_found():
    assert audit_setpoints(stream(smooth()[:100])).abrupt_ends == 1
    outside = HOME.copy()
    outside[3] = JOINT_HIGH[3] + 0.01
    assert audit_setpoints(stream(smooth(), joints=outside)).range_margin_rad == pytest.approx(-0.01)
    assert audit_setpoints(stream(smooth(), joints=outside)).violations == 1


def test_milliseconds_that_were_lost_are_counted_and_no_end_of_a_motion():
    whole = stream(smooth())
    audit = audit_setpoints([*whole[:90], *whole[93:]])
    assert (audit.violations, audit.lost, audit.lost_in_a_row) == (0, 3, 3)
    assert audit.acceleration <= audit_setpoints(whole).acceleration


def test_a_jump_across_lost_milliseconds_is_found():
    whole = stream(smooth(top=1.5, ticks=600))
    audit = audit_setpoints([*whole[:150], *whole[450:]])  # as fast after it as before, but long after
    assert audit.abrupt_ends == 2
    assert audit_setpoints([*whole[:1], *whole[150:]]).abrupt_ends == 1  # from rest, without a way there
    stalled = audit_setpoints([*whole[:250], *whole[350:]])
    assert (stalled.violations, stalled.lost_in_a_row) == (0, 100)
    faster = [replace(one, commanded=one.commanded + 0.1) for one in whole[153:300]]
    assert audit_setpoints([*whole[:150], *faster]).acceleration > 1.0


def test_an_empty_stream_is_no_proof():
    with pytest.raises(ValueError, match="no setpoint"):
        audit_setpoints([])


def test_the_last_motion_is_the_last_that_was_measured():
    assert last_motion_s(stream([0.0, 0.1, 0.1, 0.001, 0.0])) == pytest.approx(1.002)


def period(index, state, *, target):
    moves = [0.01] + [0.0] * 6 if target else None
    return PeriodRecord(
        index=index, now=0.05 * index, late_s=0.0, state=state, reason="", observation_stamp=0.0,
        measured=[0.0] * 6, target=moves, commanded=[0.0] * 7, position=[0.0] * 7, start=None,
        chunk_seq=1 if target else None, chunk_index=index, chunk_age_s=0.1 if target else None,
        inference_s=None, clamps=[], events=[], missed=0,
    )  # fmt: skip


def recording(states):
    periods = [period(k, state, target=target) for k, (state, target) in enumerate(states)]
    spec = make_robot_spec(image_size=8, cameras=("wrist",))
    return Recording(robot_spec=spec, about={}, periods=periods)


def test_times_count_from_the_fault_to_hold_and_stop():
    states = [("RUNNING", True)] * 4 + [("HOLD", False)] * 10 + [("STOPPED", False)] * 2
    times = fault_times(recording(states), injected_at=0.12, to_rest_s=0.4)
    assert times.to_hold_s == pytest.approx(0.08)
    assert times.to_stopped_s == pytest.approx(0.58)
    assert (times.hold_delay_periods, times.ran_blind, times.to_rest_s) == (0, 0, 0.4)
    assert times.oldest_action_s == 0.1


def test_running_without_an_action_is_found():
    states = [("RUNNING", True)] * 4 + [("RUNNING", False)] * 2 + [("HOLD", False)] * 3
    times = fault_times(recording(states), injected_at=0.12, to_rest_s=0.4)
    assert times.ran_blind == 2
    assert times.hold_delay_periods == 2
    assert times.to_stopped_s is None
    assert times.to_rest_s is None


def test_a_policy_that_answers_in_time_holds_nothing():
    times = fault_times(recording([("RUNNING", True)] * 8), injected_at=0.12, to_rest_s=0.4)
    assert times == replace(times, to_hold_s=None, hold_delay_periods=None, to_stopped_s=None)
