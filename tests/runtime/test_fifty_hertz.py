"""The check of 50 Hz behind 200 ms: its parts, and a few seconds of it in simulated time by the expert."""

import contextlib
import dataclasses

import numpy as np
import pytest
from fifty_hertz import (
    CONTROL_HZ,
    DELAY_S,
    FastTabletop,
    Resampled,
    ToAndFro,
    configured,
    measure,
    record_run,
    shortcomings,
)
from runtime_fixtures import arm_spec, observation_at

from envs.tabletop.env import TabletopEnv
from policies.runtime.clock import SimulatedClock
from policies.runtime.inference import SimulatedInference


class Fixed:
    """A policy that always predicts the same."""

    frame_offsets, action_horizon = (0,), 8

    def __init__(self, chunk, spec):
        self.chunk, self.robot_spec, self.instructions = np.asarray(chunk, np.float32), spec, []

    def predict(self, observations):
        self.instructions += [one.instruction for one in observations]
        return np.stack([self.chunk for _ in observations])


def test_a_resampled_path_passes_the_same_places_at_the_same_speed():
    rng = np.random.default_rng(0)
    chunk = np.concatenate([rng.uniform(-0.025, 0.025, (8, 2)), rng.integers(0, 2, (8, 1))], axis=1)
    fast = Resampled(Fixed(chunk, arm_spec()), control_hz=CONTROL_HZ)
    (finer,) = fast.predict([observation_at(0.0)])
    assert (fast.action_horizon, fast.robot_spec.control_hz) == (20, CONTROL_HZ)
    assert finer.shape == (20, 3)
    coarse, fine = np.cumsum(chunk[:, :2], axis=0), np.cumsum(finer[:, :2], axis=0)
    np.testing.assert_allclose(fine[4::5], coarse[1::2], atol=1e-6)  # every 0.1 s both are there
    np.testing.assert_array_equal(finer[[0, 2, 3, 19], 2], chunk[[0, 0, 1, 7], 2])
    assert fast.robot_spec.action_high[0] * CONTROL_HZ == pytest.approx(0.025 * 20.0)


def test_the_policy_is_told_one_thing_and_another_by_turns():
    policy = Fixed(np.zeros((8, 3)), arm_spec())
    by_turns = ToAndFro(policy, instructions=("here", "there"))
    by_turns.predict([observation_at(stamp) for stamp in (0.1, 2.9, 3.1, 6.1)])
    assert policy.instructions == ["here", "here", "there", "here"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Four seconds of the expert at 50 Hz, its chunks 200 ms late."""
    clock, env = SimulatedClock(), TabletopEnv(task="reach", image_size=16, level="none")

    class Expert(Fixed):
        def predict(self, observations):
            step = env.expert_action()
            self.chunk = np.where(np.arange(7) < 6, step * 0.8 ** np.arange(8)[:, None], step)
            return super().predict(observations).astype(np.float32)

    with contextlib.closing(env):
        env.start_episode(seed=3)
        before = env.hand().position
        recording = record_run(
            configured("bundle=none"),
            env=env,
            policy=Expert(np.zeros((8, 7)), env.robot_spec),
            clock=clock,
            make_inference=lambda policy: SimulatedInference(
                policy=policy, clock=clock, delay_s=lambda: DELAY_S
            ),
            seconds=4.0,
            directory=tmp_path_factory.mktemp("fifty"),
        )
        yield recording, float(np.linalg.norm(env.hand().position - before))


def test_a_command_goes_out_every_20_ms_within_limits_and_moves_the_arm(recorded):
    recording, traveled = recorded
    measured = measure(recording)
    assert measured["commands_due"] >= 200
    assert (measured["commands_missed"], measured["times_held"], measured["limits_broken"]) == (0, 0, 0)
    assert 0.0 < measured["jerk_share"] <= 1.0
    assert 0.0 < measured["sent_seam_jump_share"] <= 1.0
    assert traveled > 0.05
    assert measured["path_m"] > 0.8 * traveled
    assert shortcomings({**measured, "path_m": 1.0}, seconds=4.0) == []


def test_what_is_missed_held_or_too_abrupt_is_found(recorded):
    recording, _ = recorded
    periods = list(recording.periods)
    k = next(i for i, one in enumerate(periods) if one.target is not None) + 20
    periods[k] = dataclasses.replace(periods[k], commanded=[0.02, *periods[k].commanded[1:]])
    periods[k + 5] = dataclasses.replace(periods[k + 5], target=None)
    events = ["RUNNING -> HOLD: no action is left"]
    periods[k + 9] = dataclasses.replace(periods[k + 9], state="HOLD", events=events)
    broken = dataclasses.replace(recording, periods=periods)
    measured = measure(broken)
    assert measured["commands_missed"] == 2
    assert measured["times_held"] == 1
    assert measured["jerk_share"] > 1.0
    found = " ".join(shortcomings(measured, seconds=60.0))
    for words in ("commands_missed is 2", "times_held is 1", "limits_broken", "jerk_share", "of 60 s"):
        assert words in found


def test_the_servos_get_all_that_was_commanded_since_and_no_more_than_they_can():
    clock, env = SimulatedClock(), TabletopEnv(task="reach", image_size=16, level="none")
    with contextlib.closing(env):
        env.start_episode(seed=3)
        robot, sent = FastTabletop(env, clock=clock, control_hz=CONTROL_HZ), []
        advance = env.advance
        env.advance = lambda action: (sent.append(action.copy()), advance(action))[1]
        robot.observe()
        for _ in range(10):  # 0.2 s, so that the servos have taken 4 periods
            robot.command(np.float32([0.01, 0, 0, 0, 0, 0, 0.5]))
            clock.advance(1 / CONTROL_HZ)
            robot.observe()
        assert len(sent) == 4
        assert max(float(action[0]) for action in sent) <= 0.025 + 1e-7
        assert sum(float(action[0]) for action in sent) == pytest.approx(0.1, abs=0.011)
        assert sent[-1][6] == 0.5
