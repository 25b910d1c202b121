"""Every configuration composes, every recipe builds, and no misspelt key passes."""

import dataclasses
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from envs.evaluation.results import EvaluationPlan
from envs.registry import make_env
from experiments.config import schema
from experiments.config.cli import explain_config_error
from experiments.config.simulation import env_configs
from experiments.quickstart import Quickstart
from experiments.train import trainer_settings
from vla.data.augment import ImageAugmentation
from vla.model.sizes import ModelSizes
from vla.model.vla import VLAModel
from vla.processing.registry import ACTION_TOKENIZERS
from vla.training.settings import TrainerSettings

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
YAMLS = sorted(CONF.rglob("*.yaml"))
RECIPES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
REQUIRED = {  # what a person has to give
    "evaluate": ["path=p"],
    "export": ["checkpoint=c"],
    "compare": ["a=a", "b=b"],
    "sweep_table": ["runs=[a]"],
    "benchmark": ["part=data"],
    "delay_table": ["bundle=b"],
    "serve": ["bundle=b"],
}


def composed(root, overrides=()):
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        return compose(root, [*REQUIRED.get(root, []), *overrides])


def build(run):
    """Build everything that needs no data."""
    trainer_settings(run.trainer, seed=run.seed)
    assert run.action_tokenizer.kind in ACTION_TOKENIZERS
    with torch.device("meta"):
        return VLAModel(
            ModelSizes(
                vocab_size=600,
                num_bins=run.action_tokenizer.num_bins,
                action_offset=300,
                bins_per_dim=[run.action_tokenizer.num_bins] * 7,
                action_horizon=run.processor.action_horizon,
                num_images=len(run.env.cameras) * len(run.processor.frame_offsets),
                image_size=run.env.image_size,
                state_dim=6,
                max_text_tokens=run.processor.max_text_tokens,
                **vars(run.model),
            )
        )


@pytest.mark.parametrize("root", schema.ROOTS)
def test_every_program_composes_to_its_schema(root):
    assert isinstance(schema.typed(composed(root), schema.ROOTS[root]), schema.ROOTS[root])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_builds(recipe):
    run = schema.typed(composed("train", [f"experiment={recipe}"]), schema.TrainRun)
    build(run)
    if run.env.family == "metaworld":
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
    for root in ("collect", "train", "evaluate", "export"):
        given = [f"env={choice}"] if tasks is None else [f"env={choice}", f"tasks={tasks}"]
        run = schema.typed(composed(root, given), schema.ROOTS[root])
        assert run.env.family == choice
        assert len(set(run.tasks)) == len(run.tasks) == count
        configs = env_configs(run.env, run.tasks)
        assert all("tasks" not in config and None not in config.values() for config in configs.values())


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
        assert set(composed(root, overrides).tasks) == set(TASKS), root


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
        ("trainer.augmentation.max_shfit=3", "max_shift"),
        ("sede=1", "seed"),
        ("+sede=1", "seed"),
        ("+trainer.num_sample=1", "num_samples"),
        ("modle=vla_tiny", "model"),
    ],
)
def test_a_misspelt_key_on_the_command_line_names_the_nearest(override, nearest):
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        schema.typed(composed("train", [override]), schema.TrainRun)
    first_line = explain_config_error(caught.value).splitlines()[0]
    assert first_line.startswith("unknown key")
    assert first_line.endswith(f"nearest: {nearest!r}")


@pytest.mark.parametrize(
    ("override", "first_line"),
    [
        ("trainer.num_samples=null", "trainer.num_samples has no value; give trainer.num_samples=<value>"),
        ("trainer.num_samples='???'", "trainer.num_samples has no value; give trainer.num_samples=<value>"),
        ("trainer.num_steps=3", "unknown key 'num_steps'; it is now num_samples"),
        ("trainer.time_budget_minutes=9", "unknown key 'time_budget_minutes'; it is now num_samples"),
    ],
)
def test_a_missing_budget_and_an_old_one_say_what_to_give(override, first_line):
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        schema.typed(composed("train", [override]), schema.TrainRun)
    assert explain_config_error(caught.value).startswith(first_line)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("trianer:\n  num_samples: 3\n", "trainer"),
        ("trainer:\n  num_sample: 3\n", "num_samples"),
        ("model:\n  deepth: 3\n", "depth"),
    ],
)
def test_a_misspelt_key_in_a_recipe_names_the_nearest(tmp_path, text, nearest):
    recipe = tmp_path / "experiment" / "wrong.yaml"
    recipe.parent.mkdir()
    recipe.write_text(f"# @package _global_\n{text}")
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        composed("train", ["experiment=wrong", f"hydra.searchpath=[file://{tmp_path}]"])
    explanation = explain_config_error(caught.value)
    assert f"nearest: {nearest!r}" in explanation.splitlines()[0]
    assert "experiment/wrong" in explanation


def test_a_misspelt_recipe_or_group_option_lists_what_exists():
    with pytest.raises(HydraException) as caught:
        composed("train", ["model=vla_tinny"])
    assert "vla_tiny" in explain_config_error(caught.value)


def test_a_misspelt_key_ends_the_program_with_code_2():
    command = [sys.executable, "-m", "experiments.collect", "collect.episode_per_task=3"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("unknown key 'episode_per_task'; nearest: 'episodes_per_task'")


def test_a_missing_value_is_named():
    schema.register()
    with (
        initialize_config_module("conf", version_base="1.3"),
        pytest.raises(OmegaConfBaseException) as caught,
    ):
        schema.typed(compose("evaluate"), schema.EvaluateRun)
    assert "path" in explain_config_error(caught.value)


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


@pytest.mark.parametrize(
    ("config", "constructor", "made_elsewhere"),
    [
        (schema.TrainerConfig, TrainerSettings, {"seed", "betas"}),
        (schema.AugmentationConfig, ImageAugmentation, set()),
        (
            schema.ModelConfig,
            ModelSizes,
            {
                "vocab_size",
                "num_bins",
                "action_offset",
                "bins_per_dim",
                "action_horizon",
                "num_images",
                "image_size",
                "state_dim",
                "max_text_tokens",
                "max_committed",
                "num_future_states",
            },
        ),
        (schema.EvaluationConfig, EvaluationPlan, {"env_configs", "condition", "limits"}),
    ],
)
def test_every_setting_can_be_configured(config, constructor, made_elsewhere):
    keys = {field.name for field in dataclasses.fields(config)} - {"conditions"}
    if config is schema.EvaluationConfig:
        keys -= {"device", "safety"}  # of the policy, and what `limits` follows from
    assert keys | made_elsewhere == set(inspect.signature(constructor).parameters)
