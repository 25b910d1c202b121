"""A module of the user adds an environment or a robot; programs use it by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.config.plugins import load_plugins, plugins_in
from vla.data.reader import Dataset
from vla.registry import SettingError

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
BUNDLE = ROOT / "tests" / "golden" / "bundle_v1"
COLLECT = ["plugins=[toy_env]", "env=toy", "collect.episodes_per_task=2", "collect.storage=image"]


def program(verb, *arguments):
    path = os.pathsep.join([str(ROOT), str(HERE)])
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{verb}", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
        timeout=200,
    )


def test_a_family_of_environments_is_one_file_and_a_line(tmp_path):
    result = program(
        "collect", *COLLECT, f"dataset={tmp_path / 'data'}", f"out_dir={tmp_path}", "env.speed=0.05"
    )
    assert result.returncode == 0, result.stderr
    data = Dataset(tmp_path / "data")
    assert data.num_episodes == 4  # of both tasks
    assert data.robot_spec.action[0].high == 0.05


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env.speed=-1"], "env.speed is -1; it must be a number in (0, 1]"),
        (["env.sped=1"], "unknown key 'env.sped'; did you mean 'speed'?"),
        (["env.level=none"], "unknown key 'env.level'; choose from image_size, speed"),
    ],
)
def test_its_settings_are_checked(tmp_path, overrides, message):
    result = program("collect", *COLLECT, f"dataset={tmp_path / 'data'}", f"out_dir={tmp_path}", *overrides)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(message)
    assert not (tmp_path / "data").exists()


def test_its_settings_are_in_the_help():
    result = program("collect", "--help", "plugins=[toy_env]")
    assert result.returncode == 0
    assert "env.speed (toy)" in result.stdout
    assert "of the point, a period" in result.stdout


def test_a_robot_is_one_file_and_a_line(tmp_path):
    result = program(
        *("control", "plugins=[toy_robot]", "robot=toy", "robot.num_commands=7"),
        *(f"bundle={BUNDLE}", f"out_dir={tmp_path}"),
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["goal_reached"]


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(SettingError, match="plugins names 'no_such_toy', but there is no module"):
        load_plugins(["no_such_toy"])
    result = program("collect", "plugins=[no_such_toy]")
    assert result.returncode == 2
    assert result.stderr.startswith("plugins names 'no_such_toy'")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env=toyy"], "env is 'toyy'; choose from metaworld, tabletop"),
        (["robot=my_arm"], "robot is 'my_arm'; choose from franka, lerobot, sim"),
        (["codec=mulaw"], "codec is 'mulaw'; choose from continuous, fast, quantile, uniform"),
        (["model/head=mean"], "model/head is 'mean'; choose from autoregressive, fast, flow, parallel"),
        (["+model.auxiliaries.x={kind: weather}"], "model.auxiliaries.x.kind is 'weather'; choose from"),
    ],
)
def test_a_name_of_a_plugin_that_was_not_passed_asks_for_it(tmp_path, overrides, message):
    verb = "control" if "robot" in overrides[0] else "train"
    result = program(verb, *overrides, f"out_dir={tmp_path}")
    assert result.returncode == 2
    said = result.stderr.splitlines()[-1]
    assert said.startswith(message)
    assert said.endswith("; if a plug-in of yours adds it, pass plugins=[<its module or file>]")


def test_the_command_line_names_modules():
    assert plugins_in(["env=toy", "plugins=[a,b.c]"]) == ["a", "b.c"]
    assert plugins_in(["env=toy"]) == []
    with pytest.raises(SettingError, match=r"plugins=\[my_module\]"):
        plugins_in(["plugins=a"])
