"""Our experts for tasks of Meta-World: they finish, from bad states too, and stay within range."""

import numpy as np
import pytest

from envs.registry import make_env

pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install -e '.[metaworld]'")

from envs.metaworld.experts import MENDED, mended_action
from envs.metaworld.tasks import MT50


def finishes(env):
    return any(env.advance(env.expert_action()).success for _ in range(env.max_steps))


@pytest.mark.parametrize("task", MENDED)
def test_an_expert_finishes(task):
    env = make_env({"family": "metaworld", "task": task, "image_size": 32})
    env.start_episode(seed=1)
    assert finishes(env)


@pytest.mark.parametrize("task", ["push-back", "disassemble", "assembly", "pick-out-of-hole"])
def test_an_expert_opens_the_gripper_that_was_closed_before_the_object_was_between_the_fingers(task):
    env = make_env({"family": "metaworld", "task": task, "image_size": 32})
    env.start_episode(seed=1)
    for _ in range(60):
        action = env.expert_action()
        action[3] = 1.0
        env.advance(action)
    assert env.read_state()[3] < 0.5
    assert finishes(env)


def test_actions_lie_in_their_range_wherever_things_are():
    rng = np.random.default_rng(0)
    for task in MENDED:
        for _ in range(200):
            seen = rng.uniform(-0.5, 1.0, 39)
            assert np.abs(mended_action(task, seen)).max() <= 1.0
    assert set(MENDED) < set(MT50)
