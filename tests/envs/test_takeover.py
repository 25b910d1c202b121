"""An expert takes over where a policy has led, and only that is recorded."""

import numpy as np
import pytest
from fake_env import FACTORY, PointEnv

from envs.collection import TakeOver, collect_takeovers
from envs.workers import WorkerError

CONFIGS = {"point": {"task": "point"}}
AWAY = np.tile(np.float32([0.03, -0.05, 0.0]), (6, 1))  # not where the expert would go


def collect(takeovers, **options):
    failed = []
    found = collect_takeovers(
        CONFIGS,
        takeovers,
        num_workers=1,
        env_factory=FACTORY,
        on_failure=lambda *which: failed.append(which),
        **options,
    )
    return list(found), failed


def played(seed, actions):
    """Return the state after actions, and how many there were until success."""
    env = PointEnv(task="point")
    env.start_episode(seed=seed)
    for count, action in enumerate(actions, start=1):
        if env.advance(action).success:
            return env.read_state(), count
    return env.read_state(), None


def test_what_is_recorded_begins_where_the_policy_had_led():
    (episode,), failed = collect([TakeOver(task="point", seed=3, lead=AWAY)])
    assert (episode.taken_over_at, failed) == (6, [])
    np.testing.assert_array_equal(episode.states[0], played(3, AWAY)[0])
    assert played(3, [*AWAY, *episode.actions])[1] == 6 + len(episode.actions)


def test_what_does_not_arrive_is_counted_and_leaves_nothing():
    lost = TakeOver(task="point", seed=3, lead=AWAY[:0], own=AWAY)
    good = TakeOver(task="point", seed=3, lead=AWAY)
    episodes, failed = collect([lost, good])
    assert [one.taken_over_at for one in episodes] == [6]
    assert failed == [("point", 3)]


def test_the_policy_s_own_success_is_recorded_as_it_was():
    (expert,), _ = collect([TakeOver(task="point", seed=3, lead=AWAY[:0])])
    own = TakeOver(task="point", seed=3, lead=AWAY[:0], own=expert.actions)
    (episode,), _ = collect([own], extra_steps=4)
    np.testing.assert_array_equal(episode.actions, expert.actions)
    np.testing.assert_array_equal(episode.images["top"], expert.images["top"])


def test_a_lead_that_reaches_the_goal_is_of_another_environment():
    (expert,), _ = collect([TakeOver(task="point", seed=3, lead=AWAY[:0])])
    with pytest.raises(WorkerError, match="the environment has changed since"):
        collect([TakeOver(task="point", seed=3, lead=expert.actions)])
