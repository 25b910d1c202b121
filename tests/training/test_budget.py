"""Budgets: samples end a run, a cap in minutes ends it early and says so, and what is spent is refused."""

from pathlib import Path

import pytest
from training_fixtures import train_for

from experiments.train import shortfall
from vla.files import write_manifest
from vla.model.checkpoint import CheckpointError, list_checkpoints, read_state
from vla.training.checkpoint import load_training
from vla.training.metrics import read_metrics
from vla.training.settings import FINISHED, OUT_OF_TIME, BudgetSpent, TrainerSettings

SOON = 1e-6  # minutes: over before the second step


def test_a_run_ends_with_the_step_that_reaches_its_samples(tmp_path: Path) -> None:
    result = train_for(tmp_path / "run", tmp_path, steps=3, num_samples=20)  # 8 in a step
    assert (result.step, result.num_samples, result.end) == (3, 24, FINISHED)
    assert shortfall(tmp_path / "run", budget=20) is None


def test_a_cap_ends_a_run_early_says_so_and_a_larger_one_continues_it_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capped = train_for(tmp_path / "parts", tmp_path, steps=4, max_minutes=SOON)
    assert (capped.step, capped.end) == (1, OUT_OF_TIME)
    printed = capsys.readouterr().err
    assert "after 8 of 32 samples" in printed
    assert "does not hold for it" in printed
    assert "trainer.max_minutes=null" in printed
    missing = shortfall(tmp_path / "parts", budget=32)
    assert missing is not None
    assert "8 of 32 samples" in missing
    with pytest.raises(BudgetSpent, match=r"trainer\.max_minutes=1e-06.*null"):
        train_for(tmp_path / "parts", tmp_path, steps=4, max_minutes=SOON)
    finished = train_for(tmp_path / "parts", tmp_path, steps=4)
    assert finished.end == FINISHED
    train_for(tmp_path / "whole", tmp_path, steps=4)
    whole, parts = (load_training(list_checkpoints(tmp_path / run)[-1])[0] for run in ("whole", "parts"))
    assert all((whole[name] == parts[name]).all() for name in whole)


def test_a_smaller_budget_than_was_trained_is_refused_and_an_equal_one_does_nothing(tmp_path: Path) -> None:
    train_for(tmp_path / "run", tmp_path, steps=3)
    with pytest.raises(BudgetSpent, match=r"trainer\.num_samples=16, .*trained on 24 already"):
        train_for(tmp_path / "run", tmp_path, steps=2)
    again = train_for(tmp_path / "run", tmp_path, steps=3, max_minutes=SOON)
    assert (again.step, again.end) == (3, FINISHED)


def test_a_checkpoint_that_did_not_count_samples_is_refused(tmp_path: Path) -> None:
    train_for(tmp_path / "run", tmp_path, steps=2, now=1)
    state = list_checkpoints(tmp_path / "run")[-1] / "state.json"
    state.write_text(state.read_text().replace('"settings"', '"unknown"'))
    write_manifest(state.parent, {})
    with pytest.raises(CheckpointError, match="older version"):
        train_for(tmp_path / "run", tmp_path, steps=2)


def test_type_and_threads_stand_in_the_checkpoint_and_a_resumed_run_keeps_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choose = {"num_threads": None, "precision": "bf16"}
    train_for(tmp_path / "run", tmp_path, steps=20, now=12, **choose)
    state = read_state(list_checkpoints(tmp_path / "run")[-1])
    assert state["precision"] == "bf16"
    assert state["num_threads"] >= 1
    assert capsys.readouterr().err.count("a step takes, by threads") <= 1
    train_for(tmp_path / "run", tmp_path, steps=20, now=2, num_threads=None, precision="auto")
    printed = capsys.readouterr().err
    assert "bf16, as this run began" in printed
    assert "by threads" not in printed  # nothing was compared again
    assert read_state(list_checkpoints(tmp_path / "run")[-1])["num_threads"] == state["num_threads"]


def test_the_rest_is_forecast_after_twenty_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_for(tmp_path / "run", tmp_path, steps=25, log_every_steps=8)
    printed = capsys.readouterr().err
    assert "min of training left: 5 steps at" in printed
    assert "seconds per step: data" in printed
    row = next(row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["step"] == 16)
    assert row["num_samples"] == 128
    assert {f"ms_per_step/{name}" for name in ("data", "forward", "backward", "optimizer")} <= row.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": -1}, r"trainer\.num_samples is -1; it must be an integer in \[1, "),
        ({"num_samples": 7}, r"trainer\.num_samples is 7, less than the 8 of one step"),
        ({"max_minutes": 0.0}, r"trainer\.max_minutes is 0\.0; it must be a number in \(0, "),
        ({"max_minutes": float("nan")}, r"trainer\.max_minutes is nan"),
        ({"num_threads": 0}, r"trainer\.num_threads is 0; it must be an integer in \[1, "),
    ],
)
def test_impossible_budgets_are_named(changes: dict[str, float], message: str) -> None:
    settings = {"num_samples": 80, "batch_size": 8, "learning_rate": 1e-3, **changes}
    with pytest.raises(ValueError, match=message):
        TrainerSettings(**settings)  # type: ignore[arg-type]
