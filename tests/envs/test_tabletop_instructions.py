"""Sentences name goals: every wording is read back, and a scene is given the goal that a sentence names."""

import pytest

from envs.registry import make_env
from envs.tabletop.env import TASKS, GoalNotInScene
from envs.tabletop.instructions import (
    HELDOUT_WORDINGS,
    TRAIN_WORDINGS,
    UnknownInstruction,
    phrase,
    read_instruction,
)

WORDS = [
    {
        "object": "red cube",
        "target": "blue brick",
        "mat": "green mat",
        "drawer": "orange drawer",
        "where": where,
    }
    for where in ("in the bowl", "on the purple mat")
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("wording", "table"), [("train", TRAIN_WORDINGS), ("heldout", HELDOUT_WORDINGS)])
def test_every_wording_is_read_back(task, wording, table):
    for index in range(len(table[task])):
        for words in WORDS:
            found, named = read_instruction(phrase(task, wording, index, words).capitalize() + ".")
            assert found == task
            assert named.items() <= words.items()


@pytest.mark.parametrize("sentence", ["lift the pink cube", "do a flip", "", "lift the red cube twice"])
def test_what_names_no_goal_is_told_the_nearest_wording(sentence):
    with pytest.raises(UnknownInstruction, match="red, green, blue") as refused:
        read_instruction(sentence)
    if "lift" in sentence:
        assert "'lift the {object}'" in str(refused.value)


@pytest.mark.parametrize("task", TASKS)
def test_a_sentence_chooses_the_goal_of_an_equal_scene(task):
    env = make_env({"family": "tabletop", "task": task, "level": "none"})
    env.start_episode(seed=7)
    drawn, other, state = env.instruction, env.swapped_instruction(), env.scene()[1].qpos.copy()
    env.start_episode(seed=7, options={"instruction": other})
    assert env.instruction == other
    assert (env.scene()[1].qpos == state).all()
    assert env.swapped_instruction() != other
    env.start_episode(seed=7, options={"instruction": drawn.upper()})
    assert env.instruction == drawn.upper()
    env.start_episode(seed=7)
    assert env.instruction == drawn
    env.close()


def test_the_expert_and_success_follow_the_sentence():
    env = make_env({"family": "tabletop", "task": "reach", "level": "none"})
    env.start_episode(seed=7)
    env.start_episode(seed=7, options={"instruction": env.swapped_instruction()})
    success = any(env.advance(env.expert_action()).success for _ in range(60))
    assert success
    env.close()


def test_a_goal_that_the_scene_lacks_is_named_with_those_that_it_has():
    env = make_env({"family": "tabletop", "task": "open_drawer", "level": "none"})
    env.start_episode(seed=7)
    colors = {sentence.split()[-2] for sentence in (env.instruction, env.swapped_instruction())}
    absent = next(color for color in ("red", "green", "blue") if color not in colors)
    with pytest.raises(GoalNotInScene, match="names no goal of this scene of 'open_drawer'; there are"):
        env.start_episode(seed=7, options={"instruction": f"open the {absent} drawer"})
    with pytest.raises(GoalNotInScene):
        env.start_episode(seed=7, options={"instruction": "close the red drawer"})
    env.close()
