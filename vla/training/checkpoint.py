"""Writing checkpoints and resuming from them; each is published whole by one rename.

What a checkpoint holds stands in vla/model/checkpoint.py, which reads it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla.files import (
    atomic_write_json,
    publish_directory,
    staging_directory,
    verify_manifest,
    write_manifest,
)
from vla.interface import Observation
from vla.model.checkpoint import (
    GOLDEN_NAME,
    MODEL_NAME,
    PROCESSOR_NAME,
    STATE_NAME,
    WEIGHTS_NAME,
    CheckpointError,
    list_checkpoints,
    load_weights,
    model_json,
    read_state,
)
from vla.model.vla import VLAModel
from vla.processing.golden import write_observations
from vla.processing.processor import Processor

TRAINING_NAME = "training.safetensors"
MOMENTS = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}  # what each remembers


def save_checkpoint(
    directory: Path,
    *,
    model: VLAModel,
    processor: Processor,
    averaged: Mapping[str, Tensor],
    training: Mapping[str, Tensor],
    golden: Sequence[Observation],
    state: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write a checkpoint to `directory`; a crash leaves either the whole of it or nothing.

    `averaged` are the averaged parameters by name, `training` the tensors for resuming, `golden` held-out
    moments.
    """
    with staging_directory(directory) as staging:
        for name, tensors in ((WEIGHTS_NAME, averaged), (TRAINING_NAME, training)):
            save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, staging / name)
        atomic_write_json(staging / MODEL_NAME, model_json(model))
        atomic_write_json(staging / PROCESSOR_NAME, processor.to_json())
        atomic_write_json(staging / STATE_NAME, dict(state))
        write_observations(staging / GOLDEN_NAME, golden)
        write_manifest(staging, provenance)
        publish_directory(staging, directory, replace=True)


def require_same_parts(directory: Path, *, model: VLAModel, processor: Processor) -> None:
    """Check that a checkpoint was written for this very model and processor, robot spec included.

    Raises:
        CheckpointError: it was not; the message names what differs and what to do.
    """
    for name, file, given in (
        ("model", MODEL_NAME, model_json(model)),
        ("processor", PROCESSOR_NAME, processor.to_json()),
    ):
        stored = json.loads((directory / file).read_text(encoding="utf-8"))
        given = json.loads(json.dumps(given))
        keys = [key for key in given if stored.get(key) != given[key]]
        if keys:
            raise CheckpointError(
                f"{directory} was written with another {name}: {keys} differ. "
                "Resume with the settings and data of that run, or start in a new run directory"
            )


def pack_training(model: VLAModel, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return raw weights and moments, named `weights.<parameter>`, `exp_avg.<parameter>` and so on."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weights.{name}"] = parameter.detach()
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = torch.as_tensor(value)
    return tensors


def unpack_training(
    tensors: Mapping[str, Tensor],
    model: VLAModel,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    source: Path,
    may_drop: bool = False,
) -> list[str]:
    """Restore what `pack_training` returned into a model and optimizers of the same kinds.

    Args:
        tensors: what `pack_training` returned.
        model: receives the raw weights.
        optimizers: receive the moments.
        source: where the tensors come from, for messages.
        may_drop: whether moments that the optimizers do not know may be left out.

    Returns:
        The names of moments that were left out.

    Raises:
        CheckpointError: weights do not fit the model, or moments do not fit the optimizers.
    """
    prefix = "weights."
    weights = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
    load_weights(model, weights, source=source)
    owners = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
    left = {name for name in tensors if not name.startswith(prefix)}
    for name, parameter in model.named_parameters():
        owner = owners[id(parameter)]
        wanted = MOMENTS[type(owner).__name__]
        if not {f"{key}.{name}" for key in wanted} <= left:
            continue  # this parameter was never stepped, or by another optimizer
        owner.state[parameter] = {
            key: value if key == "step" else value.to(parameter.device)
            for key, value in ((key, tensors[f"{key}.{name}"]) for key in wanted)
        }
        left -= {f"{key}.{name}" for key in wanted}
    if left and not may_drop:
        raise CheckpointError(
            f"{source} holds moments of another optimizer: {sorted(left)[:3]} and so on, {len(left)} in all. "
            "Give trainer.optimizer as it was, or trainer.resume=override to start its moments anew"
        )
    return sorted(left)


def load_training(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the state that `save_checkpoint` was given, after checking their hashes."""
    verify_manifest(directory)
    return load_file(directory / TRAINING_NAME), read_state(directory)


def checkpoint_directory(run_dir: Path, step: int) -> Path:
    """Return where the checkpoint of a step of a run lies."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def prune_checkpoints(run_dir: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of a run; -1 keeps all."""
    if keep == -1:
        return
    for directory in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(directory)
