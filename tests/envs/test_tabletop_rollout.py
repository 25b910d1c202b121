"""Collection, rollout and replay on rendered tabletop scenes, across process borders."""

import hashlib

import numpy as np
import pytest

from envs.collection import collect_episodes
from envs.disturbance import Disturbance
from envs.evaluation.evaluate import EvaluationPlan, evaluate
from envs.registry import make_env

TASKS = ("reach", "lift")
SEEDS = (500, 501, 502)
CONFIGS = {task: {"family": "tabletop", "task": task, "image_size": 64} for task in TASKS}


def key_of(instruction, images):
    frames = b"".join(images[name].tobytes() for name in ("exterior", "wrist"))
    return instruction, hashlib.sha256(frames).hexdigest()


class Memory:
    """Does what the demonstration did when it saw the same frames; frames never seen are an error."""

    frame_offsets = (4, 0)
    action_horizon = 8

    def __init__(self, episodes):
        self.robot_spec = episodes[0].robot_spec
        self.chunks = {}
        for episode in episodes:
            for step in range(len(episode.actions)):
                following = episode.actions[step : step + 8]
                padded = np.concatenate([following, np.repeat(following[-1:], 8 - len(following), axis=0)])
                images = {name: frames[step] for name, frames in episode.images.items()}
                self.chunks.setdefault(key_of(episode.instruction, images), padded)

    def predict(self, observations):
        assert all(one.images["wrist"].shape == (2, 64, 64, 3) for one in observations)
        newest = [{name: frames[-1] for name, frames in one.images.items()} for one in observations]
        return np.stack(
            [self.chunks[key_of(one.instruction, now)] for one, now in zip(observations, newest, strict=True)]
        )


def test_a_scene_looks_the_same_whatever_was_drawn_before():
    fresh, used = make_env(CONFIGS["reach"]), make_env(CONFIGS["reach"])
    used.start_episode(seed=SEEDS[0])
    used.render_camera("exterior")
    for env in (fresh, used):
        env.start_episode(seed=SEEDS[1])
    for name in ("exterior", "wrist"):
        np.testing.assert_array_equal(fresh.render_camera(name), used.render_camera(name))
    fresh.close()
    used.close()


@pytest.fixture(scope="module")
def episodes():
    seeds = dict.fromkeys(TASKS, SEEDS)
    return list(collect_episodes(CONFIGS, seeds, disturbance=Disturbance(), num_workers=2))


def test_the_expert_succeeds_and_its_frames_show_the_scene(episodes):
    assert [(episode.task, episode.seed) for episode in episodes] == [
        (task, seed) for seed in SEEDS for task in TASKS
    ]
    for episode in episodes:
        for frames in episode.images.values():
            assert frames.shape == (len(episode.actions), 64, 64, 3)
            assert frames.std() > 10
        assert (episode.images["exterior"][0] != episode.images["exterior"][-1]).any()


def test_what_was_demonstrated_can_be_rolled_out_and_filmed(episodes, tmp_path):
    plan = EvaluationPlan(
        env_configs=CONFIGS,
        episodes_per_task=len(SEEDS),
        first_seed=SEEDS[0],
        execute_horizon=5,
        envs_per_worker=2,
        videos_per_task=1,
    )
    evaluation = evaluate(Memory(episodes), plan, run_dir=tmp_path, policy_id="memory", show_progress=False)
    lengths = {(episode.task, episode.seed): len(episode.actions) for episode in episodes}
    assert {(row.task, row.seed): row.steps for row in evaluation.rows} == lengths
    assert all(row.success for row in evaluation.rows)
    assert [video.replay_agrees for video in evaluation.videos] == [True, True]


def test_collection_gives_what_an_environment_in_this_process_gives(episodes):
    env = make_env(CONFIGS["lift"])
    env.start_episode(seed=SEEDS[1])
    episode = next(e for e in episodes if (e.task, e.seed) == ("lift", SEEDS[1]))
    assert episode.instruction == env.instruction
    np.testing.assert_array_equal(env.render_camera("wrist"), episode.images["wrist"][0])
    for state, action in zip(episode.states, episode.actions, strict=True):
        np.testing.assert_array_equal(env.read_state(), state)
        env.advance(action)
    env.close()
