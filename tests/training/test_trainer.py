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

from policies.vla_policy import VLAPolicy, load_policy_checkpoint
from vla.data.demonstrations import BALANCES, DemonstrationSource
from vla.data.sampler import EpochSampler
from vla.model.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    read_model_json,
    resolve_checkpoint,
)
from vla.processing.processor import Processor
from vla.training.batches import BatchMaker, Prefetcher
from vla.training.checkpoint import load_training
from vla.training.metrics import read_metrics
from vla.training.settings import NonFiniteLossError, TrainerSettings
from vla.training.step import shares_of_terms
from vla.training.trainer import Trainer

LAST_WEIGHT = {  # of each head: small or zero at first, so that gradients before it would be too
    "parallel": "bin_logits.residual.weight",
    "autoregressive": "bin_logits.residual.weight",
    "fast": "logits_out.weight",
    "flow": "velocity_out.weight",
}


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
    averaged = [load_checkpoint(tmp_path / run).checkpoint_id for run in ("whole", "parts")]
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
    train_for(tmp_path / "run", tmp_path, steps=150, learning_rate=3e-3, log_every_steps=1)
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]  # the rest is the width of the targets


@pytest.mark.parametrize("max_committed", [0, 2])
@pytest.mark.parametrize(
    ("head", "codec"),
    [("parallel", "uniform"), ("autoregressive", "quantile"), ("fast", "fast"), ("flow", "continuous")],
)
def test_batches_that_are_added_up_give_the_gradient_of_one_large_batch(
    tmp_path: Path, head: str, codec: str, max_committed: int
) -> None:
    source = DemonstrationSource(make_windows(tmp_path))
    processor = make_processor(source, codec=codec, max_committed=max_committed)
    model = tiny_model(processor, head=head, auxiliaries={"later": {"kind": "later_states", "offsets": [2]}})
    torch.nn.init.normal_(model.head.get_parameter(LAST_WEIGHT[head]), std=0.1)
    whole = BatchMaker(
        source,
        processor=processor,
        requests=model.requests(),
        noise=model.noise_specs(training=True),
        seed=0,
    ).make(np.array([0, 1, 2, 3, 5, 6, 13, 20, 4, 12, 27, 34]), number=0)
    parts = [{name: tensor[start : start + 3] for name, tensor in whole.items()} for start in (0, 3, 6, 9)]
    assert len({float(model.num_terms(part)["loss"]) for part in parts}) > 1, "else nothing is tested"
    model.loss(whole)["loss"].backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for part, share in zip(parts, shares_of_terms(model, parts, device=torch.device("cpu")), strict=True):
        model.loss(part, share)["loss"].backward()
    for name, gradient in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_run_in_small_batches_equals_one_in_large_ones(tmp_path: Path) -> None:
    for name, sizes in {"large": {"batch_size": 16}, "small": {"batch_size": 4, "accumulate": 4}}.items():
        train_for(tmp_path / name, tmp_path, steps=4, log_every_steps=1, augmentation=None, **sizes)
    large, small = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("large", "small"))
    for key in ("loss", "token_accuracy", "gradient_norm", "validation/loss", "validation/error/x [m]"):
        values = [[row[key] for row in rows if key in row] for rows in (large, small)]
        assert values[0]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-4, err_msg=key)


def test_a_run_without_held_out_episodes_trains_and_says_so(tmp_path: Path, capsys) -> None:
    result = train_for(tmp_path / "run", tmp_path, steps=4, now=2, validation_share=0.0)
    assert result.metrics == {}
    assert "no episode is held out" in capsys.readouterr().err
    assert train_for(tmp_path / "run", tmp_path, steps=4, validation_share=0.0).end == "finished"
    assert len(load_policy_checkpoint(tmp_path / "run").golden) == 16, (
        "exports are tried on moments of training"
    )


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
            tmp_path / "run", tmp_path, steps=50, learning_rate=100.0, max_grad_norm=1e9, resume="override"
        )
    assert load_training(resolve_checkpoint(tmp_path / "run"))[1]["step"] == 2


def test_another_model_is_refused(tmp_path: Path) -> None:
    train_for(tmp_path / "run", tmp_path, steps=4, now=1)
    with pytest.raises(CheckpointError, match=r"another model.*backbone"):
        train_for(tmp_path / "run", tmp_path, steps=4, width=48)


def test_validation_speaks_in_units(tmp_path: Path) -> None:
    result = train_for(tmp_path / "run", tmp_path, steps=1)
    assert math.isfinite(result.metrics["validation/error/x [m]"])
    assert 0.0 <= result.metrics["validation/token_accuracy"] <= 1.0


def test_a_loaded_checkpoint_answers_the_same(tmp_path: Path) -> None:
    train_for(tmp_path / "run", tmp_path, steps=2)
    policies = []
    for path in (tmp_path / "run", resolve_checkpoint(tmp_path / "run")):
        loaded = load_policy_checkpoint(path)
        policies.append(VLAPolicy(model=loaded.model, processor=loaded.processor))
    first, second = (policy.answer(loaded.golden) for policy in policies)
    np.testing.assert_array_equal(first["bins"], second["bins"])


def test_a_checkpoint_keeps_held_out_moments_with_their_history(tmp_path: Path) -> None:
    result = train_for(tmp_path / "run", tmp_path, steps=1)
    golden = load_policy_checkpoint(result.checkpoint).golden
    assert len(golden) == 7, "one held-out episode of seven frames; sixteen where there are more"
    validation = make_windows(tmp_path).split_by_episode(validation_share=0.2, seed=0)[1]
    wanted = DemonstrationSource(validation).observations(np.arange(7))
    for one, other in zip(golden, wanted, strict=True):
        np.testing.assert_array_equal(one.images["front"], other.images["front"])
        assert one.instruction == other.instruction


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        resolve_checkpoint(tmp_path / "nowhere")


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"trainer\.num_samples"):
        TrainerSettings(num_samples=0, batch_size=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"trainer\.learning_rate"):
        TrainerSettings(num_samples=1, batch_size=1, learning_rate=0.0)


def batch_maker(source: DemonstrationSource, processor: Processor) -> BatchMaker:
    return BatchMaker(source, processor=processor, requests={}, noise={}, seed=0)


def test_committed_steps_are_drawn_by_batch_number_and_carry_no_loss(tmp_path: Path) -> None:
    source = DemonstrationSource(make_windows(tmp_path))
    processor = make_processor(source, max_committed=2)
    maker, model = batch_maker(source, processor), tiny_model(processor)
    batch = maker.make(np.arange(40), number=3)
    num_committed = (batch["committed"][..., 0] >= 0).sum(dim=1)
    assert set(num_committed.tolist()) == {0, 1, 2}
    assert torch.equal(batch["committed"], maker.make(np.arange(40), number=3)["committed"])
    with torch.no_grad():
        before = model.loss(batch)["loss"]
        batch["bins"] = torch.where(batch["committed"] >= 0, 0, batch["bins"])
        torch.testing.assert_close(model.loss(batch)["loss"], before)
        batch["bins"] = torch.zeros_like(batch["bins"])
        assert model.loss(batch)["loss"] != before


def test_tasks_and_recordings_are_balanced_only_if_asked(tmp_path: Path) -> None:
    windows = make_windows(tmp_path)
    windows._episode_task = np.array([0, 0, 0, 0, 0, 1])
    windows._episode_dataset = np.array([0, 0, 0, 0, 1, 1])
    processor = make_processor(DemonstrationSource(windows))
    drawn = {}
    for balance in BALANCES:
        source = DemonstrationSource(windows, balance=balance)
        settings = TrainerSettings(
            num_samples=32,
            batch_size=32,
            learning_rate=1e-3,
            compile="off",
            num_threads=1,
        )
        trainer = Trainer(
            settings,
            model=tiny_model(processor),
            processor=processor,
            train=source,
            validation=source,
            run_dir=tmp_path / balance,
            provenance={},
        )
        order = trainer.prefetcher._sampler._order
        trainer.close()
        task, dataset = windows.task_index[order] == 1, windows.dataset_index[order] == 1
        drawn[balance] = {"task": int(task.sum()), "dataset": int(dataset.sum())}
    assert drawn["none"] == {"task": 7, "dataset": 14}  # of 42
    assert drawn["tasks"]["task"] == 21
    assert drawn["datasets"]["dataset"] == 21
    assert drawn["both"] == {"task": 14, "dataset": 28}  # of three pairs


class _OutOfMemory(BatchMaker):
    def make(self, indices, *, number):
        raise MemoryError("no room for a batch")


def test_whatever_stops_the_batches_stops_the_training(tmp_path: Path) -> None:
    source = DemonstrationSource(make_windows(tmp_path))
    maker = _OutOfMemory(source, processor=make_processor(source), requests={}, noise={}, seed=0)
    sampler = EpochSampler(num_windows=source.num_samples, batch_size=2, seed=0)
    prefetcher = Prefetcher(maker=maker, sampler=sampler, first_number=0)
    with pytest.raises(MemoryError, match="no room"):
        next(iter(prefetcher))
    prefetcher.close()


@pytest.mark.parametrize("max_committed", [0, 2])
@pytest.mark.parametrize(
    ("head", "codec"), [("autoregressive", "quantile"), ("fast", "fast"), ("flow", "continuous")]
)
def test_every_head_trains_saves_and_resumes(
    tmp_path: Path, head: str, codec: str, max_committed: int
) -> None:
    options = {"head": head, "codec": codec, "max_committed": max_committed, "optimizer": "muon"}
    train_for(tmp_path / "whole", tmp_path, steps=3, **options)
    train_for(tmp_path / "parts", tmp_path, steps=3, now=1, **options)
    result = train_for(tmp_path / "parts", tmp_path, steps=3, **options)
    assert result.end == "finished"
    assert math.isfinite(result.metrics["validation/error/x [m]"])
    runs = [load_checkpoint(tmp_path / run) for run in ("whole", "parts")]
    assert runs[0].model.config.head["kind"] == head
    assert runs[0].checkpoint_id == runs[1].checkpoint_id


@pytest.mark.parametrize(("head", "codec"), [("fast", "fast"), ("flow", "continuous")])
def test_every_head_learns_a_few_windows_by_heart(tmp_path: Path, head: str, codec: str) -> None:
    result = train_for(
        tmp_path / "run", tmp_path, steps=150, learning_rate=3e-3, log_every_steps=1, head=head, codec=codec
    )
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:5]), result.metrics


def test_checkpoints_of_before_parts_had_names_are_refused(tmp_path: Path) -> None:
    result = train_for(tmp_path / "run", tmp_path, steps=1)
    (result.checkpoint / "model.json").write_text('{"width": 32, "decoding": "parallel"}')
    with pytest.raises(CheckpointError, match="older version"):
        read_model_json(result.checkpoint)


def test_what_no_source_has_is_refused_by_name(tmp_path: Path) -> None:
    source = DemonstrationSource(make_windows(tmp_path))
    with pytest.raises(ValueError, match=r"learns 'weather'.*'later_states'"):
        source.batch(np.arange(2), processor=make_processor(source), requests={"weather": None}, seed=None)
