"""The Gymnasium side of the tabletop: API, seeding, options, endings, clear errors."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs.gymnasium_ids  # noqa: F401  (registers the ids)
from envs.base import SUCCESS_HOLD_STEPS
from envs.registry import make_env
from envs.tabletop.env import TASKS, TabletopEnv
from envs.tabletop.instructions import HELDOUT_WORDINGS, TRAIN_WORDINGS

IDS = [f"vla/Tabletop{''.join(word.title() for word in task.split('_'))}-v0" for task in TASKS]


@pytest.fixture
def lift():
    env = TabletopEnv(task="lift", image_size=32)
    yield env
    env.close()


def small(task, **more):
    return TabletopEnv(task=task, image_size=32, cameras=("exterior",), **more)


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_checker_has_nothing_to_say(env_id):
    env = gymnasium.make(env_id, render_mode="rgb_array", image_size=32)
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_episode_whatever_came_before(task):
    first, second = small(task), small(task)
    second.start_episode(seed=7)
    for _ in range(5):
        second.advance(second.expert_action())
    rows = []
    for env in (first, second):
        observation, info = env.reset(seed=123)
        row = [observation["images"]["exterior"], info["instruction"], env.swapped_instruction()]
        for _ in range(12):
            env.advance(env.expert_action())
        rows.append([*row, env.read_state(), env.render_camera("exterior")])
        env.close()
    for left, right in zip(*rows, strict=True):
        np.testing.assert_array_equal(left, right)


def test_other_seeds_and_tasks_give_other_scenes(lift):
    one = lift.reset(seed=1)[0]["images"]["exterior"]
    other = lift.reset(seed=2)[0]["images"]["exterior"]
    reach = small("reach")
    same_seed = reach.reset(seed=1)[0]["images"]["exterior"]
    reach.close()
    assert (one != other).mean() > 0.3
    assert (one != same_seed).mean() > 0.3


@pytest.mark.parametrize("task", TASKS)
def test_instruction_is_unambiguous_and_swapped_names_another_goal(task):
    env = small(task)
    for seed in range(25):
        env.start_episode(seed=seed)
        names = [item.name for item in env._scene.objects]
        assert len(set(names)) == len(names)
        if task not in ("open_drawer", "close_drawer"):
            assert 3 <= len(names) <= 5
            assert any(name in env.instruction for name in names)
        assert env.swapped_instruction() != env.instruction
        assert not env._goal_holds()
    env.close()


@pytest.mark.parametrize("task", TASKS)
def test_wordings_are_enough_and_apart(task):
    train, heldout = TRAIN_WORDINGS[task], HELDOUT_WORDINGS[task]
    assert len(train) >= 5
    assert len(heldout) >= 2
    assert not set(train) & set(heldout)


def test_wording_is_chosen_by_config_or_option(lift):
    lift.reset(seed=3, options={"wording": "heldout"})
    heldout = {
        words.format(object=item.name) for words in HELDOUT_WORDINGS["lift"] for item in lift._scene.objects
    }
    assert {lift.instruction, lift.swapped_instruction()} <= heldout
    lift.reset(seed=3)
    assert lift.instruction not in heldout


def test_episode_terminates_after_the_goal_has_held(lift):
    lift.start_episode(seed=0)
    held, outcome = 0, None
    for _ in range(lift.max_steps):
        outcome = lift.advance(lift.expert_action())
        held = held + 1 if lift._goal_holds() else 0
        if outcome.terminated:
            break
        assert outcome.reward == 0.0
    assert outcome is not None
    assert outcome.success
    assert outcome.terminated
    assert not outcome.truncated
    assert outcome.reward == 1.0
    assert held == SUCCESS_HOLD_STEPS
    after = lift.advance(lift.expert_action())  # stepping on is allowed, and pays nothing more
    assert after.reward == 0.0


def test_time_limit_truncates():
    env = small("lift", max_steps=3)
    env.start_episode(seed=0)
    still = np.array([0, 0, 0, 0, 0, 0, 1], dtype=np.float32)
    outcomes = [env.advance(still) for _ in range(3)]
    assert [outcome.truncated for outcome in outcomes] == [False, False, True]
    assert not any(outcome.terminated for outcome in outcomes)
    env.close()


def test_bad_actions_are_refused_and_excess_is_counted(lift):
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        TabletopEnv(task="reach").advance(np.zeros(7, np.float32))
    lift.start_episode(seed=0)
    with pytest.raises(ValueError, match=r"shape \(6,\)"):
        lift.advance(np.zeros(6, np.float32))
    with pytest.raises(ValueError, match="delta_y"):
        lift.advance(np.array([0, np.nan, 0, 0, 0, 0, 1], np.float32))
    lift.advance(np.array([0.5, 0, 0, 0, 0, 0, 1], np.float32))
    lift.advance(np.array([0.025, 0, 0, 0, 0, 0, 1], np.float32))
    assert lift.num_clipped == 1


def test_observations_lie_in_their_space(lift):
    lift.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(30):
        action = rng.choice([-1.0, 1.0], 7).astype(np.float32) * lift.robot_spec.action_high
        lift.advance(np.clip(action, lift.robot_spec.action_low, lift.robot_spec.action_high))
        assert lift.observation_space["state"].contains(lift.read_state())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"family": "tabeltop", "task": "lift"}, "tabletop"),
        ({"family": "tabletop", "task": "lfit"}, "lift"),
        ({"family": "tabletop", "task": "lift", "image_sise": 96}, "image_size"),
        ({"family": "tabletop"}, "task"),
        ({"family": "tabletop", "task": "lift", "level": "tran"}, "train"),
        ({"family": "tabletop", "task": "lift", "wording": "other"}, "heldout"),
        ({"family": "tabletop", "task": "lift", "cameras": ["wirst"]}, "wrist"),
        ({"family": "tabletop", "task": "lift", "render_quality": "best"}, "fast"),
        ({"family": "tabletop", "task": "lift", "render_mode": "human"}, "unknown key .env.render_mode."),
        ({"family": "tabletop", "task": "lift", "cameras": []}, "name at least one"),
        ({"family": "tabletop", "task": "lift", "max_steps": 0}, "max_steps"),
    ],
)
def test_bad_config_names_what_is_right(config, message):
    with pytest.raises(ValueError, match=message):
        make_env(config)


def test_bad_reset_option_names_what_is_right(lift):
    with pytest.raises(ValueError, match="did you mean 'wording'"):
        lift.reset(seed=0, options={"wordin": "train"})
    with pytest.raises(ValueError, match="exterior"):
        lift.render_camera("overhead")


def test_config_builds_what_it_says():
    env = make_env(
        {"family": "tabletop", "task": "push", "image_size": 48, "cameras": ["wrist"], "wording": "heldout"}
    )
    observation, info = env.reset(seed=5)
    assert observation["images"]["wrist"].shape == (48, 48, 3)
    assert set(observation["images"]) == {"wrist"}
    assert info["task"] == "push"
    assert env.robot_spec.camera_names == ("wrist",)
    env.close()
