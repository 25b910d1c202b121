"""The best checkpoint by success on development seeds: when it is measured, what is kept, how it resumes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from training_fixtures import train_for

from vla.model.checkpoint import best_directory, load_checkpoint, read_state, which_checkpoint
from vla.model.vla import VLAModel
from vla.training.best import DEVELOPMENT_SUCCESS, SUCCESS_HIGH, SUCCESS_LOW
from vla.training.metrics import read_metrics
from vla.training.settings import TrainerSettings


class Played:
    """Stands in for rollouts: gives rates in turn and remembers the weights that it was given."""

    def __init__(self, *rates: float) -> None:
        self.rates, self.weights = list(rates), []

    def __call__(self, model: VLAModel, *, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        assert not should_stop()
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
        rate = self.rates.pop(0)
        return {DEVELOPMENT_SUCCESS: rate, SUCCESS_LOW: rate / 2, SUCCESS_HIGH: 1.0}


BY_SUCCESS = {"best_by": "success", "rollout_every_samples": 16}  # two steps of the fixtures


def test_the_most_successful_checkpoint_is_kept_also_over_a_resumption(tmp_path: Path) -> None:
    run_dir, played = tmp_path / "run", Played(0.2, 0.8)
    train_for(run_dir, tmp_path, steps=7, now=5, roll_out=played, **BY_SUCCESS)
    assert not played.rates  # after the steps 2 and 4
    later = Played(0.8, 0.4)  # after 6, and 7, the last
    train_for(run_dir, tmp_path, steps=7, roll_out=later, **BY_SUCCESS)
    best = best_directory(run_dir)
    assert read_state(best)["best"] == {"step": 6, "by": "success", "success": 0.8}
    kept = dict(load_checkpoint(best).model.named_parameters())
    assert all(later.weights[0][name].equal(value) for name, value in kept.items())
    rows = [row for row in read_metrics(run_dir / "metrics.jsonl") if DEVELOPMENT_SUCCESS in row]
    assert [(row["step"], row[DEVELOPMENT_SUCCESS]) for row in rows] == [
        (2, 0.2),
        (4, 0.8),
        (6, 0.8),
        (7, 0.4),
    ]
    assert which_checkpoint(best).endswith("step 6, the one with the most success on development seeds")
    train_for(run_dir, tmp_path, steps=7, roll_out=Played(), **BY_SUCCESS)  # finished: measured no more


def test_measuring_success_does_not_change_what_is_learned(tmp_path: Path) -> None:
    train_for(tmp_path / "plain", tmp_path, steps=4)
    train_for(tmp_path / "played", tmp_path, steps=4, roll_out=Played(0.5, 0.5), **BY_SUCCESS)
    one, other = (load_checkpoint(tmp_path / run).checkpoint_id for run in ("plain", "played"))
    assert one == other


def test_with_best_by_loss_success_is_logged_and_the_best_goes_by_loss(tmp_path: Path) -> None:
    train_for(tmp_path / "run", tmp_path, steps=2, roll_out=Played(1.0), rollout_every_samples=16)
    assert read_state(best_directory(tmp_path / "run"))["best"]["by"] == "loss"


def test_an_interruption_while_success_is_measured_ends_the_run_and_it_is_measured_later(
    tmp_path: Path,
) -> None:
    def told_to_end(model: VLAModel, *, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        os.kill(os.getpid(), signal.SIGTERM)
        return None if should_stop() else {}

    result = train_for(tmp_path / "run", tmp_path, steps=2, roll_out=told_to_end, **BY_SUCCESS)
    assert (result.end, result.signal) == ("interrupted", signal.SIGTERM)
    result = train_for(tmp_path / "run", tmp_path, steps=2, roll_out=Played(0.5), **BY_SUCCESS)
    assert result.end == "finished"
    assert read_state(best_directory(tmp_path / "run"))["best"]["success"] == 0.5


def test_by_success_without_measuring_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"best_by is 'success', but trainer\.rollout_every_samples is null"):
        TrainerSettings(num_samples=8, batch_size=8, learning_rate=1e-3, best_by="success")
