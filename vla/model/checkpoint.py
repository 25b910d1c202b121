"""Reading checkpoints: safetensors and JSON with a sha256 manifest; no pickles.

A checkpoint directory holds
    model.safetensors      averaged weights: what policies and exports use
    model.json             which parts the model has, with their settings, and the specs it was built for
    processor.json         everything between observations and model, robot spec included
    golden.npz             held-out moments with their true history, which an export is tried on
    training.safetensors   raw weights and optimizer moments: what resuming needs besides state.json
    state.json             step, sampler position, elapsed time
    manifest.json          sha256 and size of each file, provenance
Writing and resuming is training's affair (vla/training/checkpoint.py).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vla.errors import VLAError
from vla.files import MANIFEST_NAME, sha256_file, verify_manifest
from vla.interface import ModelSpecs
from vla.model.vla import ModelConfig, VLAModel

WEIGHTS_NAME, MODEL_NAME, PROCESSOR_NAME = "model.safetensors", "model.json", "processor.json"
GOLDEN_NAME, STATE_NAME = "golden.npz", "state.json"
SCHEMA_VERSION = 2


class CheckpointError(VLAError):
    """There is no usable checkpoint at the given path."""


@dataclass(frozen=True, kw_only=True)
class ModelCheckpoint:
    """A model with its averaged weights, and where it comes from.

    Attributes:
        model: in evaluation mode.
        processor_json: of its processor.
        provenance: JSON-ready origin.
        checkpoint_id: sha256 of the weights file.
        path: of the checkpoint directory.
    """

    model: VLAModel
    processor_json: dict[str, Any]
    provenance: dict[str, Any]
    checkpoint_id: str
    path: Path

    @property
    def golden_path(self) -> Path:
        """Where the golden moments lie."""
        return self.path / GOLDEN_NAME


def load_checkpoint(path: Path, *, head: Mapping[str, Any] | None = None) -> ModelCheckpoint:
    """Load the model of a checkpoint, or of the newest one of a run directory.

    Args:
        path: of either.
        head: settings of the head that no weight depends on, in place of those of training.

    Raises:
        CheckpointError: there is none at `path`, it is of another version, or its weights do not fit.
        ManifestError: a file of it is damaged.
        ValueError: a setting in `head` does not exist, or weights depend on it.
    """
    directory = resolve_checkpoint(path)
    manifest = verify_manifest(directory)
    specs, config = read_model_json(directory)
    model = VLAModel(specs=specs, config=config.with_head(head or {}))
    load_weights(model, load_averaged(directory), source=directory)
    return ModelCheckpoint(
        model=model.eval(),
        processor_json=json.loads((directory / PROCESSOR_NAME).read_text(encoding="utf-8")),
        provenance=manifest["provenance"],
        checkpoint_id=sha256_file(directory / WEIGHTS_NAME),
        path=directory,
    )


def model_json(model: VLAModel) -> dict[str, Any]:
    """Return what `read_model_json` reads."""
    return {
        "schema_version": SCHEMA_VERSION,
        "specs": model.specs.to_json(),
        **model.config.to_json(),
    }


def read_model_json(directory: Path) -> tuple[ModelSpecs, ModelConfig]:
    """Return specs and parts of the model of a checkpoint.

    Raises:
        CheckpointError: it was written by an older version.
    """
    data = json.loads((directory / MODEL_NAME).read_text(encoding="utf-8"))
    if data.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{directory} was written by an older version, before the parts of a model had names; this one "
            "reads bundles of that version, but no checkpoints. Train again, or export it with that version"
        )
    config = ModelConfig(backbone=data["backbone"], head=data["head"], auxiliaries=data["auxiliaries"])
    return ModelSpecs.from_json(data["specs"]), config


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


def load_averaged(directory: Path) -> dict[str, Tensor]:
    """Return the averaged weights of a checkpoint by name."""
    return load_file(directory / WEIGHTS_NAME)


def read_state(directory: Path) -> dict[str, Any]:
    """Return the state that `save_checkpoint` was given, without reading the weights."""
    return json.loads((directory / STATE_NAME).read_text(encoding="utf-8"))


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the published checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run_dir / "checkpoints").glob(f"step_*/{MANIFEST_NAME}"))


def resolve_checkpoint(path: Path) -> Path:
    """Return `path` if it is a checkpoint, or the newest checkpoint of the run directory `path`.

    Raises:
        CheckpointError: neither; the message says what is there.
    """
    if (path / MANIFEST_NAME).is_file() and (path / MODEL_NAME).is_file():
        return path
    found = list_checkpoints(path)
    if found:
        return found[-1]
    there = sorted(child.name for child in path.iterdir()) if path.is_dir() else "nothing: no such directory"
    raise CheckpointError(
        f"{path} is neither a checkpoint nor a run directory with checkpoints/step_*; it holds {there}"
    )
