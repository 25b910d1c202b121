"""A training that is continued: what it may change is recorded with its step, what it must not is refused."""

import json

import pytest

from experiments.resumed_run import (
    CHANGES_FILE,
    ResumeRefused,
    begin,
    newest_weights,
    recorded_overrides,
    require_resumable,
    require_same_episodes,
    resumption,
)
from vla.files import write_manifest
from vla.model.checkpoint import CheckpointError

CONFIG = {
    "out_dir": "a",
    "dataset": "d",
    "seed": 0,
    "model": {"backbone": {"kind": "vla", "width": 32}},
    "data": {"kind": "demonstrations", "cache_dir": "c"},
    "trainer": {"num_samples": 64, "learning_rate": 0.001, "resume": "same", "betas": [0.9, 0.98]},
    "evaluation": {"first_seed": 5},
    "collect": {"episodes_per_task": 6},
}


def write_checkpoint(run_dir, *, step=8, config=CONFIG, **provenance):
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step}))
    (folder / "model.safetensors").write_text("weights")
    episodes = {"trained": ["a", "b"], "held_out": ["c"]}
    write_manifest(folder, {"config": config, "episodes": episodes, **provenance})


def changed(**parts):
    return {**CONFIG, **{key: {**CONFIG[key], **new} for key, new in parts.items()}}


def test_a_new_run_continues_nothing(tmp_path):
    assert resumption(tmp_path, CONFIG) is None


def test_the_same_command_changes_nothing_whatever_the_places_are_called(tmp_path):
    write_checkpoint(tmp_path)
    again = {
        **changed(data={"cache_dir": "e", "cameras": None}, trainer={"betas": (0.9, 0.98)}),
        "out_dir": "b",
    }
    found = resumption(tmp_path, again)
    assert dict(found.changed) == {}
    begin(found, tmp_path, command="train", trains_on=True)
    assert not (tmp_path / CHANGES_FILE).exists()


def test_an_accepted_change_is_printed_and_appended_with_its_step(tmp_path, capsys):
    write_checkpoint(tmp_path, changes=[{"step": 2, "changed": {"x": [1, 2]}, "command": "before"}])
    found = resumption(tmp_path, changed(trainer={"num_samples": 96}, evaluation={"first_seed": 6}))
    require_resumable(found, tmp_path, may_override=False, records=False)
    begin(found, tmp_path, command="train again", trains_on=True)
    assert "from step 8 on: trainer.num_samples=96 (was 64)" in capsys.readouterr().out
    (line,) = map(json.loads, (tmp_path / CHANGES_FILE).read_text().splitlines())
    assert line == {
        "step": 8,
        "changed": {"trainer.num_samples": [64, 96], "evaluation.first_seed": [5, 6]},
        "command": "train again",
    }
    assert [one["step"] for one in found.history("train again")] == [2, 8]


@pytest.mark.parametrize(
    ("given", "records", "message"),
    [
        ({"trainer": {"learning_rate": 0.1}}, False, r"trainer\.learning_rate=0\.1 \(was 0\.001\)"),
        ({"data": {"validation_share": 0.5}}, False, r"data\.validation_share=0\.5 \(was null\)"),
        ({"collect": {"episodes_per_task": 9}}, True, r"collect\.episodes_per_task=9 \(was 6\)"),
    ],
)
def test_what_shapes_a_run_is_refused_before_anything_is_recorded(tmp_path, given, records, message):
    write_checkpoint(tmp_path)
    found = resumption(tmp_path, changed(**given))
    with pytest.raises(CheckpointError, match=message):
        require_resumable(found, tmp_path, may_override=False, records=records)
    require_resumable(found, tmp_path, may_override=True, records=False)


@pytest.mark.parametrize("may_override", [False, True])
def test_another_model_is_refused_with_what_to_do_about_its_weights(tmp_path, may_override):
    write_checkpoint(tmp_path)
    found = resumption(tmp_path, changed(model={"backbone": {"kind": "vla", "width": 64}}))
    with pytest.raises(ResumeRefused, match=r"backbone\.width=64 \(was 32\).*init_from=") as refused:
        require_resumable(found, tmp_path, may_override=may_override, records=False)
    assert "override" not in str(refused.value)


def test_other_episodes_are_refused(tmp_path):
    write_checkpoint(tmp_path)
    found = resumption(tmp_path, CONFIG)
    same = {"trained": ["b", "a"], "held_out": ["c"]}
    require_same_episodes(found, tmp_path, same, may_override=False)
    other = {"trained": ["a"], "held_out": ["b", "c"]}
    with pytest.raises(
        CheckpointError, match="trained: 2 before, 1 now, 1 of both; held_out: 1 before, 2 now"
    ):
        require_same_episodes(found, tmp_path, other, may_override=False)
    require_same_episodes(found, tmp_path, other, may_override=True)


def test_the_evaluation_of_earlier_weights_is_set_aside(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "evaluation" / "original").mkdir(parents=True)
    found = resumption(tmp_path, changed(trainer={"num_samples": 96}))
    begin(found, tmp_path, command="train", trains_on=False)
    assert (tmp_path / "evaluation").exists()
    begin(found, tmp_path, command="train", trains_on=True)
    assert not (tmp_path / "evaluation").exists()
    assert (tmp_path / "evaluation_step_00000008" / "original").exists()


def test_tables_ask_the_weights_for_their_settings(tmp_path):
    assert (newest_weights(tmp_path), recorded_overrides(tmp_path)) == (None, None)
    write_checkpoint(tmp_path, overrides=["seed=1"])
    write_checkpoint(tmp_path, step=9, overrides=["seed=2"])
    assert recorded_overrides(tmp_path) == ["seed=2"]
    assert len(newest_weights(tmp_path)) == 64
