"""Demonstrations are reproducible by seed, labeled with what the expert meant, and in a fixed order."""

import numpy as np
import pytest
from fake_env import FACTORY, SPEC, PointEnv

from envs.collection import collect_episodes
from envs.disturbance import Disturbance, disturbed_range
from envs.workers import WorkerError

NOISE = Disturbance(noise_std=0.3, probability=0.5)


def collect(seeds_by_task, *, configs=None, **options):
    configs = configs or {task: {"task": task} for task in seeds_by_task}
    options = {"disturbance": NOISE, "num_workers": 2, "env_factory": FACTORY} | options
    return list(collect_episodes(configs, seeds_by_task, **options))


def test_the_order_and_the_content_do_not_depend_on_the_workers():
    seeds = {"point": range(8), "other": [100, 101, 102]}
    one, three = collect(seeds, num_workers=1), collect(seeds, num_workers=3)

    assert [(e.task, e.seed) for e in one][:6] == [
        ("point", 0), ("other", 100), ("point", 1), ("other", 101), ("point", 2), ("other", 102)
    ]  # fmt: skip
    assert len(one) == 11
    for a, b in zip(one, three, strict=True):
        assert (a.task, a.seed, a.instruction, a.noisy) == (b.task, b.seed, b.instruction, b.noisy)
        for mine, theirs in (
            (a.states, b.states),
            (a.actions, b.actions),
            (a.images["top"], b.images["top"]),
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_an_episode_holds_a_frame_and_a_state_before_each_action():
    episode = collect({"point": [3]}, disturbance=Disturbance())[0]
    steps = len(episode.actions)
    assert episode.states.shape == (steps, 2)
    assert episode.success
    assert not episode.noisy
    for name in SPEC.camera_names:
        assert episode.images[name].shape == (steps, 8, 8, 3)
        assert episode.images[name][:, 0, 0, 2].tolist() == list(range(steps))
    moved = episode.states[1:] - episode.states[:-1]
    np.testing.assert_allclose(moved, episode.actions[:-1, :2], atol=1e-6)


def test_noise_moves_the_arm_but_not_the_labels_nor_the_gripper():
    noisy = collect({"point": range(6)}, disturbance=Disturbance(noise_std=0.3, probability=1.0))
    for episode in noisy:
        assert episode.noisy
        env = PointEnv(task="point")
        env.start_episode(seed=episode.seed)
        moved = episode.states[1:] - episode.states[:-1]
        executed = episode.actions[:-1].copy()
        assert np.abs(moved - executed[:, :2]).max() > 1e-3
        assert np.abs(moved).max() <= 0.05 + 1e-6
        assert (episode.actions[:, 2] == 1.0).all()
        for state, action in zip(episode.states, episode.actions, strict=True):
            env.position = state.astype(float)
            np.testing.assert_allclose(env.expert_action(), action, atol=1e-6)


def test_disturbances_scale_with_half_of_the_range_and_spare_the_gripper():
    np.testing.assert_allclose(disturbed_range(SPEC), [0.05, 0.05, 0.0], atol=1e-7)


def test_bumps_are_a_few_periods_of_steady_drift():
    drawn = Disturbance(probability=1.0, bump_probability=0.05).of_episode(SPEC, seed=3)
    values = np.stack([next(drawn) for _ in range(2000)])
    moving = np.abs(values).max(axis=1) > 0
    assert 0.1 < moving.mean() < 0.3
    assert (values[:, 2] == 0).all()
    assert np.abs(values).max() <= 0.8 * 0.05 + 1e-6
    changes = np.flatnonzero((np.diff(values, axis=0) != 0).any(axis=1))
    assert (np.diff(changes) >= 1).all()
    assert np.median(np.diff(changes)) >= 3
    again = Disturbance(probability=1.0, bump_probability=0.05).of_episode(SPEC, seed=3)
    np.testing.assert_array_equal(values, np.stack([next(again) for _ in range(2000)]))
    assert Disturbance(noise_std=1.0, probability=0.0).of_episode(SPEC, seed=3) is None


def test_failures_are_told_and_left_out():
    failed = []
    configs = {"point": {"task": "point", "expert_fails": True}}
    episodes = collect({"point": range(7)}, configs=configs, on_failure=lambda *what: failed.append(what))
    assert sorted([e.seed for e in episodes] + [seed for _, seed in failed]) == list(range(7))
    assert {seed for _, seed in failed} <= {0, 3, 6}
    assert failed


def test_steps_after_success_are_recorded():
    short = collect({"point": [1]})[0]
    longer = collect({"point": [1]}, extra_steps=4)[0]
    assert len(longer.actions) == len(short.actions) + 4


def test_errors_name_task_and_seed():
    with pytest.raises(WorkerError, match=r"(?s)demonstration of task point, seed 7.*fell over"):
        collect({"point": range(5, 9)}, configs={"point": {"task": "point", "broken": "reset"}})
    with pytest.raises(ValueError, match=r"tasks \['lfit'\] have seeds but no env config"):
        collect({"lfit": [1]}, configs={"lift": {}})
    with pytest.raises(ValueError, match=r"disturbance\.probability is 2\.0"):
        Disturbance(probability=2.0)
    with pytest.raises(ValueError, match="extra_steps is -1"):
        collect({"point": [1]}, extra_steps=-1)
