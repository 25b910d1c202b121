"""Programs start from the setting of a policy's training, or from an earlier run; what is typed counts."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from program_fixtures import composed

from experiments import recorded_setting as recorded_setting_module
from experiments.config import schema
from experiments.config.earlier_settings import with_earlier_settings
from experiments.config.trained_setting import (
    NOT_KEPT,
    SETTING,
    TrainedSetting,
    describe,
    differences,
    read_provenance,
    setting_in,
)
from experiments.recorded_setting import recorded_setting
from policies.pretrained_names import FOLDER
from vla.files import DamagedFile
from vla.plugins import PLUGINS, PluginError
from vla.registry import SettingError

ROOT = Path(__file__).parents[2]
METAWORLD = {
    "family": "metaworld",
    "image_size": 32,
    "cameras": ["corner", "topview"],
    "render_quality": "full",
    "wording": "train",
}
TABLETOP = {
    "family": "tabletop",
    "image_size": 96,
    "cameras": ["wrist"],
    "render_quality": "fast",
    "level": "none",
    "wording": "train",
    "same_color_share": 0.2,
}


@pytest.fixture(scope="module", autouse=True)
def schemas():
    schema.register()


def write_policy(path, env, tasks, *, plugins=(), **kept):
    """Write the part of a training run, or of a bundle, that says what it was trained in."""
    setting = TrainedSetting(env=env, tasks=tasks).to_json() | kept
    provenance = {SETTING: setting, PLUGINS: dict.fromkeys(plugins)}
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"provenance": provenance}))
    return path


def write_record(path, program, *overrides, cwd=None, **more):
    """Write the record of a run as Hydra and RunRecord do."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(program, list(overrides))
    (path / ".hydra").mkdir(parents=True)
    text = OmegaConf.to_yaml(config) + "".join(f"{key}: {value}\n" for key, value in more.items())
    (path / ".hydra" / "config.yaml").write_text(text)
    runtime = {"cwd": str(cwd or Path.cwd()), "output_dir": str(path)}
    hydra = {"hydra": {"job": {"name": program}, "runtime": runtime}}
    (path / ".hydra" / "hydra.yaml").write_text(json.dumps(hydra))
    return path


def run_of(program, *arguments):
    """Return the configuration with which a program starts."""
    laid = with_earlier_settings(arguments, program)
    assert laid[len(laid) - len(arguments) :] == list(arguments)
    return composed(program, *laid)


def test_a_policy_is_evaluated_where_it_was_trained(tmp_path):
    pytest.importorskip("metaworld")
    policy = write_policy(tmp_path / "run" / "checkpoints" / "step_00000008", METAWORLD, ["push", "reach"])
    run = run_of("evaluate", f"path={tmp_path / 'run'}")
    assert (run.env, run.tasks) == (METAWORLD, ["push", "reach"])
    assert run_of("evaluate", f"path={policy}").env == METAWORLD
    assert run_of("delay_table", f"bundle={policy}").tasks == ["push", "reach"]


def test_nothing_is_laid_that_a_program_has_anyway(tmp_path):
    tasks = composed("evaluate", "path=x").tasks
    arguments = [f"path={write_policy(tmp_path / 'a', {**TABLETOP, 'level': 'train'}, tasks)}"]
    assert with_earlier_settings(arguments, "evaluate") == ["env.cameras=[wrist]", *arguments]


def test_what_is_typed_counts_and_is_shown_as_different(tmp_path):
    path = f"path={write_policy(tmp_path / 'a', TABLETOP, ['reach', 'lift'])}"
    run = run_of("evaluate", path, "env.level=heldout", "tasks=[reach]", "env=tabletop")
    assert (run.env, run.tasks) == ({**TABLETOP, "level": "heldout"}, ["reach"])
    setting = TrainedSetting(env=TABLETOP, tasks=["reach", "lift"])
    expected = [("env.level", "none", "heldout"), ("tasks", "reach, lift", "reach")]
    assert differences(setting, env=run.env, tasks=run.tasks) == expected
    shown = describe({SETTING: setting.to_json()}, source=tmp_path, env=run.env, tasks=run.tasks)
    assert shown.startswith("trained in tabletop: tasks reach, lift; image_size 96; cameras wrist;")
    assert shown.splitlines()[1].split() == ["different", "now", "in", "training", "this", "run"]
    assert "heldout" in shown
    assert "wording" not in shown.partition("\n")[2]


def test_another_family_brings_its_own_tasks_and_settings(tmp_path):
    pytest.importorskip("metaworld")
    path = f"path={write_policy(tmp_path / 'a', TABLETOP, ['lift'])}"
    run = run_of("evaluate", path, "env=metaworld")
    assert run.env == composed("evaluate", "path=x", "env=metaworld").env
    assert len(run.tasks) == 50
    setting = TrainedSetting(env=TABLETOP, tasks=["lift"])
    rows = differences(setting, env=run.env, tasks=run.tasks)
    assert [row[0] for row in rows] == ["env.family", "tasks"]


def test_a_file_of_ones_own_counts_as_typed(tmp_path):
    (tmp_path / "conf" / "env").mkdir(parents=True)
    (tmp_path / "conf" / "env" / "mine.yaml").write_text("family: tabletop\nlevel: train\n")
    path = f"path={write_policy(tmp_path / 'a', TABLETOP, ['lift'])}"
    arguments = ["--config-dir", str(tmp_path / "conf"), path, "env=mine"]
    assert with_earlier_settings(arguments, "evaluate") == ["tasks=[lift]", *arguments]


def test_a_robot_in_a_scene_stands_in_that_of_training_and_one_in_none_does_not(tmp_path):
    bundle = f"bundle={write_policy(tmp_path / 'a', TABLETOP, ['push', 'lift'])}"
    run = run_of("control", bundle)
    assert (run.env, run.tasks) == (TABLETOP, ["push", "lift"])
    other = run_of("control", bundle, "task=reach", "seed=3")
    assert other.env == TABLETOP
    assert "reach" in other.tasks
    arguments = [bundle, "robot=lerobot", "robot.type=so101"]
    assert with_earlier_settings(arguments, "control") == arguments


def test_an_environment_of_a_plug_in_is_not_imported_but_named(tmp_path):
    env = {"family": "os", "arena": 1}
    path = f"path={write_policy(tmp_path / 'a', env, ['x'], plugins=['lab_point'])}"
    with pytest.raises(
        PluginError, match=r"env.family is 'os'.*plug-ins lab_point. Pass plugins=\[lab_point"
    ):
        with_earlier_settings([path], "evaluate")
    assert with_earlier_settings([path, "env=tabletop"], "evaluate") == [path, "env=tabletop"]


def test_a_policy_without_a_setting_keeps_the_configuration_and_says_so(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"provenance": {"step": 3}}))
    arguments = [f"path={tmp_path}"]
    assert with_earlier_settings(arguments, "evaluate") == arguments
    shown = describe(read_provenance(tmp_path) or {}, source=tmp_path, env=TABLETOP, tasks=[])
    assert shown == (
        f"setting of training: {NOT_KEPT}; env and tasks are those of the configuration and the command line"
    )
    assert with_earlier_settings(["path=/no/such"], "evaluate") == ["path=/no/such"]


@pytest.mark.parametrize("kept", [[], {}, {"env": {}, "tasks": [], "varied": {}}, {"env": 3}])
def test_a_setting_of_another_form_is_damage(tmp_path, kept):
    with pytest.raises(DamagedFile, match="keeps a setting of another form"):
        setting_in({SETTING: kept}, source=tmp_path)


def test_a_sweep_over_policies_of_one_setting_starts_from_it(tmp_path):
    a, b = (write_policy(tmp_path / name, TABLETOP, ["lift"]) for name in "ab")
    sweep = ["--multirun", f"path={a},{b}"]
    laid = ["env.cameras=[wrist]", "env.level=none", "tasks=[lift]"]
    assert with_earlier_settings(sweep, "evaluate") == [*laid, *sweep]
    c = write_policy(tmp_path / "c", TABLETOP, ["reach"])
    with pytest.raises(SettingError, match="different settings"):
        with_earlier_settings(["--multirun", f"path={a},{c}"], "evaluate")


def test_help_needs_no_policy(tmp_path):
    assert with_earlier_settings(["--help", f"from_run={tmp_path / 'no'}"], "train")[0] == "--help"


def recorded(monkeypatch, *drawn, **given):
    infos = {str(i): {"env": env} for i, env in enumerate(drawn)}
    monkeypatch.setattr(recorded_setting_module, "read_extra_info", lambda path: infos[str(path)])
    settings = {"tasks": ["push", "reach"], "cameras": ["wrist"], "env": TABLETOP}
    return recorded_setting(infos, **settings | {"recording_same_color_share": None} | given)


def test_the_setting_is_that_of_the_recording(monkeypatch):
    drawn = {**TABLETOP, "cameras": ["exterior", "wrist"], "render_quality": "full", "level": "train"}
    found = recorded(monkeypatch, drawn)
    assert found == TrainedSetting(env={**drawn, "cameras": ["wrist"]}, tasks=["reach", "push"])
    assert recorded(monkeypatch, {}) is None


def test_scenes_that_only_the_recording_has_more_of_are_not_evaluated_on(monkeypatch):
    drawn = {**TABLETOP, "same_color_share": 0.5}
    assert recorded(monkeypatch, drawn, recording_same_color_share=0.5).env == TABLETOP
    assert recorded(monkeypatch, drawn).env["same_color_share"] == 0.5


def test_several_recordings_are_shown_with_what_varies(monkeypatch):
    found = recorded(monkeypatch, TABLETOP, {**TABLETOP, "level": "train"})
    assert (found.env["level"], found.varied) == ("none", {"level": ["none", "train"]})
    assert differences(found, env=TABLETOP, tasks=[]) == [("env.level", "none and train", "none")]


def test_a_run_starts_with_the_settings_of_an_earlier_one(tmp_path, capsys):
    given = ["tasks=[lift]", "codec=quantile", "trainer.batch_size=7", "~processor.inputs.state", "out_dir=a"]
    record = write_record(tmp_path / "one", "train", *given, "env.level=none")
    laid = with_earlier_settings([f"from_run={record}", "trainer.batch_size=9"], "train")
    assert laid == [
        *("codec=quantile", "~processor.inputs.state", "env.level=none", "tasks=[lift]"),
        *(f"from_run={record}", "trainer.batch_size=9"),
    ]
    assert capsys.readouterr().out.startswith(f"settings of {record} (train): env, tasks, ")
    run = composed("train", *laid)
    assert (run.tasks, run.codec["kind"], run.trainer.batch_size) == (["lift"], "quantile", 9)
    assert set(run.processor.inputs) == {"images", "text"}
    assert Path(run.out_dir).name != "a"


def test_another_part_than_that_of_the_earlier_run_has_its_own_settings(tmp_path):
    record = write_record(tmp_path / "one", "train", "codec=uniform", "codec.num_bins=99", "tasks=[lift]")
    laid = with_earlier_settings([f"from_run={record}", "codec=quantile"], "train")
    assert laid[0] == "tasks=[lift]"
    assert composed("train", *laid).codec == {"kind": "quantile"}
    assert run_of("train", f"from_run={record}", "codec=uniform").codec["num_bins"] == 99


def test_a_recipe_counts_as_typed(tmp_path):
    record = write_record(tmp_path / "one", "train", "tasks=[lift]", "collect.episodes_per_task=3", "seed=4")
    run = run_of("train", f"from_run={record}", "experiment=tabletop")
    recipe = composed("train", "experiment=tabletop")
    assert run.collect.episodes_per_task == recipe.collect.episodes_per_task != 3
    assert (run.trainer.num_samples, run.seed) == (recipe.trainer.num_samples, 4)
    assert run.tasks == ["lift"]
    assert run.evaluation.first_seed == composed("train", "evaluation=reporting").evaluation.first_seed


def test_any_program_takes_the_keys_that_it_has_from_any_other(tmp_path, capsys):
    given = ["tasks=[lift]", "env.level=none", "evaluation.first_seed=7", "seed=5", "dataset=mine"]
    record = write_record(tmp_path / "one", "quickstart", *given, "fresh=true", cwd="/elsewhere")
    run = run_of("evaluate", f"from_run={record}", "path=/no/such")
    assert (run.tasks, run.env["level"], run.evaluation.first_seed, run.dataset) == (
        ["lift"],
        "none",
        7,
        None,
    )
    line = capsys.readouterr().out
    assert line.startswith(f"settings of {record} (quickstart): env, tasks, evaluation; not taken: dataset, ")
    assert run_of("control", f"from_run={record}", "bundle=/no/such").seed == 500000
    train = run_of("train", f"from_run={record}")
    assert (train.dataset, train.seed) == ("/elsewhere/mine", 5)
    assert train.data["cache_dir"] == f"{record}/cache"
    again = run_of("quickstart", f"from_run={record}", "out_dir=/new")
    assert (again.data["cache_dir"], again.fresh) == ("/new/cache", False)


def test_an_earlier_run_comes_before_the_setting_of_a_policy(tmp_path):
    policy = write_policy(tmp_path / "a", TABLETOP, ["lift"])
    record = write_record(tmp_path / "one", "evaluate", "path=x", "env.level=heldout", "tasks=[reach]")
    run = run_of("evaluate", f"from_run={record}", f"path={policy}")
    assert (run.env["level"], run.tasks) == ("heldout", ["reach"])


def test_an_improved_policy_is_improved_on_what_its_rounds_recorded_too(tmp_path, capsys):
    one = write_record(tmp_path / "one", "improve", "path=x", "data.more_datasets=[mine]")
    trained = one / "round_2" / "train"
    recorded = [str(one / f"round_{number}" / "dataset") for number in (1, 2)]
    for path in (trained, trained / "checkpoints" / "step_00000008"):
        run = run_of("improve", f"path={path}")
        assert run.data["more_datasets"] == ["mine", *recorded]
    assert (
        f"and what the rounds behind this policy recorded: {', '.join(recorded)}" in capsys.readouterr().out
    )
    write_record(
        tmp_path / "two", "improve", f"path={trained}", f"data.more_datasets={run.data['more_datasets']}"
    )
    run = run_of("improve", f"path={tmp_path / 'two' / 'round_1' / 'train'}")
    assert run.data["more_datasets"] == ["mine", *recorded, str(tmp_path / "two" / "round_1" / "dataset")]
    capsys.readouterr()
    assert run_of("improve", f"path={trained}", "data.more_datasets=[]").data["more_datasets"] == []
    assert "more_datasets" not in run_of("improve", f"path={write_record(tmp_path / 'train', 'train')}").data
    assert "rounds behind" not in capsys.readouterr().out


def test_a_pretrained_policy_is_improved_with_the_settings_that_it_keeps(capsys):
    path = "path=pretrained/tabletop"
    runs = (run_of("improve", path, "seed=7"), composed("improve", path))
    run, plain = (json.loads(json.dumps(dataclasses.asdict(one))) for one in runs)
    kept = read_provenance(FOLDER / "tabletop")["config"]
    assert kept["trainer"] != plain["trainer"]
    for part in ("env", "model", "processor", "codec", "collect", "tasks", "record"):
        assert run[part] == kept[part], part
    assert run["trainer"] == {**kept["trainer"], "seed": run["trainer"]["seed"]}
    assert run["seed"] == 7  # what is typed counts
    for part in ("dataset", "evaluation", "corrections", "logger", "wandb"):
        assert run[part] == plain[part], part
    assert run["data"]["cache_dir"] == plain["data"]["cache_dir"]  # places of another machine are not taken
    assert not run["data"].get("more_datasets")
    assert f"settings of {FOLDER / 'tabletop'} (train): env" in capsys.readouterr().out
    assert run_of("improve", path, "from_run=null").trainer == runs[1].trainer


def test_a_setting_that_a_policy_keeps_and_this_version_does_not_know_is_named(tmp_path):
    policy = write_policy(tmp_path / "run", TABLETOP, ["reach"])
    manifest = {"provenance": {"config": {"trainer": {"sed": 3, "seed": 3}}}}
    (policy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        SettingError, match=r"manifest.json has the key 'trainer.sed', which this version does"
    ):
        run_of("improve", f"path={policy}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "there is no such directory; give that of a run"),
        (
            lambda path: path.mkdir(),
            "holds no record of a run, .hydra/config.yaml; give the directory of a run",
        ),
        (
            lambda path: write_record(path / "3", "export", "checkpoint=a"),
            "it holds the runs 3: give one of them",
        ),
        (
            lambda path: write_record(path, "train", sed=4),
            "has the key 'sed', which this version does not know: did you mean 'seed'?",
        ),
        (
            lambda path: write_record(path, "train", "+codec.bins=4"),
            "has the key 'codec.bins', which this version does not know: did you mean 'num_bins'?",
        ),
        (
            lambda path: write_record(path, "train", "codec.kind=mu", "plugins=[lab]"),
            "has codec.kind=mu, which is unknown here; there are uniform, quantile, continuous, "
            "fast; that run had plugins=[lab], pass them",
        ),
        (
            lambda path: (write_record(path, "train") / ".hydra" / "config.yaml").write_text("{"),
            "cannot be read",
        ),
        (
            lambda path: (write_record(path, "train") / ".hydra" / "hydra.yaml").write_text("a: 1"),
            "is of no program of ours",
        ),
    ],
)
def test_mistakes_of_from_run_are_one_line(tmp_path, make, message):
    make(tmp_path / "one")
    with pytest.raises(SettingError) as error:
        with_earlier_settings([f"from_run={tmp_path / 'one'}"], "train")
    assert message in str(error.value)
    assert str(error.value).count("\n") == 0


def test_from_run_goes_with_no_other_root(tmp_path):
    with pytest.raises(SettingError, match="--config-path both say"):
        with_earlier_settings(["--config-path", "x", f"from_run={tmp_path}"], "train")


@pytest.mark.timeout(200)
def test_a_mistake_of_from_run_ends_with_code_2_and_what_is_typed_is_recorded_as_typed(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "experiments.export", "from_run=no", "checkpoint=x"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert result.returncode == 2
    assert result.stderr == (
        f"from_run is '{tmp_path / 'no'}', but there is no such directory; give that of a run\n"
    )
