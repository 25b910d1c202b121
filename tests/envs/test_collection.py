"""Demonstrations are reproducible by seed, labelled with what the expert meant, and in a fixed order."""

import numpy as np
import pytest
from fake_env import FACTORY, SPEC, PointEnv

from envs.collection import collect_episodes, noise_scale
from envs.workers import WorkerError


def collect(seeds_by_task, *, configs=None, **options):
    configs = configs or {task: {"task": task} for task in seeds_by_task}
    options = {"noise_std": 0.3, "noise_probability": 0.5, "num_workers": 2, "env_factory": FACTORY} | options
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
    episode = collect({"point": [3]}, noise_probability=0.0)[0]
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
    noisy = collect({"point": range(6)}, noise_probability=1.0)
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


def test_noise_scale_is_a_share_of_half_of_the_range_and_spares_the_gripper():
    np.testing.assert_allclose(noise_scale(SPEC, 0.4), [0.02, 0.02, 0.0], atol=1e-7)


def test_failures_are_told_and_left_out():
    failed = []
    configs = {"point": {"task": "point", "expert_fails": True}}
    episodes = collect({"point": range(7)}, configs=configs, on_failure=lambda *what: failed.append(what))
    assert sorted([e.seed for e in episodes] + [seed for _, seed in failed]) == list(range(7))
    assert {seed for _, seed in failed} <= {0, 3, 6}
    assert failed


def test_steps_after_success_and_chosen_cameras_are_recorded():
    short = collect({"point": [1]})[0]
    longer = collect({"point": [1]}, extra_steps=4, camera_names=["side"])[0]
    assert len(longer.actions) == len(short.actions) + 4
    assert list(longer.images) == ["side"]


def test_errors_name_task_and_seed():
    with pytest.raises(WorkerError, match=r"(?s)demonstration of task point, seed 7.*fell over"):
        collect({"point": range(5, 9)}, configs={"point": {"task": "point", "broken": "reset"}})
    with pytest.raises(ValueError, match=r"tasks \['lfit'\] have seeds but no env config"):
        collect({"lfit": [1]}, configs={"lift": {}})
    with pytest.raises(ValueError, match=r"noise_probability=2\.0"):
        collect({"point": [1]}, noise_probability=2.0)
