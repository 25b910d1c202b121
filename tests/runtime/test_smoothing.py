"""From targets at 20 to 50 Hz to setpoints at 1 kHz: limits hold, whatever the targets do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.runtime.smoothing import MotionLimits, TargetSmoother

# FR3 joints 1, 5 and 6, and a Cartesian axis [m] (libfranka 0.21.2)
LIMITS = MotionLimits(
    velocity=np.array([2.62, 5.26, 4.18, 3.0]),
    acceleration=np.array([10.0, 10.0, 10.0, 9.0]),
    jerk=np.array([5000.0, 5000.0, 5000.0, 4500.0]),
)
MS = 0.001


def smoother(*, target_period_s=0.05, start=None, limits=LIMITS):
    begin = np.zeros(len(limits.velocity)) if start is None else start
    return TargetSmoother(start=begin, limits=limits, target_period_s=target_period_s, period_s=MS)


def follow(smooth, targets, *, per_target=50, after=0):
    """Return setpoint positions, velocities and accelerations, a row a millisecond."""
    points = []
    for target in targets:
        smooth.follow(np.asarray(target, float))
        points += [smooth.step() for _ in range(per_target)]
    points += [smooth.step() for _ in range(after)]
    return tuple(
        np.array([getattr(p, name) for p in points]) for name in ("position", "velocity", "acceleration")
    )


def require_within(position, velocity, acceleration, limits=LIMITS):
    """Check what Ruckig says, and what the positions themselves say."""
    assert (np.abs(velocity) <= limits.velocity * (1 + 1e-9)).all()
    assert (np.abs(acceleration) <= limits.acceleration * (1 + 1e-9)).all()
    jerk = np.diff(acceleration, axis=0) / MS
    assert (np.abs(jerk) <= limits.jerk * (1 + 1e-6)).all()
    measured_velocity = np.diff(position, axis=0) / MS
    assert (np.abs(measured_velocity) <= limits.velocity * (1 + 1e-6)).all()
    measured_acceleration = np.diff(position, n=2, axis=0) / MS**2
    assert (np.abs(measured_acceleration) <= limits.acceleration * (1 + 1e-3)).all()


@pytest.mark.parametrize("period_s", [0.02, 0.05])
def test_a_seam_jump_of_half_a_radian_stays_within_all_limits(period_s):
    smooth = smoother(target_period_s=period_s)
    per_target = round(period_s / MS)
    before = [[0.3 * period_s * k] * 4 for k in range(1, 11)]
    after = [[0.3 * period_s * k + 0.5] * 4 for k in range(11, 40)]
    position, velocity, acceleration = follow(smooth, before + after, per_target=per_target)
    require_within(position, velocity, acceleration)
    assert np.abs(position[-1] - after[-1]).max() < 0.02  # it has caught up


@given(
    jumps=st.lists(st.tuples(*[st.floats(-0.5, 0.5)] * 4), min_size=1, max_size=6),
    per_target=st.sampled_from([20, 50]),
)
@settings(max_examples=15)
def test_no_targets_break_a_limit_and_in_the_end_it_rests(jumps, per_target):
    smooth = smoother(target_period_s=per_target * MS)
    motion = follow(smooth, np.cumsum(jumps, axis=0), per_target=per_target, after=1200)
    require_within(*motion)
    assert smooth.is_at_rest


def test_a_steady_stream_is_followed_at_its_speed():
    smooth = smoother()
    targets = [[0.01 * k] * 4 for k in range(1, 41)]  # 0.2 rad/s
    position, velocity, _ = follow(smooth, targets)
    np.testing.assert_allclose(velocity[500:], 0.2, atol=1e-6)
    np.testing.assert_allclose(position[-1], targets[-1], atol=1e-9)


def test_a_stop_at_full_speed_is_jerk_limited_and_takes_what_the_limits_allow():
    limits = MotionLimits(velocity=np.array([2.62]), acceleration=np.array([10.0]), jerk=np.array([5000.0]))
    smooth = smoother(limits=limits)
    speeds = np.minimum(0.2 * np.arange(1, 31), 2.2)  # [rad/s]
    moving = follow(smooth, (np.cumsum(speeds) * 0.05)[:, None])
    assert moving[1][-1, 0] == pytest.approx(2.2, abs=1e-3)
    smooth.stop()
    stopping = [smooth.step() for _ in range(400)]
    assert smooth.is_at_rest
    both = tuple(
        np.concatenate([one, [getattr(p, name) for p in stopping]])
        for one, name in zip(moving, ("position", "velocity", "acceleration"), strict=True)
    )
    require_within(*both, limits=limits)
    travel = stopping[-1].position[0] - moving[0][-1, 0]
    assert travel == pytest.approx(2.2**2 / (2 * 10.0), rel=0.1)


def test_setpoints_reach_each_target_when_the_next_is_due():
    smooth = smoother()
    path = 0.1 * np.sin(0.1 * np.arange(60))
    position, _, _ = follow(smooth, np.repeat(path[:, None], 4, axis=1))
    at_targets = position[49::50, 0]
    assert np.abs(at_targets[2:] - path[2:]).max() < 1e-6


def test_when_no_target_comes_it_stops_by_itself_and_goes_on_from_there():
    smooth = smoother()
    motion = follow(smooth, [[0.05 * k] * 4 for k in range(1, 11)], after=600)
    assert smooth.is_at_rest
    again = follow(smooth, [[0.5] * 4] * 20)
    require_within(*(np.concatenate(pair) for pair in zip(motion, again, strict=True)))
    np.testing.assert_allclose(again[0][-1], 0.5, atol=1e-3)


def test_bad_targets_and_bad_limits_are_refused():
    smooth = smoother()
    with pytest.raises(ValueError, match="finite"):
        smooth.follow(np.array([0.0, np.nan, 0.0, 0.0]))
    with pytest.raises(ValueError, match="4 finite numbers"):
        smooth.follow(np.zeros(3))
    with pytest.raises(ValueError, match="jerk limits"):
        MotionLimits(velocity=np.ones(1), acceleration=np.ones(1), jerk=np.array([np.inf]))
    with pytest.raises(ValueError, match="period_s"):
        TargetSmoother(start=np.zeros(4), limits=LIMITS, target_period_s=0.001, period_s=0.05)
