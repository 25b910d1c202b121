"""Checkpoints: safetensors and JSON with a sha256 manifest, published whole by one rename; no pickles.

A checkpoint directory holds
    model.safetensors      averaged weights: what policies and exports use
    training.safetensors   raw weights and optimiser moments: what resuming needs besides state.json
    model.json             constructor arguments of the model
    processor.json         everything between observations and model, robot spec included
    state.json             step, sampler position, elapsed time
    manifest.json          sha256 and size of each file, provenance
It knows nothing of how training goes.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla.files import (
    MANIFEST_NAME,
    atomic_write_json,
    publish_directory,
    sha256_file,
    staging_directory,
    verify_manifest,
    write_manifest,
)
from vla.model.sizes import ModelSizes
from vla.model.vla import VLAModel
from vla.processing.processor import Processor

MOMENTS = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}  # what each remembers


class CheckpointError(ValueError):
    """There is no usable checkpoint where one was asked for."""


@dataclass(frozen=True, kw_only=True)
class PolicyCheckpoint:
    """A model with its averaged weights, its processor, and where they come from."""

    model: VLAModel
    processor: Processor
    provenance: dict[str, Any]
    checkpoint_id: str  # sha256 of the weights file
    path: Path


def save_checkpoint(
    directory: Path,
    *,
    model: VLAModel,
    processor: Processor,
    averaged: Mapping[str, Tensor],
    training: Mapping[str, Tensor],
    state: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write a checkpoint to `directory`; a crash leaves either the whole of it or nothing.

    `averaged` are the averaged parameters by name, `training` the tensors for resuming.
    """
    with staging_directory(directory) as staging:
        save_file(
            {name: value.contiguous().cpu() for name, value in averaged.items()},
            staging / "model.safetensors",
        )
        save_file(
            {name: v.contiguous().cpu() for name, v in training.items()}, staging / "training.safetensors"
        )
        atomic_write_json(staging / "model.json", model.sizes.to_json())
        atomic_write_json(staging / "processor.json", processor.to_json())
        atomic_write_json(staging / "state.json", dict(state))
        write_manifest(staging, provenance)
        publish_directory(staging, directory, replace=True)


def load_policy_checkpoint(path: Path) -> PolicyCheckpoint:
    """Load the model and processor of a checkpoint, or of the newest one of a run directory.

    Raises:
        CheckpointError: there is none at `path`, or its weights do not fit its model.
        ManifestError: a file of it is damaged.
    """
    directory = resolve_checkpoint(path)
    manifest = verify_manifest(directory)
    model = VLAModel(ModelSizes(**json.loads((directory / "model.json").read_text())))
    load_weights(model, load_averaged(directory), source=directory)
    model.eval()
    processor = Processor.from_json(json.loads((directory / "processor.json").read_text()))
    return PolicyCheckpoint(
        model=model,
        processor=processor,
        provenance=manifest["provenance"],
        checkpoint_id=sha256_file(directory / "model.safetensors"),
        path=directory,
    )


def load_weights(model: VLAModel, weights: Mapping[str, Tensor], *, source: Path) -> None:
    """Copy weights by name into the model, strictly.

    Raises:
        CheckpointError: names or shapes differ; the message lists them.
    """
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != given:
        faults = [f"missing {n} {expected[n]}" for n in sorted(expected.keys() - given.keys())]
        faults += [f"unknown {n} {given[n]}" for n in sorted(given.keys() - expected.keys())]
        shared = sorted(expected.keys() & given.keys())
        faults += [f"{n} is {given[n]}, not {expected[n]}" for n in shared if expected[n] != given[n]]
        raise CheckpointError(f"the weights in {source} do not fit its model:\n  " + "\n  ".join(faults))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def require_same_parts(directory: Path, *, model: VLAModel, processor: Processor) -> None:
    """Check that a checkpoint was written for this very model and processor, robot spec included.

    Raises:
        CheckpointError: it was not; the message names what differs and what to do.
    """
    sizes = ModelSizes(**json.loads((directory / "model.json").read_text()))  # fills in what is newer
    old_processor = Processor.from_json(json.loads((directory / "processor.json").read_text()))
    for name, stored, value in (
        ("model", sizes.to_json(), model.sizes.to_json()),
        ("processor", old_processor.to_json(), processor.to_json()),
    ):
        keys = sorted(key for key in value if stored[key] != value[key])
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


def load_averaged(directory: Path) -> dict[str, Tensor]:
    """Return the averaged weights of a checkpoint by name."""
    return load_file(directory / "model.safetensors")


def load_training(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the state that `save_checkpoint` was given, after checking their hashes."""
    verify_manifest(directory)
    return load_file(directory / "training.safetensors"), read_state(directory)


def read_state(directory: Path) -> dict[str, Any]:
    """Return the state that `save_checkpoint` was given, without reading the weights."""
    return json.loads((directory / "state.json").read_text(encoding="utf-8"))


def checkpoint_directory(run_dir: Path, step: int) -> Path:
    """Return where the checkpoint of a step of a run lies."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the published checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run_dir / "checkpoints").glob(f"step_*/{MANIFEST_NAME}"))


def resolve_checkpoint(path: Path) -> Path:
    """Return `path` if it is a checkpoint, or the newest checkpoint of the run directory `path`.

    Raises:
        CheckpointError: neither; the message says what is there.
    """
    if (path / MANIFEST_NAME).is_file() and (path / "model.json").is_file():
        return path
    found = list_checkpoints(path)
    if found:
        return found[-1]
    there = sorted(child.name for child in path.iterdir()) if path.is_dir() else "nothing: no such directory"
    raise CheckpointError(
        f"{path} is neither a checkpoint nor a run directory with checkpoints/step_*; it holds {there}"
    )


def prune_checkpoints(run_dir: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of a run; -1 keeps all."""
    if keep == -1:
        return
    for directory in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(directory)
