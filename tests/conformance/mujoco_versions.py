"""The tabletop with the oldest and the newest MuJoCo and mink that pyproject.toml allows, run by hand.

    python tests/conformance/mujoco_versions.py /tmp/mujoco-versions

It makes an environment for each pair (160 MB, no torch, no Meta-World), runs the tests of `envs` there, and
prints the versions with what pytest's last line says. experiments/results/compatibility.md has the outcome.
"""

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAIRS = {"oldest": ("mujoco==3.3.0", "mink==0.0.13"), "newest": ("mujoco", "mink")}
TESTING = ("pytest", "pytest-timeout", "hypothesis", "beartype")
NEEDED = ("numpy", "jaxtyping", "pillow")  # of the core
TESTS = (
    "tests/envs",
    "--ignore=tests/envs/test_metaworld.py",
    "--ignore=tests/envs/test_metaworld_tasks.py",
    "--deselect=tests/envs/test_rollout.py::test_workers_of_a_program_with_torch_import_none",
)


def requirements() -> list[str]:
    """Return what the tests of `envs` need, with the ranges of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    core = [text for text in project["dependencies"] if text.startswith(NEEDED)]
    parts = [text for extra in ("sim", "data") for text in extras[extra] if not text.startswith("vla-stack")]
    return [*core, *parts, *(text for text in extras["dev"] if text.startswith(TESTING))]


def run_pair(folder: Path, pins: tuple[str, ...]) -> str:
    """Return the versions and the outcome of one pair."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements(), *pins], check=True)
    show = "from importlib.metadata import version as v; print(*(f'{n} {v(n)}' for n in ('mujoco', 'mink')))"
    versions = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True).stdout.strip()
    options = "addopts=-m 'not slow' --jaxtyping-packages=vla,policies,envs,beartype.beartype"
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", "-o", options, "--tb=short", *TESTS]
    tests = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    failed = [line for line in tests.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "\n".join([f"{versions}: {tests.stdout.splitlines()[-1].strip('= ')}", *failed])


def main(folder: Path) -> None:
    """Run all pairs."""
    for name, pins in PAIRS.items():
        print(f"{name}: {run_pair(folder / name, pins)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
