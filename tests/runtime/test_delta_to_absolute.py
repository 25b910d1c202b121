"""Changes that count from where the robot was commanded to be when the policy looked."""

import numpy as np
import pytest
from control_fixtures import DT, Harness
from runtime_fixtures import arm_spec

from policies.runtime.delta_to_absolute import DeltaToAbsolute
from policies.runtime.safety import UnsafeCommand

ABSOLUTE = np.array([False, False, True])


def converter(**arguments):
    made = DeltaToAbsolute(spec=arm_spec(), absolute=ABSOLUTE, **arguments)
    for k in range(10):
        made.note(0.05 * k, np.array([0.1 * k, 0.0, 1.0]))
    return made


def test_a_chunk_counts_from_the_position_at_its_capture():
    chunk = np.float32([[0.01, 0.0, 0.3], [0.02, -0.01, 0.4]])
    np.testing.assert_allclose(
        converter().to_positions(chunk, stamp=0.21), [[0.41, 0.0, 0.3], [0.43, -0.01, 0.4]], rtol=1e-6
    )


def test_positions_and_actions_are_inverse_to_one_another_within_the_action_range():
    rng = np.random.default_rng(0)
    chunk = rng.uniform(-0.02, 0.02, (8, 3)).astype(np.float32)
    made = converter()
    np.testing.assert_allclose(made.to_actions(made.to_positions(chunk, 0.3), 0.3), chunk, atol=1e-7)


def test_what_is_far_away_is_approached_at_the_speed_of_the_action_range():
    request = converter().to_request(np.float32([5.0, -5.0, 0.2]), np.zeros(3))
    np.testing.assert_allclose(request, [0.025, -0.025, 0.2])


def test_when_switched_off_nothing_is_changed():
    chunk = np.float32([[0.01, 0.0, 0.3]])
    made = converter(is_enabled=False)
    np.testing.assert_array_equal(made.to_positions(chunk, 0.2), chunk)
    np.testing.assert_array_equal(made.to_request(chunk[0], np.ones(3)), chunk[0])


@pytest.mark.parametrize("schedule", ["async", "ensemble", "rtc"])
def test_a_policy_that_needs_only_the_actions_that_come_too_late_arrives_all_the_same(tmp_path, schedule):
    goal = 0.03
    run = Harness(tmp_path, schedule=schedule, delay_s=3 * DT)

    def answer(observation):
        left = goal - float(observation.state[0])
        steps = np.clip(left - 0.02 * np.arange(8), 0.0, 0.02) if left > 0 else np.full(8, 0.0)
        return np.stack([steps, np.zeros(8), np.ones(8)], axis=1).astype(np.float32)

    run.policy.answer = answer
    run.started(40)
    assert run.arm.position[0] == pytest.approx(goal, abs=5e-3)
    assert run.violations() == []


def test_changes_count_from_nothing_only_where_nothing_counts():
    changes = np.zeros((2, 3), np.float32)
    unknown = DeltaToAbsolute(spec=arm_spec(), absolute=ABSOLUTE)
    with pytest.raises(UnsafeCommand, match="no commanded position is known"):
        unknown.to_positions(changes, 1.0)
    assert len(unknown.to_actions(changes[:0], 1.0)) == 0
    disabled = DeltaToAbsolute(spec=arm_spec(), absolute=ABSOLUTE, is_enabled=False)
    np.testing.assert_array_equal(disabled.to_positions(changes + 1, 1.0), changes + 1)


def test_velocities_count_by_the_period():
    spec = arm_spec("joint_velocity")
    made = DeltaToAbsolute(spec=spec, absolute=ABSOLUTE)
    made.note(0.0, np.array([0.1, 0.0, 1.0]))
    velocities = np.float32([[0.02, -0.01, 0.3], [0.02, 0.0, 0.4]])
    positions = made.to_positions(velocities, 0.0)
    np.testing.assert_allclose(positions[:, 0], [0.1 + 0.02 / 20, 0.1 + 0.04 / 20], rtol=1e-6)
    np.testing.assert_allclose(made.to_actions(positions, 0.0), velocities, atol=1e-6)
