"""A value that has to be given and is missing, or names nothing, is answered with what there is."""

import pytest
from program_fixtures import composed

from experiments.check import subject_of
from experiments.config import schema
from experiments.config.found import DATASET, EVALUATION, POLICY
from vla.registry import SettingError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (
        "outputs/train/one/checkpoints/step_00000008/x",
        "outputs/bundle/policy.onnx",
        "outputs/datasets/mine/meta/info.json",
        "outputs/train/one/evaluation/original/plan.json",
        "outputs/cache/some/meta/info.json",
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    return tmp_path


def test_what_is_there_is_found_and_caches_are_passed_over(folder):
    assert DATASET.found() == ["outputs/datasets/mine"]
    assert set(POLICY.found()) == {"outputs/train/one", "outputs/bundle"}
    assert EVALUATION.found() == ["outputs/train/one"]


@pytest.mark.parametrize(
    ("program", "given", "message"),
    [
        (
            "evaluate",
            (),
            r"path has no value; give path=<a training run or a bundle>: outputs/ holds outputs/",
        ),
        ("export", (), "checkpoint has no value; .*: outputs/ holds outputs/train/one"),
        ("serve", (), "bundle has no value; .*: outputs/ holds outputs/bundle"),
        ("compare", (), "a has no value; .*: outputs/ holds outputs/train/one"),
        ("improve", (), r"path has no value; give path=<a training run>: outputs/ holds outputs/train/one"),
        ("convert", ("source=x", "dataset=y"), "mapping has no value; .*: aloha, robomimic"),
        ("benchmark", (), r"part has no value; give part=<simulation \| data \| training"),
    ],
)
def test_a_missing_value_is_named_with_the_values_that_it_can_have(folder, program, given, message):
    with pytest.raises(SettingError, match=message):
        composed(program, *given)


def test_a_check_of_nothing_says_what_can_be_checked(folder):
    with pytest.raises(SettingError, match=r"give env=<name>, .*: outputs/ holds outputs/datasets/mine"):
        subject_of(composed("check"))


def test_where_there_is_nothing_the_message_says_what_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=r"outputs/ holds none; python -m experiments\.train makes one"):
        composed("evaluate")


@pytest.mark.parametrize(
    ("program", "given", "message"),
    [
        ("evaluate", "path=outputs/train/oen", r"does not exist; did you mean 'one'\?"),
        ("improve", "path=outputs/train/oen", r"does not exist; did you mean 'one'\?"),
        ("compare", "a=outputs/train/oen", r"a is .* does not exist; did you mean 'one'\?"),
        ("serve", "bundle=outputs/bundel", r"does not exist; did you mean 'bundle'\?"),
        ("sweep_table", "runs=[outputs/train/two]", r"runs\[0\] is .* does not exist; choose from one in"),
        ("check", "dataset=nowhere/at/all", "give a dataset: outputs/ holds outputs/datasets/mine"),
        ("control", "seed=1", "neither bundle nor server has a value; .*: outputs/ holds outputs/bundle"),
    ],
)
def test_a_directory_that_is_not_there_is_refused_with_the_nearest(folder, program, given, message):
    run = composed(program, given)
    with pytest.raises(SettingError, match=message):
        schema.require_inputs(run)


def test_what_is_there_is_accepted(folder):
    schema.require_inputs(composed("evaluate", "path=outputs/train/one"))
    schema.require_inputs(composed("compare", "a=outputs/train/one"))
    schema.require_inputs(composed("check", "env=tabletop"))
    schema.require_inputs(composed("control", "replay=somewhere"))


@pytest.mark.parametrize(
    ("program", "given", "message"),
    [
        ("delay_table", ("bundle=b", "task=reech"), "task is 'reech'; did you mean 'reach'"),
        ("control", ("env=tabletop", "task=reech"), "task is 'reech'; did you mean 'reach'"),
        ("benchmark", ("part=latency", "backends=[torc]"), r"backends\[0\] is 'torc'; did you mean 'torch'"),
        ("collect", ("collect.pixel_format=yuv",), "pixel_format is 'yuv'; did you mean 'yuv4"),
    ],
)
def test_a_misspelled_name_is_refused_before_anything_is_made(program, given, message):
    with pytest.raises(SettingError, match=message):
        composed(program, *given)
