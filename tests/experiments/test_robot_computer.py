"""A robot's computer has the core packages alone: what serves and what drives imports nothing else."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from program_fixtures import read_until

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
BUNDLE = ROOT / "tests" / "golden" / "bundle_v1"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED_AS = {"hydra-core": "hydra", "pillow": "PIL", "franky-control": "franky"}
PROGRAM = """
import runpy, sys
program, blocked, *sys.argv[1:] = sys.argv[1:]
sys.modules.update(dict.fromkeys(blocked.split(",")))  # None: importing it fails
runpy.run_module(f"experiments.{program}", run_name="__main__", alter_sys=True)
"""
NAMED = ("torch", "gymnasium", "mujoco", "numpy", "hydra-core", "einops", "wandb", "pytest")


def names(requirements):
    return {re.split(r"[\[<>=!~; ]", text)[0] for text in requirements} - {PROJECT["name"]}


CORE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(texts) for extra, texts in PROJECT["optional-dependencies"].items()}


@contextlib.contextmanager
def without_extras(program, *arguments):
    """A program where no package can be imported that the core does not ask for."""
    absent = set().union(*EXTRAS.values()) - CORE
    environment = {key: value for key, value in os.environ.items() if key != "VLA_SERVE_TOKEN"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE)])
    blocked = ",".join(sorted(IMPORTED_AS.get(name, name) for name in absent))
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, program, blocked, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_core_is_without_training_and_simulation_and_all_named_packages_are_declared():
    assert not CORE & {"torch", "mujoco", "gymnasium", "pyarrow", "av", "onnxscript"}
    assert set(NAMED) <= CORE.union(*EXTRAS.values())
    pinned = {extra for extra, texts in PROJECT["optional-dependencies"].items() if "mujoco==" in str(texts)}
    assert pinned == {"metaworld"}


@pytest.mark.parametrize("where", ["bundle", "server"])
def test_a_robot_is_driven_by_a_bundle_and_by_a_server_without_any_extra(tmp_path, where):
    with contextlib.ExitStack() as stack:
        policy = f"bundle={BUNDLE}"
        if where == "server":
            serving = ("port=0", f"bundle={BUNDLE}", f"out_dir={tmp_path / 'serve'}")
            server = stack.enter_context(without_extras("serve", *serving))
            found = re.search(r"openpi +(ws://\S+)", read_until(server, "vla-eval  "))
            policy = f"server={found[1]}"
        driving = (
            "plugins=[toy_robot]",
            "robot=toy",
            "robot.num_commands=7",
            f"out_dir={tmp_path}",
            policy,
        )
        control = stack.enter_context(without_extras("control", *driving))
        assert control.wait(timeout=120) == 0, control.stdout.read()
    assert json.loads((tmp_path / "summary.json").read_text())["goal_reached"]
    assert "Control: tiny, schedule async" in (tmp_path / "report.html").read_text()


def test_a_simulated_robot_says_what_to_install(tmp_path):
    with without_extras("control", "robot=sim", f"bundle={BUNDLE}", f"out_dir={tmp_path}") as control:
        output = control.communicate(timeout=120)[0]
    assert control.returncode == 1
    assert "pip install -e '.[sim]'" in output
    assert "Traceback" not in output


def test_a_task_needs_a_scene(tmp_path):
    arguments = ("plugins=[toy_robot]", "robot=toy", "task=reach", f"bundle={BUNDLE}")
    with without_extras("control", *arguments, f"out_dir={tmp_path}") as control:
        output = control.communicate(timeout=120)[0]
    assert control.returncode == 1
    assert "task is 'reach', but this robot stands in no scene that has tasks" in output


def test_a_robot_file_is_read_without_any_extra():
    with without_extras("config.robot_file") as reading:
        output = reading.communicate(timeout=120)[0]
    assert reading.returncode == 0, output
