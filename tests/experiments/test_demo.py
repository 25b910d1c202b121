"""Sentences find their scenes, and the demo of a policy leaves a film, a page, a table."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from program_fixtures import composed

from envs.registry import make_env
from experiments.config import cli
from experiments.config.earlier_settings import with_earlier_settings
from experiments.demo import NUM_SENTENCES, NoSuchScene, Scenes, require_tabletop
from experiments.reports.demo import with_caption
from vla.interface import Observation
from vla.model.vla import ModelConfig, VLAModel
from vla.processing.moments import Demonstrations
from vla.processing.processor import DEFAULT_INPUTS, Processor
from vla.registry import SettingError
from vla.training.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
ENV = {"family": "tabletop", "level": "none", "image_size": 48}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """The checkpoint of a policy with random weights that fits the tabletop."""
    env = make_env({**ENV, "task": "reach"})
    observation, _ = env.reset(seed=1)
    spec = env.robot_spec
    env.close()
    rng = np.random.default_rng(0)
    chunks = rng.uniform(spec.action_low, spec.action_high, size=(50, 8, 7)).astype(np.float32)
    processor = Processor.fit(
        Demonstrations(
            robot_spec=spec,
            states=rng.uniform(0, 0.3, size=(50, 6)).astype(np.float32),
            actions=chunks[:, 0],
            chunks=chunks,
            instructions=["lift the red cube"],
        ),
        codec={"kind": "uniform", "num_bins": 16},
        inputs=DEFAULT_INPUTS,
    )
    torch.manual_seed(0)
    backbone = {"kind": "scene", "width": 32, "depth": 1, "num_heads": 2, "stem_channels": [8, 16]}
    model = VLAModel(
        specs=processor.specs(), config=ModelConfig.complete(backbone=backbone, head={"kind": "parallel"})
    )
    weights = {name: one.detach() for name, one in model.named_parameters()}
    directory = tmp_path_factory.mktemp("policy") / "checkpoint"
    save_checkpoint(
        directory,
        model=model,
        processor=processor,
        averaged=weights,
        training=weights,
        golden=[Observation.of(observation, "lift the red cube")],
        state={"step": 1},
        provenance={"recorded_seeds": {"tabletop": {"reach": [[0, 99]]}}},
    )
    return directory


@pytest.fixture
def scenes():
    scenes = Scenes({task: {**ENV, "task": task} for task in ("reach", "lift", "open_drawer")})
    yield scenes
    scenes.close()


def test_sentences_find_the_first_scene_with_their_objects_and_share_it(scenes):
    suggested = scenes.suggested(seed=500000)
    lifts = [scene for scene in suggested if scene.task == "lift"]
    found = scenes.with_sentences([scene.sentence for scene in lifts], seed=500000)
    assert found == lifts  # both are in the first scene that has the first
    (one,) = scenes.with_sentences(["Pull the red drawer open!"], seed=500000)
    assert (one.task, one.sentence) == ("open_drawer", "Pull the red drawer open!")
    assert one.seed >= 500000
    with pytest.raises(SettingError, match=r"is the task 'stack'; the policy knows reach, lift, open_drawer"):
        scenes.with_sentences(["stack the red cube on the blue cube"], seed=500000)


def test_what_no_scene_has_is_told_with_the_scenes_that_were_tried(scenes, monkeypatch):
    monkeypatch.setattr("experiments.demo.MOST_SCENES", 1)
    absent = next(
        f"lift the {color} ball"
        for color in ("red", "green", "blue", "yellow", "purple", "orange")
        if not scenes._has_goal("lift", f"lift the {color} ball", 500000)
    )
    with pytest.raises(NoSuchScene, match="none of the scenes 500000 to 500000 has the objects"):
        scenes.with_sentences([absent], seed=500000)


def test_five_sentences_are_suggested_two_of_them_of_one_scene(scenes):
    suggested = scenes.suggested(seed=500000)
    assert len(suggested) == len({scene.sentence for scene in suggested}) == NUM_SENTENCES
    assert suggested[0].task == suggested[1].task == "lift"
    assert suggested[0].seed == suggested[1].seed
    (one,) = (Scenes({"reach": {**ENV, "task": "reach"}}),)
    assert [scene.seed - 7 for scene in one.suggested(seed=7)] == [0, 0, 1, 1, 2]
    one.close()


def demo(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.demo", *arguments, *overrides()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def overrides():
    return ["env.level=none", "env.image_size=48"]


def test_the_demo_leaves_a_film_a_page_and_a_table(policy, tmp_path):
    sentences = "sentences=[reach the red cube,Open the blue drawer.]"
    tasks = "tasks=[reach,open_drawer]"
    done = demo(f"path={policy}", sentences, tasks, "+env.max_steps=12", f"out_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^sentence +task +scene +success +seconds$", done.stdout, flags=re.MULTILINE)
    assert re.search(
        r"^Open the blue drawer\. +open_drawer +50\d+ +no +0\.6$", done.stdout, flags=re.MULTILINE
    )
    assert re.search(r"^\d+ s in all$", done.stdout, flags=re.MULTILINE)
    page = (tmp_path / "report.html").read_text()
    for expected in ("0 of 2", "reach the red cube", "Open the blue drawer.", "data:video/mp4;base64,"):
        assert expected in page
    assert [one["task"] for one in json.loads((tmp_path / "demo.json").read_text())["sentences"]] == [
        "reach",
        "open_drawer",
    ]
    with av.open(str(tmp_path / "demo.mp4")) as film:
        frames = list(film.decode(video=0))
    assert len(frames) == 2 * (1 + 6 + 8)
    assert frames[0].height > 480


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sentences=[do a flip]"], "'do a flip' names no goal on the tabletop; the nearest of the"),
        (["tasks=[reach]", "sentences=[lift the red cube]"], "is the task 'lift'; the policy knows reach"),
        (["tasks=[reach]", "seed=50"], "demonstrations of task 'reach' .* Give seed=100 or more"),
        (["path=pretrained/nothing"], "there is no pretrained policy 'nothing'"),
    ],
)
def test_what_cannot_be_shown_is_refused(policy, tmp_path, arguments, words):
    done = demo(f"path={policy}", *arguments, f"out_dir={tmp_path}")
    assert done.returncode == cli.EXIT_CONFIG, done.stderr
    assert re.search(words, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_it_is_played_where_the_policy_was_trained(tmp_path):
    setting = {"env": {"family": "tabletop", "level": "none"}, "tasks": ["lift", "push"], "varied": {}}
    (tmp_path / "manifest.json").write_text(json.dumps({"provenance": {"setting": setting}}))
    run = composed("demo", *with_earlier_settings([f"path={tmp_path}"], "demo"))
    assert (run.env["level"], run.tasks) == ("none", ["lift", "push"])


def test_another_environment_is_refused():
    run = composed("demo", "env=metaworld")
    with pytest.raises(SettingError, match=r"experiments\.evaluate path="):
        require_tabletop(run)


def test_a_caption_is_cut_where_it_is_too_long():
    frame = np.zeros((40, 200, 3), np.uint8)
    short, long = (with_caption(frame, text, "done", is_good=True) for text in ("lift it", "lift it " * 40))
    assert short.shape == long.shape
    assert (short[-40:] == frame).all()
    assert short.shape[0] > 40
