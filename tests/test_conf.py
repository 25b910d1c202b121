"""Every configuration composes, every recipe builds, and no misspelled key passes."""

import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from envs.registry import make_env
from experiments.config import schema
from experiments.config.cli import explain_config_error, explain_setting_error
from experiments.config.overrides import overrides as as_overrides
from experiments.config.simulation import env_configs
from experiments.quickstart import Quickstart
from experiments.train import require_settings
from experiments.training_parts import build_model
from vla.processing.moments import Demonstrations
from vla.processing.processor import Processor
from vla.registry import SettingError
from vla.spec import CameraSpec, Channel, RobotSpec

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
YAMLS = sorted(CONF.rglob("*.yaml"))
RECIPES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
REQUIRED_KEYS = {  # what a person has to give
    "check": ["dataset=d"],
    "evaluate": ["path=p"],
    "improve": ["path=p"],
    "export": ["checkpoint=c"],
    "release": ["checkpoint=c", "name=n"],
    "compare": ["a=a", "b=b"],
    "sweep_table": ["runs=[a]"],
    "benchmark": ["part=data"],
    "delay_table": ["bundle=b"],
    "serve": ["bundle=b"],
    "convert": ["source=s", "dataset=d", "mapping=aloha"],
}


def composed(root, overrides=()):
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        return compose(root, [*REQUIRED_KEYS.get(root, []), *overrides])


def build(run):
    """Build everything that needs no data."""
    require_settings(run)
    spec = RobotSpec(
        name="any",
        cameras=tuple(
            CameraSpec(name=name, height=run.env["image_size"], width=run.env["image_size"])
            for name in run.env["cameras"]
        ),
        state=tuple(Channel(name=f"s{i}", unit="m", low=-1.0, high=1.0) for i in range(6)),
        action=tuple(Channel(name=f"a{i}", unit="m", low=-1.0, high=1.0) for i in range(7)),
        control_hz=20.0,
        action_convention="end_effector_delta",
        gripper_sign="positive_opens",
    )
    rng = np.random.default_rng(0)
    chunks = rng.uniform(-1, 1, size=(50, run.processor.action_horizon, 7)).astype(np.float32)
    processor = Processor.fit(
        Demonstrations(
            robot_spec=spec,
            states=rng.uniform(-1, 1, size=(50, 6)).astype(np.float32),
            actions=chunks[:, 0],
            chunks=chunks,
            instructions=["lift the red cube"],
        ),
        codec=run.codec,
        inputs=run.processor.inputs,
        frame_offsets=run.processor.frame_offsets,
        max_committed=run.processor.max_committed,
    )
    with torch.device("meta"):
        return build_model(run.model, processor, seed=0)


@pytest.mark.parametrize("root", schema.ROOTS.names())
def test_every_program_composes_to_its_schema(root):
    assert isinstance(schema.typed(composed(root), schema.ROOTS.get(root)), schema.ROOTS.get(root))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_builds(recipe):
    run = schema.typed(composed("train", [f"experiment={recipe}"]), schema.TrainRun)
    build(run)
    if run.env["family"] == "metaworld":
        pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install -e '.[metaworld]'")
    make_env(env_configs(run.env, run.tasks)[run.tasks[0]]).close()


@pytest.mark.parametrize(
    ("choice", "tasks", "count"),
    [
        ("tabletop", None, 7),
        ("metaworld", None, 50),
        ("metaworld", "[mt50]", 50),
        ("metaworld", "[mt10]", 10),
        ("metaworld", "[drawer-open,reach]", 2),
    ],
)
def test_an_environment_choice_brings_its_tasks_to_every_program(choice, tasks, count):
    for root in ("collect", "train", "evaluate"):
        given = [f"env={choice}"] if tasks is None else [f"env={choice}", f"tasks={tasks}"]
        run = schema.typed(composed(root, given), schema.ROOTS.get(root))
        assert run.env["family"] == choice
        assert len(set(run.tasks)) == len(run.tasks) == count
        configs = env_configs(run.env, run.tasks)
        assert all(config["task"] == task for task, config in configs.items())


def test_the_quickstart_builds():
    run = schema.typed(composed("quickstart"), schema.QuickstartRun)
    build(run)
    assert {"reach", "push", "lift"} <= set(run.tasks)


def test_the_commands_that_the_quickstart_prints_repeat_its_scenes(tmp_path):
    run = schema.typed(composed("quickstart"), schema.QuickstartRun)
    _, *commands = [command for command, _ in Quickstart(run=run, out_dir=tmp_path).commands()]
    for command, evaluation in zip(commands, (run.evaluation, run.bundle_evaluation), strict=True):
        python, m, program, *words = shlex.split(command)
        assert (python, m, program) == ("python", "-m", "experiments.evaluate")
        repeated = schema.typed(composed("evaluate", words), schema.EvaluateRun)
        assert (repeated.tasks, repeated.env, repeated.evaluation) == (run.tasks, run.env, evaluation)


def test_the_full_recipe_and_the_defaults_cover_all_tasks():
    from envs.tabletop.env import TASKS

    for root, overrides in (("train", ["experiment=tabletop"]), ("collect", []), ("evaluate", [])):
        run = schema.typed(composed(root, overrides), schema.ROOTS.get(root))
        assert set(run.tasks) == set(TASKS), root


@pytest.mark.parametrize(
    ("size", "low", "high"), [("vla_tiny", 3e6, 6e6), ("vla_small", 2e7, 3e7), ("vla_base", 9e7, 1.2e8)]
)
def test_model_sizes_are_what_their_names_promise(size, low, high):
    model = build(schema.typed(composed("train", [f"model={size}"]), schema.TrainRun))
    assert low < model.num_parameters() < high


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("trainr.num_samples=3", "trainer"),
        ("trainer.num_sample=3", "num_samples"),
        ("sede=1", "seed"),
        ("+sede=1", "seed"),
        ("+trainer.num_sample=1", "num_samples"),
        ("modle=vla_tiny", "model"),
    ],
)
def test_a_misspelled_key_on_the_command_line_names_the_nearest(override, nearest):
    with pytest.raises((HydraException, OmegaConfBaseException, SettingError)) as caught:
        schema.typed(composed("train", [override]), schema.TrainRun)
    first_line = explain_config_error(caught.value).splitlines()[0]
    assert first_line.startswith("unknown key")
    assert f"did you mean {nearest!r}?" in first_line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.backbone.deepth=3", r"model\.backbone\.deepth.*did you mean 'depth'"),
        ("model.backbone.depth=0", r"model\.backbone\.depth is 0; it must be an integer in \[1, 256\]"),
        ("model.head.kind=paralell", r"model\.head.*'paralell'.*did you mean 'parallel'"),
        ("model.auxiliaries.later_states.weight=inf", r"later_states\.weight is inf; it must be finite"),
        ("codec.num_bins=1", r"codec\.num_bins is 1"),
        ("codec.kind=unifrom", "did you mean 'uniform'"),
        ("processor.inputs.text.max_tokens=0", r"processor\.inputs\.text\.max_tokens is 0"),
        ("data.augmentation.max_shfit=3", r"data\.augmentation\.max_shfit.*did you mean 'max_shift'"),
        ("data.validation_share=nan", r"data\.validation_share is nan"),
        (
            "trainer.max_grad_norm=inf",
            r"trainer\.max_grad_norm is inf; it must be finite: a number in \(0, 1000000000\]",
        ),
        ("trainer.learning_rate=nan", r"trainer\.learning_rate is nan; it must be finite"),
        (
            "trainer.num_samples=-5",
            r"trainer\.num_samples is -5; it must be an integer in \[1, 1000000000000\]",
        ),
        ("trainer.accumulate=60000", r"^trainer\.num_samples is \d+, less than the \d+ of one step"),
        ("trainer.optimizer=sgd", r"trainer\.optimizer is 'sgd'; choose from muon, adamw"),
        ("trainer.betas=[0.9]", r"trainer\.betas is \[0\.9\]; it must be a list of 2"),
        ("collect.num_workers=-1", r"collect\.num_workers is -1"),
        ("collect.disturbance.noise_std=inf", r"collect\.disturbance\.noise_std is inf"),
        (
            "evaluation.execute_horizon=0",
            r"evaluation\.execute_horizon is 0; it must be an integer in \[1, 1024\]",
        ),
        (
            "evaluation.instruction_modes=[original,left]",
            r"evaluation\.instruction_modes\[1\] is 'left'; choose from",
        ),
        ("env.image_size=-96", r"env\.image_size is -96; it must be an integer in \[8, 2048\]"),
        ("env.family=tabeltop", r"env\.family is 'tabeltop'; did you mean 'tabletop'"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(override, message):
    with pytest.raises(SettingError, match=message) as caught:
        schema.typed(composed("train", [override]), schema.TrainRun)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("root", "override", "message"),
    [
        ("control", "robot.limits.channels.delta_x.velocity=nan", r"channels\.delta_x\.velocity is nan"),
        ("control", "robot.limits.channels.delta_x.jerk=-1", r"channels\.delta_x\.jerk is -1"),
        ("control", "robot.limits.channels.delta_x.low=9", r"channels\.delta_x: low is 9.* and high is 0\.7"),
        ("control", "robot.faults.latency_s=inf", r"robot\.faults\.latency_s is inf"),
        ("control", "watchdog.missed_stop_share=0", r"watchdog\.missed_stop_share is 0"),
        ("control", "schedule=syncc", r"schedule is 'syncc'; did you mean 'sync'"),
        ("serve", "port=70000", r"port is 70000; it must be an integer in \[0, 65535\]"),
        ("serve", "openpi_map.cameras.top=3", r"openpi_map\.cameras\.top is 3; it must be text"),
        ("serve", "server.session.idle_timeout_s=nan", r"server\.session\.idle_timeout_s is nan"),
        ("delay_table", "delays_ms=[0.0,inf]", r"delays_ms\[1\] is inf"),
    ],
)
def test_wrong_settings_of_other_programs_are_refused(root, override, message):
    with pytest.raises(SettingError, match=message):
        schema.typed(composed(root, [override]), schema.ROOTS.get(root))


def test_an_unlimited_acceleration_is_a_setting():
    run = schema.typed(
        composed("control", ["robot.limits.max_tracking_error=inf"]), schema.ROOTS.get("control")
    )
    assert math.isinf(run.robot.limits.max_tracking_error)


@pytest.mark.parametrize(
    ("override", "first_line"),
    [
        (
            "trainer.num_samples=null",
            "trainer.num_samples is null; it must be an integer in [1, 1000000000000]",
        ),
        (
            "trainer.num_samples='???'",
            "trainer.num_samples has no value; give trainer.num_samples=<an integer in [1, 1000000000000]>",
        ),
        ("trainer.num_steps=3", "unknown key 'trainer.num_steps'; it is now num_samples"),
        ("logger.mode=offline", "logger is one value, jsonl | wandb, and has no keys of its own"),
        ("evaluation.conditions=[right]", "unknown key 'evaluation.conditions'; it is now instruction_modes"),
        ("trainer.time_budget_minutes=9", "unknown key 'trainer.time_budget_minutes'; it is now num_samples"),
    ],
)
def test_a_missing_budget_and_an_old_one_say_what_to_give(override, first_line):
    with pytest.raises((HydraException, OmegaConfBaseException, SettingError)) as caught:
        schema.typed(composed("train", [override]), schema.TrainRun)
    assert explain_config_error(caught.value).startswith(first_line)


@pytest.mark.parametrize(
    ("override", "first_line"),
    [
        ("env.twin_share=0.3", "unknown key 'env.twin_share'; it is now env.same_color_share"),
        ("data.augmentation.colour=0.3", "unknown key 'data.augmentation.colour'; it is now color"),
        ("data.augmentation.brightnes=0.3", "unknown key 'data.augmentation.brightnes'; did you mean"),
    ],
)
def test_an_old_key_of_a_part_says_what_it_is_now(override, first_line):
    with pytest.raises(SettingError) as caught:
        schema.typed(composed("train", [override]), schema.TrainRun)
    assert explain_setting_error(caught.value).startswith(first_line)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("trianer:\n  num_samples: 3\n", "trainer"),
        ("trainer:\n  num_sample: 3\n", "num_samples"),
        ("model:\n  haed: 3\n", "head"),
    ],
)
def test_a_misspelled_key_in_a_recipe_names_the_nearest(tmp_path, text, nearest):
    recipe = tmp_path / "experiment" / "wrong.yaml"
    recipe.parent.mkdir()
    recipe.write_text(f"# @package _global_\n{text}")
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        composed("train", ["experiment=wrong", f"hydra.searchpath=[file://{tmp_path}]"])
    explanation = explain_config_error(caught.value)
    assert f"did you mean {nearest!r}?" in explanation.splitlines()[0]
    assert "experiment/wrong" in explanation


def test_a_misspelled_recipe_or_group_option_lists_what_exists():
    with pytest.raises(HydraException) as caught:
        composed("train", ["model=vla_tinny"])
    assert "vla_tiny" in explain_config_error(caught.value)


def test_a_misspelled_key_ends_the_program_with_code_2():
    command = [sys.executable, "-m", "experiments.collect", "collect.episode_per_task=3"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(
        "unknown key 'collect.episode_per_task'; did you mean 'episodes_per_task'?"
    )


def test_a_missing_value_is_named():
    schema.register()
    with (
        initialize_config_module("conf", version_base="1.3"),
        pytest.raises(SettingError, match="path has no value"),
    ):
        schema.typed(compose("evaluate"), schema.EvaluateRun)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(CONF)))
def test_files_are_short_and_plain(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    yaml.safe_load(text)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_states_command_cost_and_result(recipe):
    header = "".join(
        line
        for line in (CONF / "experiment" / f"{recipe}.yaml").read_text().splitlines(keepends=True)
        if line.startswith("#")
    )
    assert f"python -m experiments.train experiment={recipe}" in header
    assert "Cost:" in header
    assert "Result:" in header


def test_the_set_up_script_and_the_package_ask_for_the_same_torch():
    wanted = re.search(r'"(torch[^"]+)"', (ROOT / "pyproject.toml").read_text())
    script = re.search(r'TORCH_REQUIREMENT="([^"]+)"', (ROOT / ".ci" / "setup.sh").read_text())
    assert wanted is not None
    assert script is not None
    assert wanted.group(1) == script.group(1)


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
@pytest.mark.parametrize(
    ("root", "key", "right"),
    [
        ("control", "wwatchdog.blind_stop_s", "watchdog"),
        ("control", "watchdog.bblind_stop_s", "blind_stop_s"),
        ("control", "robot.llimits.max_tracking_error", "limits"),
        ("control", "robot.limits.mmax_tracking_error", "max_tracking_error"),
        ("control", "robot.limits.channels.delta_x.vvelocity", "velocity"),
        ("control", "robot.ffaults.latency_s", "faults"),
        ("train", "model.backbone.ddepth", "depth"),
        ("train", "processor.inputs.text.mmax_tokens", "max_tokens"),
        ("serve", "server.session.iidle_timeout_s", "idle_timeout_s"),
    ],
)
def test_a_misspelled_key_is_refused_at_every_depth_however_it_is_given(root, key, right, prefix):
    override = f"{prefix}{key}" if prefix == "~" else f"{prefix}{key}=1"
    program = schema.ROOTS.get(root)
    with pytest.raises((HydraException, OmegaConfBaseException, SettingError)) as caught:
        schema.typed(composed(root, [override]), program)
    if isinstance(caught.value, SettingError):
        message = explain_setting_error(caught.value)
    else:
        message = explain_config_error(caught.value, program=program)
    assert "\n" not in message
    assert message.startswith("unknown key ")
    assert re.search(rf"did you mean '([a-z_<>]+\.)*{right}[.']", message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks=3", "tasks is 3; it must be a list, each text"),
        ("dataset=[a]", "dataset is ['a']; it must be text"),
        ("record=2", "record is 2; it must be true or false"),
        (
            "trainer.num_samples=word",
            "trainer.num_samples is 'word'; it must be an integer in [1, 1000000000000]",
        ),
        ("trainer.learning_rate=word", "trainer.learning_rate is 'word'; it must be a number in (0, 100]"),
        (
            "trainer.keep_checkpoints=0",
            "trainer.keep_checkpoints is 0; it must be an integer in [1, 1000000], or -1 ",
        ),
        ("seed=1e400", "seed is inf; it must be finite: an integer in [0, 2147483647]"),
        ("model.head=flow", "model.head is 'flow'; it must be a map with kind: parallel | autoregressive"),
        ("model=vla_tinny", "model is 'vla_tinny'; did you mean 'vla_tiny'? choose from vla_base, "),
        ("tasks=[reach,raech]", "tasks names 'raech'; did you mean 'reach'? choose from "),
        ("tasks=[reach,reach]", "tasks names 'reach' twice; name each once"),
        ("trainer.num_samples=${nothing}", "trainer.num_samples: Interpolation key 'nothing' not found"),
    ],
)
def test_a_wrong_value_is_one_line_whoever_finds_it(override, message):
    with pytest.raises((HydraException, OmegaConfBaseException, SettingError)) as caught:
        schema.typed(composed("train", [override]), schema.TrainRun)
    found = (
        str(caught.value) if isinstance(caught.value, SettingError) else explain_config_error(caught.value)
    )
    assert found.startswith(message)
    assert "\n" not in found


def test_text_may_look_like_a_number():
    run = schema.typed(composed("train", ["dataset=2026"]), schema.TrainRun)
    assert Path(run.dataset).name == "2026"


def test_a_number_in_place_of_a_file_of_conf_is_a_wrong_value():
    command = [sys.executable, "-m", "experiments.train", "trainer=5"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stderr) == (2, "trainer is '5'; choose from cpu\n")


@pytest.mark.parametrize(
    "text",
    [
        *("plain", "/a/b-c_d.e", "with blank", "grün", "a,b", "(x)", "a=b", "#1", "~me", "a&b", "{x}", "+x"),
        *("it's", "a\\'b", "end\\", "both\\\\", "a\\b", '"quoted"', "[a]", "run:1"),
        *("null", "1e5", "007", "True"),
    ],
)
def test_what_the_quickstart_hands_on_is_read_back_as_it_was(text):
    given = as_overrides({"path": text, "tasks": [text, "reach"]})
    path, tasks = (OverridesParser.create().parse_override(one).value() for one in given)
    assert (path, tasks) == (text, [text, "reach"])


def test_a_model_that_does_not_fit_into_the_memory_is_refused_before_it_takes_any():
    run = schema.typed(
        composed("train", ["model.backbone.width=16384", "model.backbone.depth=256"]), schema.TrainRun
    )
    with pytest.raises(
        ValueError, match=r"^model has [\d,]+ weights, which take \d+ GB to train, .* lower width"
    ):
        build(run)


@pytest.mark.parametrize("group", ["trainer", "model.backbone", "model.head", "env", "robot"])
def test_nothing_in_a_configuration_is_instantiated(tmp_path, group):
    """`_target_` is a word like any other that is not a setting: refused, whatever it names."""
    marker = tmp_path / "marker"
    given = [f"+{group}._target_=os.system", f"+{group}.command='touch {marker}'", f"out_dir={tmp_path}/run"]
    command = [sys.executable, "-m", "experiments.train", f"dataset={tmp_path}/none", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2), done.stderr
    assert not marker.exists()


def test_no_code_instantiates_what_a_configuration_names():
    for top in ("vla", "policies", "envs", "experiments", "conf"):
        for path in (ROOT / top).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "hydra.utils" not in text, path
            assert not re.search(r"\b(instantiate|eval|exec)\(", text.replace(".eval(", "")), path
