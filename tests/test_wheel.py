"""A wheel holds all that programs need at run time: they run from it, far from any checkout."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from experiments.config import schema

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "tests" / "golden" / "bundle_v1"
PACKAGES = ("vla", "envs", "policies", "experiments", "conf")
WAIT_S = 280.0  # the longest that a test waits for a program
EXPLAINED = ("collect", "train", "serve", "demo")  # of the programs: help of all takes half a minute
HELP = """
import runpy, sys
from hydra.core.global_hydra import GlobalHydra
for program in sys.argv[1:]:
    sys.argv[1:] = ["--help"]
    try:
        runpy.run_module(f"experiments.{program}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print(f"== {program} ended with {end.code} ==")
    GlobalHydra.instance().clear()
import envs, conf
print("from", *conf.__path__, *envs.__path__)
"""
EDITABLE = """
import importlib.machinery, runpy, sys
class Checkout:  # found after all folders of sys.path have been searched, as pip install -e does it
    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.machinery.PathFinder.find_spec(name, [{root!r}]) if path is None else None
sys.meta_path.insert(sys.meta_path.index(importlib.machinery.PathFinder) + 1, Checkout)
sys.argv = ["serve.py", "--help"]
runpy.run_module("experiments.serve", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources, so that no build folder appears in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("tabletop", "metaworld_mt50"):  # whether or not this checkout has them
        folder = source / "policies" / "pretrained" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stand_in.safetensors").touch()
        (folder / "README.md").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", ".", "--no-build-isolation", "--wheel-dir", "dist", cwd=source)
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder into which the wheel, and nothing else, was installed."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", str(wheel), "--target", str(target), cwd=target)
    return target


def pip(verb, *arguments, cwd):
    command = [sys.executable, "-m", "pip", verb, "--no-deps", "--no-index", "--quiet", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr


def start(*arguments, cwd, path=None):
    """Start Python in a folder, with the sources of `path` before those that are installed."""
    environment = {key: value for key, value in os.environ.items() if key != "VLA_SERVE_TOKEN"}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(*arguments, cwd, path=None):
    with start(*arguments, cwd=cwd, path=path) as process:
        try:
            output, _ = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    return process.returncode, output


def test_the_wheel_holds_every_configuration_and_every_module(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    assert wanted <= held, sorted(wanted - held)[:5]
    assert not {name.split("/")[0] for name in held} & {"tests", "shared", "outputs"}


def test_the_wheel_holds_one_pretrained_policy(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if "pretrained/" in name}
    assert {
        "policies/pretrained/tabletop/stand_in.safetensors",
        "policies/pretrained/tabletop/README.md",
    } <= held
    assert not [name for name in held if not name.startswith("policies/pretrained/tabletop/")]


@pytest.mark.parametrize(
    "programs", [EXPLAINED, pytest.param(tuple(schema.ROOTS.names()), marks=pytest.mark.slow)]
)
def test_programs_explain_themselves_from_the_wheel(installed, tmp_path, programs):
    code, output = output_of("-c", HELP, *programs, cwd=tmp_path, path=installed)
    assert code == 0, output
    for program in programs:
        assert f"== {program} ended with 0 ==" in output, output[-2000:]
    assert output.count("== Settings ==") == len(programs)
    assert output.splitlines()[-1] == f"from {installed / 'conf'} {installed / 'envs'}"


@pytest.fixture
def own_folder(tmp_path):
    """A project of somebody else's, with folders named as ours and a module that adds a codec."""
    for name in ("conf", "envs", "experiments"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "my_lab.py").write_text("print('my_lab was imported')\n")
    return tmp_path


def vla(installed, *arguments, cwd):
    """What the command `vla` prints, and its exit code."""
    return output_of(str(installed / "bin" / "vla"), *arguments, cwd=cwd, path=installed)


def test_the_command_vla_works_in_a_folder_with_a_conf_of_its_own(installed, own_folder):
    code, output = vla(installed, "serve", "--help", cwd=own_folder)
    assert code == 0, output
    assert "== Settings ==" in output
    arguments = ("serve", f"bundle={BUNDLE}", "plugins=[my_lab]", "--cfg", "job")
    code, output = vla(installed, *arguments, cwd=own_folder)
    assert code == 0, output
    assert "my_lab was imported" in output
    assert f"bundle: {BUNDLE}" in output


def test_the_command_vla_names_its_programs_and_the_nearest(installed, own_folder):
    code, output = vla(installed, cwd=own_folder)
    assert code == 0, output
    for program in schema.ROOTS.names():
        assert f"\n  {program} " in output
    code, output = vla(installed, "trian", cwd=own_folder)
    assert code == 2
    assert output.startswith("there is no program 'trian'; did you mean 'train'?")


def test_a_shell_completes_programs_keys_and_options(installed, own_folder):
    script = (
        'vla() { "$PYTHON" "$VLA" "$@"; }\neval "$(vla --completion bash)"\n'
        'for COMP_LINE in "vla swee" "vla train experiment=tab" "vla train trainer.learn"; do\n'
        "COMP_POINT=${#COMP_LINE}; COMP_WORDS=($COMP_LINE); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _vla\n"
        'printf "<%s>" "${COMPREPLY[@]}"; done\n'
    )
    places = {"PYTHON": sys.executable, "VLA": str(installed / "bin" / "vla"), "PYTHONPATH": str(installed)}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=own_folder,
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert done.stdout == (
        "<sweep_table ><experiment=tabletop><trainer.learning_rate=><trainer.learning_rate_scale.>"
    ), done.stderr


def test_a_bundle_is_served_from_the_wheel(installed, tmp_path):
    (tmp_path / "conf").mkdir()  # somebody else's: without Python files it hides nothing here
    arguments = ("-m", "experiments.serve", f"bundle={BUNDLE}", "port=0", "out_dir=out")
    with start(*arguments, cwd=tmp_path, path=installed) as process:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith("vla-eval"):
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=WAIT_S) == 0, "".join(printed)
    assert "stopped: " in printed[-1], "".join(printed)


def test_gymnasium_finds_the_ids_of_an_installed_wheel(installed, tmp_path):
    show = "print(gymnasium.spec('vla/TabletopReach-v0').kwargs, 'mujoco' in sys.modules)"
    code = f"import gymnasium, sys, envs.gymnasium_ids; {show}"
    assert output_of("-c", code, cwd=tmp_path, path=installed) == (0, "{'task': 'reach'} False\n")


@pytest.mark.parametrize("case", ["wheel", "editable"])
def test_a_folder_that_hides_our_configuration_is_named(case, tmp_path, request):
    folder = tmp_path / "conf"
    folder.mkdir()
    if case == "wheel":
        (folder / "__init__.py").touch()
        path = request.getfixturevalue("installed")
        code, output = output_of("-m", "experiments.serve", "--help", cwd=tmp_path, path=path)
    else:
        code, output = output_of("-c", EDITABLE.format(root=str(ROOT)), cwd=tmp_path)
    assert code == 2
    assert output.startswith(f"the folder {folder} hides the configuration of this program, "), output
