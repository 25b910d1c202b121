"""Two processes under torchrun train as one process does on twice the batch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import make_windows, train_for

from vla.training.checkpoint import load_training, resolve_checkpoint
from vla.training.distributed import local_device
from vla.training.metrics import read_metrics

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from training_fixtures import train_for
train_for(Path({run!r}), Path({data!r}), steps=3, batch_size=4, augmentation=None, log_every_steps=1)
"""


@pytest.mark.timeout(600)
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    make_windows(tmp_path)  # recorded and cached before two processes look at it
    train_for(tmp_path / "one", tmp_path, steps=3, batch_size=8, augmentation=None, log_every_steps=1)
    script = tmp_path / "train.py"
    script.write_text(
        SCRIPT.format(tests=str(Path(__file__).parent), run=str(tmp_path / "two"), data=str(tmp_path))
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
    # Not equal to the last bit: each process takes the mean over its own valid steps.
    np.testing.assert_allclose(two, one, rtol=0.01)
    assert load_training(resolve_checkpoint(tmp_path / "two"))[1]["sampler"]["position"] == 24


def test_a_missing_gpu_is_an_error_and_no_silent_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=r"trainer\.device=cpu"):
        local_device("cuda")
