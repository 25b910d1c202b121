"""Two processes under torchrun train as one process does on twice the batch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import make_windows, train_for

from vla.model.checkpoint import resolve_checkpoint
from vla.training.checkpoint import load_training
from vla.training.distributed import local_device
from vla.training.metrics import read_metrics

TESTS = Path(__file__).parent
SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from training_fixtures import train_for
train_for(Path({run!r}), Path({data!r}), steps=3, batch_size=4, augmentation=None, log_every_steps=1)
"""


@pytest.mark.timeout(600)
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    make_windows(tmp_path)  # recorded and cached before two processes look at it
    train_for(tmp_path / "one", tmp_path, steps=3, batch_size=8, augmentation=None, log_every_steps=1)
    script = tmp_path / "train.py"
    script.write_text(
        SCRIPT.format(
            tests=str(TESTS), root=str(TESTS.parents[1]), run=str(tmp_path / "two"), data=str(tmp_path)
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    done = subprocess.run(
        [*command, "--standalone", str(script)], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        [row["loss"] for row in read_metrics(tmp_path / run / "metrics.jsonl") if "loss" in row]
        for run in ("one", "two")
    )
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert load_training(resolve_checkpoint(tmp_path / "two"))[1]["sampler"]["position"] == 24


def test_a_missing_gpu_is_an_error_and_no_silent_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=r"trainer\.device=cpu"):
        local_device("cuda")


TINY = [
    "tasks=[reach]",
    "record=true",
    "collect.episodes_per_task=3",
    "model.backbone.width=32",
    "model.backbone.depth=1",
    "model.backbone.num_heads=2",
    "model.backbone.stem_channels=[8,8]",
    "trainer.batch_size=4",
    "trainer.accumulate=2",
    "trainer.num_samples=96",
    "trainer.log_every_steps=1",
    "evaluation.episodes_per_task=1",
    "evaluation.videos_per_task=0",
]


@pytest.mark.timeout(900)
def test_the_program_records_trains_and_evaluates_once_under_torchrun(tmp_path: Path) -> None:
    arguments = [*TINY, f"dataset={tmp_path / 'dataset'}", f"data.cache_dir={tmp_path / 'cache'}"]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"),
        *("-m", "experiments.train", f"out_dir={tmp_path / 'run'}", *arguments),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=800, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    for once in ("3 episodes, ", "training on ", "checkpoint ", "mean over tasks", "results in "):
        assert done.stdout.count(f"\n{once}") + done.stdout.startswith(once) == 1, (once, done.stdout)
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert [row["num_samples"] for row in rows] == [16, 32, 48, 64, 80, 96]
    _, state = load_training(resolve_checkpoint(tmp_path / "run"))
    assert state["settings"]["number of processes"] == 2


INTERRUPT = """
import os, signal, sys, threading, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from training_fixtures import train_for
metrics = Path({run!r}) / "metrics.jsonl"


def interrupt_once_trained():
    while not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


if os.environ["RANK"] == "1":
    threading.Thread(target=interrupt_once_trained, daemon=True).start()
result = train_for(Path({run!r}), Path({data!r}), steps=10**7, log_every_steps=1, batch_size=4)
print(f"{{result.end}} {{result.step}} {{result.signal == signal.SIGINT}};", flush=True)
"""


@pytest.mark.timeout(600)
def test_a_signal_to_one_process_ends_all_of_them_at_the_same_step(tmp_path: Path) -> None:
    make_windows(tmp_path)
    train_for(tmp_path / "warm", tmp_path, steps=1)
    script = tmp_path / "train.py"
    script.write_text(
        INTERRUPT.format(
            tests=str(TESTS), root=str(TESTS.parents[1]), run=str(tmp_path / "run"), data=str(tmp_path)
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = done.stdout.replace("\n", "").split(";")[:2]
    assert first == second
    assert first.startswith("interrupted ")
    assert first.endswith(" True")
