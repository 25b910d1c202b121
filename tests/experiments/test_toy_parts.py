"""Each joint, from outside: one file of the user, a line that adds it, a key that chooses it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from experiments.config import schema
from experiments.config.plugins import load_plugins
from experiments.export import export_checkpoint
from experiments.train import main as train_main
from experiments.train import train_policy
from policies.export_graph import NotExportable
from policies.vla_policy import VLAPolicy, load_policy_checkpoint
from vla.model.registry import HEADS
from vla.training.metrics import read_metrics

sys.path.insert(0, str(Path(__file__).parent))  # where a user's modules would be on PYTHONPATH

TINY = [
    "plugins=[toy_parts]",
    "data=toy_points",
    "model.auxiliaries.later_states=null",
    "processor.inputs.text.vocab_size=260",
    "trainer.num_samples=64",
    "trainer.batch_size=16",
    "trainer.log_every_steps=1",
    "trainer.num_threads=1",
    "evaluation.instruction_modes=[]",
]
SCENE = [
    *("model.backbone.width=16", "model.backbone.depth=1", "model.backbone.num_heads=2"),
    *("model.backbone.stem_channels=[4,8]", "model.backbone.patch_size=16"),
]
FLAT = ["model/backbone=toy_flat", "model.backbone.width=8"]


def train(run_dir, *overrides):
    load_plugins(["toy_parts"])
    schema.register("train")
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", [*TINY, *overrides])
    run = schema.typed(config, schema.TrainRun)
    return train_policy(run, run_dir)


def test_a_training_returns_the_number_that_a_sweeper_asks_for(tmp_path):
    load_plugins(["toy_parts"])
    schema.register("train")
    given = [*TINY, *SCENE, f"out_dir={tmp_path}", "metric=validation/action_loss"]
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", given, return_hydra_config=True)
    with open_dict(config.hydra):
        config.hydra.runtime.output_dir = str(tmp_path)
    HydraConfig.instance().set_config(config)
    try:
        with open_dict(config):
            del config["hydra"]
        returned = train_main.__wrapped__(config)
    finally:
        HydraConfig.instance().cfg = None
    validated = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "validation/action_loss" in row]
    assert returned == validated[-1]["validation/action_loss"]
    assert "loss of actions" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("joint", "overrides"),
    [
        ("source", SCENE),
        ("action representation", [*SCENE, "model/head=toy_mean", "codec=toy_mean", "model.head.gain=0.5"]),
        (
            "modality",
            [
                *SCENE,
                "+processor.inputs.brightness={kind: toy_brightness}",
                "+model.backbone.embedders={brightness: {kind: toy_brightness}}",
            ],
        ),
        ("auxiliary target", [*SCENE, "+model.auxiliaries.distance={kind: toy_distance}"]),
        ("backbone", FLAT),
        ("all of them", [*FLAT, "model/head=toy_mean", "codec=toy_mean"]),
    ],
)
def test_a_part_of_the_user_trains_and_exports(tmp_path, joint, overrides):
    result = train(tmp_path / "run", *overrides)
    assert result.end == "finished"
    loaded = load_policy_checkpoint(tmp_path / "run")
    assert len(loaded.golden) == 16
    report = export_checkpoint(checkpoint=tmp_path / "run", bundle=tmp_path / "bundle")
    assert report.comparison.passed
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    if joint == "auxiliary target":
        assert {"loss/distance", "loss", "token_accuracy"} <= set(rows[0])
    if joint == "modality":
        assert "brightness" in loaded.model.specs.inputs
        assert loaded.processor.encode_observations(loaded.golden)["brightness"].std() > 0.01


def test_an_input_that_no_part_reads_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"inputs \['brightness'\], which no part of the model reads"):
        train(tmp_path / "run", *SCENE, "+processor.inputs.brightness={kind: toy_brightness}")


def test_a_head_and_a_codec_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"toy_mean learns \['mean_action'\].*choose codec=toy_mean"):
        train(tmp_path / "run", *SCENE, "model/head=toy_mean")


def test_a_head_that_reads_no_committed_actions_says_so(tmp_path, monkeypatch):
    load_plugins(["toy_parts"])
    monkeypatch.setattr(HEADS.get("toy_mean"), "reads", ())
    parts = ["model/head=toy_mean", "codec=toy_mean", "processor.max_committed=2"]
    with pytest.raises(ValueError, match=r"head=toy_mean does not read committed.*max_committed=0"):
        train(tmp_path / "run", *SCENE, *parts)


def test_a_head_that_leaves_autocasts_type_is_validated(tmp_path):
    parts = ["model/head=toy_mean", "codec=toy_mean", "trainer.precision=bf16"]
    assert train(tmp_path / "run", *SCENE, *parts).end == "finished"


def test_a_head_that_no_graph_can_hold_is_named_with_its_line(tmp_path, monkeypatch, capfd):
    load_plugins(["toy_parts"])

    def halved(self, backbone, prefix, inputs):
        mean = self._mean(backbone, prefix)
        while mean.abs().max() > 1:
            mean = mean / 2
        return {"mean_action": mean}

    monkeypatch.setattr(HEADS.get("toy_mean"), "sample", halved)
    train(tmp_path / "run", *SCENE, "model/head=toy_mean", "codec=toy_mean")
    capfd.readouterr()
    message = (
        r"head 'toy_mean' cannot become a graph.*`while mean.abs\(\).max\(\) > 1:` at .*test_toy_parts.py:"
    )
    with pytest.raises(NotExportable, match=message):
        export_checkpoint(checkpoint=tmp_path / "run", bundle=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert "def forward" not in capfd.readouterr().err


def test_chunks_of_the_user_drive(tmp_path):
    train(tmp_path / "run", *SCENE, "model/head=toy_mean", "codec=toy_mean", "trainer.num_samples=3200")
    loaded = load_policy_checkpoint(tmp_path / "run")
    chunks = VLAPolicy(model=loaded.model, processor=loaded.processor).predict(loaded.golden)
    wanted = np.sign([-observation.state[0] for observation in loaded.golden])
    assert (np.sign(chunks[:, 0, 0]) == wanted).mean() > 0.8
