"""Numbers of training and held-out ones are of the same things; the best checkpoint is kept."""

from pathlib import Path

import numpy as np
import pytest
from training_fixtures import make_processor, make_windows, tiny_model, train_for

from vla.data.demonstrations import DemonstrationSource
from vla.model.checkpoint import (
    best_directory,
    list_checkpoints,
    load_checkpoint,
    read_state,
    resolve_checkpoint,
    which_checkpoint,
)
from vla.training import trainer
from vla.training.metrics import read_metrics
from vla.training.validation import validation_batches

LATER = {"later": {"kind": "later_states", "offsets": [1, 2], "weight": 3.0}}


def test_every_loss_of_training_has_its_held_out_one(tmp_path: Path) -> None:
    train_for(tmp_path / "run", tmp_path, steps=2, auxiliaries=LATER, log_every_steps=1)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    keys = {key for row in rows for key in row}
    losses = {key for key in keys if key.split("/")[0] in ("loss", "action_loss")}
    assert losses == {"loss", "action_loss", "loss/later"}
    assert {f"validation/{key}" for key in losses} <= keys
    for row, prefix in ((rows[0], ""), (rows[-1], "validation/")):
        whole = row[f"{prefix}action_loss"] + 3.0 * row[f"{prefix}loss/later"]
        assert row[f"{prefix}loss"] == pytest.approx(whole, rel=1e-5)


def test_validation_is_on_the_same_moments_whatever_the_seed(tmp_path: Path) -> None:
    source = DemonstrationSource(make_windows(tmp_path))
    processor = make_processor(source)
    model = tiny_model(processor)
    one, other = (
        validation_batches(model, processor, source, batch_size=8, most=2)[0]["state"].numpy()
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)
    results = [
        train_for(tmp_path / str(seed), tmp_path, steps=1, now=0, seed=seed).metrics for seed in (0, 1)
    ]
    assert results[0] == results[1]  # before the first step the weights are the same


def open_source(tmp_path: Path, **settings: int) -> tuple[DemonstrationSource, DemonstrationSource]:
    make_windows(tmp_path)
    return DemonstrationSource.open(
        dataset=str(tmp_path / "dataset"),
        action_horizon=3,
        frame_offsets=(0,),
        robot_spec=None,
        cache_dir=str(tmp_path / "cache"),
        validation_share=0.3,
        **settings,
    )


def test_held_out_episodes_follow_the_split_seed_alone(tmp_path: Path) -> None:
    held_out = [tuple(open_source(tmp_path, split_seed=seed)[1].fingerprints()) for seed in range(6)]
    assert open_source(tmp_path)[1].fingerprints() == list(held_out[0])
    assert len(set(held_out)) > 1
    assert open_source(tmp_path, split_seed=4)[0].to_json()["split_seed"] == 4


def test_the_best_checkpoint_is_kept_next_to_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(trainer, "validate", lambda *_, **__: {"validation/action_loss": next(losses)})
    run_dir = tmp_path / "run"
    train_for(run_dir, tmp_path, steps=3, now=2, validate_every_steps=1)
    train_for(run_dir, tmp_path, steps=3, validate_every_steps=1)  # resumed: 2.0 is no new best
    best = best_directory(run_dir)
    assert read_state(best)["best"] == {"step": 2, "by": "loss", "loss": 1.0}
    newest = resolve_checkpoint(run_dir)
    assert newest == list_checkpoints(run_dir)[-1]
    assert read_state(newest)["step"] == 3
    assert (
        which_checkpoint(newest)
        == f"{newest}, step 3; the one with the least held-out loss is {best}, step 2"
    )
    assert load_checkpoint(best).path == best
    assert which_checkpoint(best) == f"{best}, step 2, the one with the least held-out loss"
    second = list_checkpoints(run_dir)[0]
    assert which_checkpoint(second).endswith("which has the least held-out loss too")


def test_who_wants_no_best_checkpoint_gets_none(tmp_path: Path) -> None:
    train_for(tmp_path / "run", tmp_path, steps=1, keep_best=False)
    assert not best_directory(tmp_path / "run").exists()
