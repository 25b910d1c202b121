"""The numbers that are accepted at the ends of their ranges, in real programs. Takes an hour on two cores.

    python -m pytest -m slow tests/experiments/test_numbers_run.py

Each run ends by itself or works on what it was asked for, in little memory, and heeds SIGTERM; nothing ends
with a traceback.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_numbers_and_keys import attempts  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[2]
MOST_BYTES = 4 << 30
RUN_S, END_S = 40.0, 30.0
TINY = [
    *("model.backbone.width=32", "model.backbone.depth=1", "model.backbone.num_heads=2"),
    *("model.backbone.stem_channels=[8,8]", "model.backbone.patch_size=16", "trainer.batch_size=4"),
    *("trainer.num_samples=16", "trainer.compile=off", "trainer.num_threads=1"),
    "evaluation.instruction_modes=[]",
]
SCENE = ["tasks=[reach]", "env.image_size=32", "env.level=none"]
LIVE = ["env.image_size=32", "env.level=none", "num_threads=1"]
SEEDS = ("seed", "first_seed")  # those at the end of the range belong to nobody


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record, train and export something small."""
    root = tmp_path_factory.mktemp("made")
    for command in (
        ["collect", f"dataset={root}/data", *SCENE, "collect.episodes_per_task=2", f"out_dir={root}/collect"],
        ["train", f"dataset={root}/data", f"data.cache_dir={root}/cache", *TINY, f"out_dir={root}/train"],
        ["export", f"checkpoint={root}/train", f"bundle={root}/bundle", f"out_dir={root}/export"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{command[0]}", *command[1:]],
            **{"cwd": ROOT, "capture_output": True, "text": True, "check": False, "timeout": 600},
        )
        assert done.returncode == 0, done.stderr
    return root


def arguments(program: str, made: Path, fresh: Path) -> list[str]:
    """Return what makes a program quick."""
    data, bundle = f"dataset={made}/data", f"bundle={made}/bundle"
    return [
        f"out_dir={fresh}/out",
        *{
            "collect": [f"dataset={fresh}/data", *SCENE, "collect.episodes_per_task=1"],
            "check": [data],
            "train": [data, f"data.cache_dir={made}/cache", *SCENE, *TINY],
            "evaluate": [
                *(f"path={made}/bundle", "policy=bundle", *SCENE, "evaluation.episodes_per_task=1"),
                *("env.max_steps=20", "evaluation.instruction_modes=[original]", "evaluation.num_workers=1"),
            ],
            "serve": [bundle, "port=0", "num_threads=1"],
            "control": [bundle, *LIVE, "task=reach", "max_seconds=2"],
            "delay_table": [
                *(bundle, *LIVE, "task=reach", "env.max_steps=20", "episodes=1", "num_workers=1"),
                *("delays_ms=[0.0]", "schedules=[sync]", "first_seed=0"),
            ],
        }[program],
    ]


def memory_of(process: subprocess.Popen[str]) -> int:
    """Return the resident memory [bytes] of a process and its children."""
    total, waiting = 0, [process.pid]
    while waiting:
        folder = Path("/proc") / str(waiting.pop())
        try:
            total += int((folder / "statm").read_text().split()[1]) * 4096
            waiting += [int(pid) for pid in (folder / "task" / folder.name / "children").read_text().split()]
        except (OSError, IndexError):
            continue
    return total


def outcome(program: str, given: list[str]) -> str | None:
    """Run a program; return what was wrong with how it went, if anything was."""
    command = [sys.executable, "-m", f"experiments.{program}", *given]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    began, wrong = time.monotonic(), None
    while process.poll() is None and time.monotonic() - began < RUN_S and wrong is None:
        if memory_of(process) > MOST_BYTES:
            wrong = "takes gigabytes"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    try:
        _, errors = process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return wrong or "does not heed SIGTERM"
    if "Traceback (most recent call last)" in errors or process.returncode < 0:
        return f"code {process.returncode}: {errors[-1500:]}"
    return wrong


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "program", ["collect", "check", "train", "evaluate", "serve", "control", "delay_table"]
)
def test_numbers_at_the_ends_of_their_ranges_run(program, made, attempts, tmp_path):  # noqa: F811
    seen, wrong = set(), []
    for number, one in enumerate(attempts):
        is_accepted = one.message is None and one.kind in ("value", "bound") and one.command is not None
        what = (one.key, str(one.command))
        is_seed = one.key.rpartition(".")[2] in SEEDS and one.given != "0"
        if one.program != program or not is_accepted or is_seed or what in seen:
            continue
        seen.add(what)
        given = [*arguments(program, made, tmp_path / str(number)), *(one.command or [])]
        went_wrong = outcome(program, given)
        print(f"{program} {' '.join(one.command or [])}: {went_wrong or 'well'}", flush=True)
        if went_wrong is not None:
            wrong.append(f"{program} {' '.join(given)}\n{went_wrong}")
    assert seen
    assert not wrong, "\n\n".join(wrong)
