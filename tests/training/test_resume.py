"""A resumed run has the settings that it began with, or is told what to change them to."""

from pathlib import Path

import pytest
import torch
from training_fixtures import make_processor, make_windows, tiny_model, train_for

from vla.data.demonstrations import DemonstrationSource
from vla.model.checkpoint import CheckpointError, list_checkpoints
from vla.training.checkpoint import load_training, pack_training, unpack_training
from vla.training.metrics import read_metrics
from vla.training.settings import TrainerSettings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 4}, r"trainer\.batch_size=4 \(was 8\)"),
        ({"ema_decay": 0.5}, r"trainer\.ema_decay=0\.5 \(was 0\.998\)"),
        ({"optimizer": "muon"}, r"trainer\.optimizer=muon \(was adamw\)"),
        ({"augmentation": None}, r"data\.augmentation=None \(was \{.*max_shift"),
    ],
)
def test_other_settings_are_refused_by_name_unless_asked_for(
    tmp_path: Path, changes: dict, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train_for(tmp_path / "run", tmp_path, steps=4, now=1)
    with pytest.raises(CheckpointError, match=named + r".*trainer\.resume=override"):
        train_for(tmp_path / "run", tmp_path, steps=4, **changes)
    result = train_for(tmp_path / "run", tmp_path, steps=4, resume="override", **changes)
    assert result.end == "finished"
    assert "continuing with the new ones" in capsys.readouterr().err


def test_from_muon_to_adamw_drops_momentum_aloud_and_only_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_for(tmp_path / "run", tmp_path, steps=3, now=1, optimizer="muon")
    train_for(tmp_path / "run", tmp_path, steps=3, now=1, optimizer="adamw", resume="override")
    assert "moments of another optimizer are dropped" in capsys.readouterr().err
    tensors, _ = load_training(list_checkpoints(tmp_path / "run")[-1])
    assert not [name for name in tensors if name.startswith("momentum_buffer")]


def test_moments_that_no_optimizer_knows_are_refused(tmp_path: Path) -> None:
    model = tiny_model(make_processor(DemonstrationSource(make_windows(tmp_path))))
    tensors = pack_training(model, []) | {"momentum_buffer.of_another": torch.zeros(1)}
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(model.parameters())]
    with pytest.raises(CheckpointError, match=r"moments of another optimizer: \['momentum_buffer.of_another"):
        unpack_training(tensors, model, optimizers, source=tmp_path)
    left = unpack_training(tensors, model, optimizers, source=tmp_path, may_drop=True)
    assert left == ["momentum_buffer.of_another"]


def test_a_finished_run_is_not_validated_again(tmp_path: Path) -> None:
    for _ in range(2):
        train_for(tmp_path / "run", tmp_path, steps=2, validate_every_steps=2)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len([row for row in rows if "validation/loss" in row]) == 1


def test_minus_one_keeps_all_checkpoints(tmp_path: Path) -> None:
    for now in (1, 2, 3):
        train_for(tmp_path / "run", tmp_path, steps=now, keep_checkpoints=-1)
    assert len(list_checkpoints(tmp_path / "run")) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"keep_checkpoints": 0},
            r"trainer\.keep_checkpoints is 0; it must be an integer in \[1, 1000000\], or -1 to keep all",
        ),
        ({"validation_batches": 0}, r"trainer\.validation_batches is 0; it must be an integer in \[1, "),
        ({"resume": "maybe"}, r"trainer\.resume is 'maybe'; choose from same, override"),
    ],
)
def test_settings_that_would_lose_something_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerSettings(**{"num_samples": 8, "batch_size": 8, "learning_rate": 1e-3, **changes})
