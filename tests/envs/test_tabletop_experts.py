"""Scripted experts succeed, also when they are pushed off their way, and their scenes are honest."""

import numpy as np
import pytest

from envs.tabletop.env import TASKS, TabletopEnv

NOISE_M = 0.4 * 0.025  # of the perturbed actions, standard deviation


def run_episode(env, seed, *, noisy=False):
    """Run the expert; with noise, half of the actions are perturbed and the expert has to correct."""
    env.start_episode(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(env.max_steps):
        action = env.expert_action().copy()
        if noisy and rng.random() < 0.5:
            action[:3] += rng.normal(0, NOISE_M, 3).astype(np.float32)
        outcome = env.advance(action)
        if outcome.terminated or outcome.truncated:
            break
    return outcome.success


@pytest.mark.parametrize("task", TASKS)
def test_expert_succeeds(task):
    env = TabletopEnv(task=task)
    assert [seed for seed in range(100, 106) if not run_episode(env, seed)] == []


@pytest.mark.parametrize("task", TASKS)
def test_expert_corrects_perturbations(task):
    env = TabletopEnv(task=task)
    assert sum(run_episode(env, seed, noisy=True) for seed in range(200, 206)) >= 5


@pytest.mark.parametrize("task", TASKS)
def test_expert_labels_are_within_limits_and_calm_after_success(task):
    env = TabletopEnv(task=task)
    env.start_episode(seed=42)
    done = 0
    for _ in range(env.max_steps + 10):
        action = env.expert_action()
        assert (action >= env.robot_spec.action_low - 1e-6).all()
        assert (action <= env.robot_spec.action_high + 1e-6).all()
        done += env.advance(action).terminated
        if done == 10:
            break
    assert done == 10
    assert env._goal_holds()  # ten periods later it still does


@pytest.mark.parametrize("task", TASKS)
def test_following_another_instruction_is_no_success(task):
    env = TabletopEnv(task=task)
    for seed in range(60, 64):
        env.start_episode(seed=seed)
        goals, asked = env._goals, env._goal
        other = next(goal for goal in goals if goal != asked)
        for _ in range(70):
            hand = env.hand()
            env.advance(env._task.expert(env._scene, hand, other))
            if env._task.is_reached(env._scene, hand, other):
                assert not env._goal_holds()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("level", ["train", "heldout"])
@pytest.mark.parametrize("task", TASKS)
def test_expert_succeeds_on_200_seeds(task, level):
    env = TabletopEnv(task=task, level=level)
    failed = [seed for seed in range(1000, 1200) if not run_episode(env, seed)]
    print(f"{task}: {200 - len(failed)} of 200 at level {level}, failed {failed}")
    assert len(failed) <= 6


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", TASKS)
def test_expert_succeeds_under_noise_on_200_seeds(task):
    env = TabletopEnv(task=task)
    failed = [seed for seed in range(2000, 2200) if not run_episode(env, seed, noisy=True)]
    print(f"{task}: {200 - len(failed)} of 200 under noise, failed {failed}")
    assert len(failed) <= 20
