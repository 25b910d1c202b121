"""The trainer: it learns, resumes bit for bit even after being killed, and stops on a bad loss."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import make_processor, make_windows, tiny_model, train_for

from vla.data.sampler import EpochSampler
from vla.training.batches import BatchMaker, Prefetcher
from vla.training.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_policy_checkpoint,
    load_training,
    resolve_checkpoint,
)
from vla.training.losses import action_token_loss, bin_targets
from vla.training.metrics import read_metrics
from vla.training.settings import NonFiniteLossError, TrainerSettings
from vla.training.step import TrainStep
from vla.training.trainer import Trainer


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_steps_then_resume_to_four_equals_four_steps(tmp_path: Path, optimizer: str) -> None:
    train_for(tmp_path / "whole", tmp_path, steps=4, optimizer=optimizer)
    train_for(tmp_path / "parts", tmp_path, steps=4, now=2, optimizer=optimizer)
    train_for(tmp_path / "parts", tmp_path, steps=4, optimizer=optimizer)
    whole, whole_state = load_training(resolve_checkpoint(tmp_path / "whole"))
    parts, parts_state = load_training(resolve_checkpoint(tmp_path / "parts"))
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    assert whole_state["sampler"] == parts_state["sampler"]
    averaged = [load_policy_checkpoint(tmp_path / run).checkpoint_id for run in ("whole", "parts")]
    assert averaged[0] == averaged[1]


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    code = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from training_fixtures import train_for
        run, data = Path({str(tmp_path / "run")!r}), Path({str(tmp_path)!r})
        train_for(run, data, steps=100000, save_every_minutes=0.002)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 150
    while len(list_checkpoints(tmp_path / "run")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = load_training(resolve_checkpoint(tmp_path / "run"))[1]["step"]
    assert reached > 0
    result = train_for(tmp_path / "run", tmp_path, steps=100000, now=1)
    assert result.step == reached + 1
    steps = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert steps == sorted(steps)


def test_sigterm_ends_with_a_checkpoint(tmp_path: Path) -> None:
    code = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from training_fixtures import train_for
        run, data = Path({str(tmp_path / "run")!r}), Path({str(tmp_path)!r})
        result = train_for(run, data, steps=100000, log_every_steps=1)
        assert result.end == "interrupted"
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 150
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=120) == 0
    assert len(list_checkpoints(tmp_path / "run")) == 1


def test_it_learns_a_batch_by_heart(tmp_path: Path) -> None:
    train_for(
        tmp_path / "run", tmp_path, steps=150, learning_rate=3e-3, smoothing_bins=0.0, log_every_steps=1
    )
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]


def test_losses_are_the_golden_ones(tmp_path: Path) -> None:
    """Refactors must not move them. To renew: delete tests/golden/losses.json and run this test twice."""
    train_for(tmp_path / "run", tmp_path, steps=5, log_every_steps=1)
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    path = Path(__file__).parents[1] / "golden" / "losses.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([round(loss, 6) for loss in losses]) + "\n")
        pytest.fail(f"{path} did not exist and was written; look at it and run again")
    np.testing.assert_allclose(losses, json.loads(path.read_text()), rtol=2e-4)


def test_a_non_finite_loss_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    train_for(tmp_path / "run", tmp_path, steps=50, now=2)
    with pytest.raises(NonFiniteLossError, match=r"last good checkpoint is .*step_00000002"):
        train_for(
            tmp_path / "run", tmp_path, steps=50, learning_rate=1e30, max_grad_norm=1e30, resume="override"
        )
    assert load_training(resolve_checkpoint(tmp_path / "run"))[1]["step"] == 2


def test_another_model_is_refused(tmp_path: Path) -> None:
    train_for(tmp_path / "run", tmp_path, steps=4, now=1)
    with pytest.raises(CheckpointError, match=r"another model.*width"):
        train_for(tmp_path / "run", tmp_path, steps=4, width=48)


def test_validation_speaks_in_units(tmp_path: Path) -> None:
    result = train_for(tmp_path / "run", tmp_path, steps=1)
    assert math.isfinite(result.metrics["validation/error/x [m]"])
    assert 0.0 <= result.metrics["validation/token_accuracy"] <= 1.0


def test_a_loaded_policy_checkpoint_predicts_the_same(tmp_path: Path) -> None:
    train_for(tmp_path / "run", tmp_path, steps=2)
    loaded = load_policy_checkpoint(tmp_path / "run")
    again = load_policy_checkpoint(loaded.path)
    windows = make_windows(tmp_path)
    raw = windows.batch(np.arange(3))
    images = torch.from_numpy(raw["images"]).flatten(1, 2)
    text = torch.from_numpy(loaded.processor.encode_text(windows.instructions[:1])).expand(3, -1)
    state = torch.from_numpy(loaded.processor.encode_state(raw["state"]))
    bins = torch.from_numpy(loaded.processor.encode_actions(raw["action"]))
    torch.testing.assert_close(
        loaded.model(images, text, state, bins), again.model(images, text, state, bins), rtol=0, atol=0
    )


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        resolve_checkpoint(tmp_path / "nowhere")


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"trainer\.num_samples"):
        TrainerSettings(num_samples=0, batch_size=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"trainer\.learning_rate"):
        TrainerSettings(num_samples=1, batch_size=1, learning_rate=0.0)


def test_committed_steps_are_drawn_by_batch_number_and_carry_no_loss(tmp_path: Path) -> None:
    result = train_for(tmp_path / "run", tmp_path, steps=2, max_committed=2)
    loaded = load_policy_checkpoint(result.checkpoint)
    assert loaded.model.sizes.max_committed == loaded.processor.max_committed == 2
    maker = BatchMaker(windows=make_windows(tmp_path), processor=loaded.processor, augmentation=None, seed=0)
    batch = maker.make(np.arange(40), number=3)
    assert set(batch.num_committed.tolist()) == {0, 1, 2}
    assert torch.equal(batch.num_committed, maker.make(np.arange(40), number=3).num_committed)
    targets = bin_targets(bins_per_dim=[16, 16], num_bins=16, smoothing_bins=0.0)
    step = TrainStep(
        model=loaded.model,
        targets=targets,
        future_weight=0.0,
        precision=torch.float32,
        device=torch.device("cpu"),
    )
    arrays = [batch.images, batch.text_ids, batch.state, batch.bins, batch.valid, batch.future]
    loss, _ = step(*arrays, torch.full((40,), 2))
    logits, _ = loaded.model.forward_with_future(*arrays[:4], num_committed=torch.full((40,), 2))
    wanted, _ = action_token_loss(logits[:, 2:], batch.bins[:, 2:], batch.valid[:, 2:], targets)
    torch.testing.assert_close(loss, wanted)


def test_tasks_are_balanced_only_if_asked(tmp_path: Path) -> None:
    windows = make_windows(tmp_path)
    windows._episode_task = np.array([0, 0, 0, 0, 0, 1])
    processor = make_processor(windows)
    drawn = {}
    for balance in (False, True):
        settings = TrainerSettings(
            num_samples=32,
            batch_size=32,
            learning_rate=1e-3,
            compile="off",
            num_threads=1,
            balance_tasks=balance,
        )
        trainer = Trainer(
            settings,
            model=tiny_model(processor),
            processor=processor,
            train=windows,
            validation=windows,
            run_dir=tmp_path / str(balance),
            provenance={},
        )
        order = trainer.prefetcher._sampler._order
        trainer.close()
        drawn[balance] = int((windows.task_index[order] == 1).sum())
    assert drawn == {False: 7, True: 21}


class _OutOfMemory(BatchMaker):
    def make(self, indices, *, number):
        raise MemoryError("no room for a batch")


def test_whatever_stops_the_batches_stops_the_training(tmp_path: Path) -> None:
    windows = make_windows(tmp_path)
    maker = _OutOfMemory(windows=windows, processor=make_processor(windows), augmentation=None, seed=0)
    sampler = EpochSampler(num_windows=windows.num_windows, batch_size=2, seed=0)
    prefetcher = Prefetcher(maker=maker, sampler=sampler, first_number=0)
    with pytest.raises(MemoryError, match="no room"):
        next(iter(prefetcher))
    prefetcher.close()


def test_autoregressive_models_train_too(tmp_path: Path) -> None:
    windows = make_windows(tmp_path)
    model = tiny_model(make_processor(windows), decoding="autoregressive")
    assert model.decoding == "autoregressive"
    result = train_for(tmp_path / "run", tmp_path, steps=2, decoding="autoregressive")
    assert result.end == "finished"
