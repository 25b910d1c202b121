"""The safety filter: what passes, what is clamped, what is refused, and that no limit is ever broken."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_fixtures import arm_limits, arm_spec

from policies.runtime.limits import ChannelLimits, SafetyLimits, audit
from policies.runtime.safety import SafetyFilter, UnsafeCommand, UnsafeStart
from vla.spec import ACTION_CONVENTIONS

START = np.array([0.1, -0.2, 1.0], np.float32)
NASTY = st.one_of(
    st.floats(-0.03, 0.03),  # ordinary deltas
    st.floats(-0.6, 0.6),  # ordinary targets
    st.floats(-20, 20),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0, 0.5, -0.5]),
)
REQUESTS = st.one_of(
    st.tuples(NASTY, NASTY, NASTY).map(list),
    st.tuples(NASTY, NASTY, NASTY).map(list),
    st.sampled_from([[], [0.0], [[0.0, 0.0, 0.0]], "left", None, [0.0] * 4]),
)


def make(convention="end_effector_delta", *, control_hz=20.0, **limits):
    spec = arm_spec(convention, control_hz)
    safety = SafetyFilter(spec=spec, limits=arm_limits(**limits))
    safety.reset(START)
    return safety, spec, arm_limits(**limits)


def play(safety, requests, *, state=None):
    """Do what the controller does: hold whenever a request is refused."""
    sent = []
    for request in requests:
        try:
            command = safety.step(request, state=state)
        except UnsafeCommand:
            command = safety.hold()
        sent.append(command.action)
    return np.array(sent).reshape(len(sent), 3)


@given(
    convention=st.sampled_from(ACTION_CONVENTIONS),
    requests=st.lists(REQUESTS, min_size=1, max_size=40),
    hz=st.sampled_from([20.0, 50.0]),
    jerk=st.sampled_from([8.0, 60.0, math.inf]),
    acceleration=st.sampled_from([1.0, 4.0]),
)
@settings(max_examples=40)
def test_no_stream_of_requests_makes_the_filter_break_a_limit(convention, requests, hz, jerk, acceleration):
    safety, spec, limits = make(convention, control_hz=hz, jerk=jerk, acceleration=acceleration)
    start = safety.position
    sent = play(safety, requests)
    stopping = [safety.hold().action for _ in range(60)]
    assert safety.is_at_rest
    assert audit(np.concatenate([sent, stopping]), start=start, spec=spec, limits=limits) == []


@given(seed=st.integers(0, 10_000), convention=st.sampled_from(ACTION_CONVENTIONS))
@settings(max_examples=15)
def test_driving_at_full_speed_into_every_wall_breaks_no_limit(seed, convention):
    safety, spec, limits = make(convention)
    start = safety.position
    rng = np.random.default_rng(seed)
    goal, requests = np.zeros(3), []
    for _ in range(80):
        if rng.random() < 0.15:
            goal = rng.choice([-1.0, 1.0], 3)
        requests.append(goal * ([0.025, 0.025, 1.0] if convention != "joint_target" else [0.55, 0.55, 1.0]))
    sent = play(safety, requests)
    assert audit(sent, start=start, spec=spec, limits=limits) == []


def test_requests_within_limits_pass_unchanged():
    safety, _, _ = make()
    speed = 0.0
    for k in range(40):
        speed = min(speed + 0.002, 0.012) if k < 20 else max(speed - 0.002, 0.0)
        command = safety.step([speed, -speed / 2, 1.0])
        np.testing.assert_array_equal(command.action, np.array([speed, -speed / 2, 1.0], np.float32))
        assert command.clamps == ()
    assert not safety.counts


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_moves_nothing(broken):
    safety, _, _ = make()
    before = safety.position
    with pytest.raises(UnsafeCommand, match="not finite") as refusal:
        safety.step([0.01, broken, 1.0])
    assert refusal.value.kind == "finite"
    np.testing.assert_array_equal(safety.hold().action, np.array([0.0, 0.0, 1.0], np.float32))
    np.testing.assert_allclose(safety.position, before, atol=1e-7)
    assert safety.counts == {"refused finite": 1}


@pytest.mark.parametrize("request_", [[], [0.0, 0.0], np.zeros((3, 3)), "stop", None, {"x": 1}])
def test_what_has_the_wrong_shape_is_refused(request_):
    safety, _, _ = make()
    with pytest.raises(UnsafeCommand) as refusal:
        safety.step(request_)
    assert refusal.value.kind in ("shape", "finite")  # None becomes NaN


@pytest.mark.parametrize("convention", ["end_effector_delta", "joint_delta"])
def test_a_little_over_a_limit_is_clamped_and_counted_and_ten_times_is_refused(convention):
    safety, _, _ = make(convention, velocity=2.0, acceleration=math.inf, jerk=math.inf, step=0.02)
    command = safety.step([0.02 * 1.01, 0.0, 1.0])
    assert command.action[0] == pytest.approx(0.02, rel=1e-3)
    assert command.action[0] <= 0.02
    assert command.clamps == ("step:x",)
    with pytest.raises(UnsafeCommand, match=r"'x' was commanded 0.2, 10 x its step limit") as refusal:
        safety.step([0.2, 0.0, 1.0])
    assert refusal.value.kind == "step"
    assert safety.counts == {"step": 1, "refused step": 1}


def test_a_joint_target_a_little_out_of_range_is_clamped_and_far_out_is_refused():
    safety, _, _ = make("joint_target", velocity=50.0, acceleration=math.inf, jerk=math.inf)
    for _ in range(3):
        command = safety.step([0.505, -0.2, 1.0])
    assert command.action[0] == pytest.approx(0.5, rel=1e-4)
    assert command.action[0] <= 0.5
    assert "position:x" in command.clamps
    with pytest.raises(UnsafeCommand) as refusal:
        safety.step([5.0, -0.2, 1.0])
    assert refusal.value.kind == "position"


def test_a_gripper_out_of_range_is_refused_and_its_rate_is_limited():
    safety, _, _ = make()
    with pytest.raises(UnsafeCommand, match="gripper"):
        safety.step([0.0, 0.0, 10.0])
    openings = [float(safety.step([0.0, 0.0, 0.0]).action[2]) for _ in range(6)]
    np.testing.assert_allclose(openings, [0.8, 0.6, 0.4, 0.2, 0.0, 0.0], atol=1e-3)
    assert safety.counts["gripper"] == 4


def test_a_seam_jump_of_half_a_radian_is_smoothed_and_arrives_without_overshoot():
    safety, spec, limits = make(
        "joint_target", velocity=2.0, acceleration=10.0, jerk=200.0, high=1.5, low=-1.5
    )
    start = safety.position
    sent = play(safety, [[0.6, -0.2, 1.0]] * 40)
    assert audit(sent, start=start, spec=spec, limits=limits) == []
    assert sent[-1, 0] == pytest.approx(0.6, abs=1e-6)
    assert sent[:, 0].max() <= 0.6 + 0.03


def test_a_hold_slows_down_within_limits_and_stays():
    safety, spec, limits = make()
    start = safety.position
    moving = play(safety, [[0.025, 0.0, 1.0]] * 8)
    assert not safety.is_at_rest
    held = np.array([safety.hold().action for _ in range(50)])
    assert audit(np.concatenate([moving, held]), start=start, spec=spec, limits=limits) == []
    assert (held[-5:, :2] == 0).all()
    assert (held[:, 2] == 1).all()


@pytest.mark.parametrize("way", [1.0, -1.0])
def test_the_limit_of_the_tracking_error_keeps_a_blocked_arm_from_winding_up(way):
    safety, _, _ = make(max_tracking_error=0.05)
    blocked = START.copy()
    play(safety, [[0.02 * way, 0.0, 1.0]] * 40, state=blocked)
    to_stop = 0.4**2 / (2 * 4.0)  # from 0.4 m/s
    assert abs(safety.position[0] - blocked[0]) <= 0.05 + to_stop
    assert safety.counts["tracking_error"] > 10


def test_arming_outside_the_range_is_refused_with_the_place():
    safety, _, _ = make()
    with pytest.raises(UnsafeStart, match=r"'x' is at 0.9, outside of \[-0.5, 0.5\]"):
        safety.reset(np.array([0.9, 0.0, 1.0], np.float32))


def test_a_gripper_keeps_its_command_when_the_robot_is_armed_again():
    safety, _, _ = make()
    play(safety, [[0.0, 0.0, 0.0]] * 8)
    safety.reset(np.array([0.0, 0.0, 0.4], np.float32))  # something thick is between the fingers
    assert safety.hold().action[2] == pytest.approx(0.0, abs=1e-5)


def test_the_audit_finds_what_an_unfiltered_stream_breaks():
    spec, limits = arm_spec(), arm_limits()
    found = audit(
        np.array([[0.1, 0.0, 1.0], [math.nan, 0.0, 1.0]]),
        start=np.array([0.0, 0.0, 1.0]),
        spec=spec,
        limits=limits,
    )
    assert {violation.kind for violation in found} >= {"velocity", "acceleration", "jerk", "position"}
    assert {violation.channel for violation in found} == {"x"}


def test_limits_of_another_robot_are_refused():
    limits = arm_limits()
    with pytest.raises(ValueError, match="safety limits are for"):
        SafetyFilter(
            spec=arm_spec(),
            limits=SafetyLimits(channels={name: limits.channels[name] for name in ("x", "y")}),
        )
    with pytest.raises(ValueError, match="low must be less than high"):
        ChannelLimits(low=1.0, high=0.0, velocity=1.0)
    with pytest.raises(ValueError, match="velocity"):
        ChannelLimits(low=-1.0, high=1.0, velocity=math.nan)


def test_limits_of_older_recordings_still_load():
    limits = arm_limits()
    data = limits.to_json()
    data["leash"] = data.pop("max_tracking_error")
    assert SafetyLimits.from_json(data) == limits
