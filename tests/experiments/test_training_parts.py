"""Data, robot, cameras, environment and model of a run are checked before anything is recorded or decoded."""

import json

import pytest
from program_fixtures import composed

from experiments.collect import collect_dataset
from experiments.training_parts import require_recorded_setting, require_trainable
from vla.data.layout import DatasetError
from vla.errors import VLAError
from vla.registry import SettingError

TINY = ["tasks=[reach]", "env.image_size=48", "model.backbone.width=32", "model.backbone.depth=1"]

KEYPOINTS = "model.auxiliaries.a.kind=keypoints"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["data.cameras=[exterio]"], r"cameras \['exterio'\] must be some of those of"),
        (["data.image_size=32"], "image size 32 is no multiple of patch_size 24"),
        (["model/head=flow"], "choose codec=continuous"),
        (["processor.max_committed=1000"], "max_committed"),
        ([KEYPOINTS], r"learn \['points'\], which will not be recorded; give collect.geometry=true"),
        (
            [KEYPOINTS, "model.auxiliaries.a.points=[hand,gaol]", "collect.geometry=true"],
            "learn where 'gaol' is, and env=tabletop measures no such point; did you mean 'goal'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_it_is_recorded(tmp_path, given, message):
    run = composed("train", f"dataset={tmp_path / 'new'}", "record=true", *TINY, *given)
    with pytest.raises(SettingError, match=message):
        require_trainable(run)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_makes_sense_is_accepted_before_its_dataset_is_there(tmp_path):
    require_trainable(composed("train", f"dataset={tmp_path / 'new'}", "record=true", *TINY))
    assert list(tmp_path.iterdir()) == []


def test_a_recording_without_what_the_model_learns_is_refused_before_it_is_decoded(tmp_path):
    recording = [
        f"dataset={tmp_path / 'd'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.validation_share=0",
    ]
    run = composed("train", *recording, *TINY, KEYPOINTS, "collect.episodes_per_task=1")
    collect_dataset(root=tmp_path / "d", env=run.env, tasks=run.tasks, collect=run.collect)
    with pytest.raises(DatasetError, match=r"has no geometry .* record it with collect.geometry=true"):
        require_trainable(run)
    assert not (tmp_path / "cache").exists()


def test_a_dataset_that_is_not_there_is_answered_with_those_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "mine" / "meta").mkdir(parents=True)
    (tmp_path / "outputs" / "mine" / "meta" / "info.json").write_text("{}")
    with pytest.raises(SettingError, match=r"outputs/ holds outputs/mine; or .* with record=true"):
        require_trainable(composed("train"))


@pytest.mark.parametrize(
    ("recorded", "given", "wrong"),
    [
        ({"level": "none"}, ["env.level=train"], "env.level=none"),
        ({"wording": "train"}, ["env.wording=heldout"], "env.wording=train"),
        ({"render_quality": "full"}, [], "env.render_quality=full"),
        ({"twin_share": 0.5, "image_size": 96, "cameras": ["wrist"]}, [], None),
    ],
)
def test_the_evaluation_after_training_is_in_the_setting_of_the_recordings(tmp_path, recorded, given, wrong):
    (tmp_path / "meta").mkdir()
    origin = {"schema_version": 1, "robot_spec": {}, "storage": "image"}
    origin["extra_info"] = {"env": {"family": "tabletop", **recorded}}
    (tmp_path / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v3.0", "vla": origin}))
    run = composed("train", f"dataset={tmp_path}", *given)
    if wrong is None:
        require_recorded_setting(run)
        return
    if wrong == "env.level=none":  # it is refused for a recording to be continued as well
        with pytest.raises(VLAError, match=f"Give {wrong},"):
            require_trainable(composed("train", f"dataset={tmp_path}", *TINY, *given, "record=true"))
    with pytest.raises(VLAError, match=f"Give {wrong}, and the other one to experiments.evaluate"):
        require_recorded_setting(run)
