"""One level of observations for learners that take nothing nested, and the page's snippet of it."""

import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from fake_env import make_fake
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation

from envs.flat_observation import INSTRUCTION_BYTES, FlatObservation
from envs.metaworld import instructions as metaworld
from envs.tabletop.env import TabletopEnv

PAGE = Path(__file__).parents[2] / "envs" / "README.md"


@pytest.fixture
def env():
    env = FlatObservation(TabletopEnv(task="lift", image_size=32, render_mode="rgb_array"))
    yield env
    env.close()


def test_the_checker_has_nothing_to_say_and_nothing_is_nested(env):
    with pytest.warns(UserWarning, match="different from the unwrapped version"):  # a wrapper has to be
        check_env(env, skip_render_check=True)
    assert sorted(env.observation_space) == ["image_exterior", "image_wrist", "instruction", "state"]
    assert not any(isinstance(space, spaces.Dict | spaces.Text) for space in env.observation_space.values())


def test_nothing_is_lost(env):
    flat, info = env.reset(seed=3)
    inner, _ = env.unwrapped.reset(seed=3)
    for name, frame in inner["images"].items():
        np.testing.assert_array_equal(flat[f"image_{name}"], frame)
    np.testing.assert_array_equal(flat["state"], inner["state"])
    assert (
        bytes(flat["instruction"]).rstrip(b"\0").decode() == info["instruction"] == env.unwrapped.instruction
    )
    stepped, *_, info = env.step(env.action_space.sample())
    np.testing.assert_array_equal(stepped["instruction"], flat["instruction"])


def test_a_sentence_that_does_not_fit_is_refused_and_without_the_key_none_is_asked_for():
    env = make_fake({"task": "a"})
    with pytest.raises(ValueError, match=r"instruction_bytes=\d+ or more \(now 1\)"):
        FlatObservation(env, instruction_bytes=1).reset(seed=0)
    assert "instruction" not in FlatObservation(env, instruction_bytes=0).reset(seed=0)[0]
    with pytest.raises(ValueError, match="instruction_bytes is -1"):
        FlatObservation(env, instruction_bytes=-1)
    tables = (metaworld.TRAIN_WORDINGS, metaworld.HELDOUT_WORDINGS)
    assert (
        max(len(text) for table in tables for texts in table.values() for text in texts) <= INSTRUCTION_BYTES
    )


def test_other_environments_are_refused():
    with pytest.raises(ValueError, match="wraps a ManipulationEnv"):
        FlatObservation(gymnasium.make("CartPole-v1"))
    with pytest.raises(ValueError, match="no other wrapper"):
        FlatObservation(FlattenObservation(make_fake({"task": "a"})))


def test_the_snippet_of_the_page_runs():
    (snippet,) = re.findall(r"^```python\n(.*?FlatObservation.*?)^```$", PAGE.read_text(), re.M | re.S)
    space = {}
    exec(compile(snippet, "envs/README.md", "exec"), space)
    assert set(space["observation"]) == {"image_exterior", "image_wrist", "instruction", "state"}
    assert space["env"].action_space.high.max() == 1.0
    space["env"].close()
