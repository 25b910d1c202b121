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

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vla.errors import VLAError, did_you_mean
from vla.files import (
    MANIFEST_NAME,
    ManifestError,
    read_json_object,
    require_regular,
    sha256_file,
    verify_manifest,
)
from vla.interface import ModelSpecs
from vla.model.vla import ModelConfig, VLAModel
from vla.plugins import missing_plugin, require_versions
from vla.registry import UnknownPart

WEIGHTS_NAME, MODEL_NAME, PROCESSOR_NAME = "model.safetensors", "model.json", "processor.json"
GOLDEN_NAME, STATE_NAME = "golden.npz", "state.json"
SCHEMA_VERSION = 2
BEST_BY = {  # what a run may keep its best checkpoint by
    "loss": "the least held-out loss",
    "success": "the most success on development seeds",
}
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, RuntimeError)
_LOG = logging.getLogger(__name__)


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
        PluginError: a plug-in that it needs was not passed, or has another version.
        ValueError: a setting in `head` does not exist, or weights depend on it.
    """
    directory = resolve_checkpoint(path)
    manifest = verify_manifest(directory)
    require_versions(manifest["provenance"], source=directory)
    specs, config = read_model_json(directory)
    weights = load_averaged(directory)
    try:
        _require_buildable(specs, config, weights, source=directory)
    except UnknownPart as error:
        raise missing_plugin(error, manifest["provenance"], source=directory) from error
    model = VLAModel(specs=specs, config=config.with_head(head or {}))
    load_weights(model, weights, source=directory)
    return ModelCheckpoint(
        model=model.eval(),
        processor_json=read_json_object(directory / PROCESSOR_NAME),
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
        CheckpointError: it was written by an older version, or is of another form.
        DamagedFile: it is no JSON object.
    """
    data = read_json_object(directory / MODEL_NAME)
    if data.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{directory} was written by an older version, before the parts of a model had names; this one "
            "reads bundles of that version, but no checkpoints. Train again, or export it with that version"
        )
    try:
        config = ModelConfig(backbone=data["backbone"], head=data["head"], auxiliaries=data["auxiliaries"])
        return ModelSpecs.from_json(data["specs"]), config
    except MALFORMED as error:
        raise _no_model(directory, error) from error


def _no_model(directory: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{directory / MODEL_NAME} describes no model ({type(error).__name__}: {error}); use another "
        "checkpoint, or restore this one from a copy"
    )


def _require_buildable(
    specs: ModelSpecs, config: ModelConfig, weights: Mapping[str, Tensor], *, source: Path
) -> None:
    """Refuse a description that builds no model or one of other weights, before memory is taken for it."""
    depth = config.backbone.get("depth", 0) if isinstance(config.backbone, dict) else None
    if not isinstance(depth, int) or depth > len(weights):
        raise _no_model(source, ValueError(f"depth {depth}, but {len(weights)} weights"))
    try:
        with torch.device("meta"):
            sketch = VLAModel(specs=specs, config=config)
    except UnknownPart:
        raise
    except MALFORMED as error:
        raise _no_model(source, error) from error
    _require_same_weights(sketch, weights, source=source)


def load_weights(model: VLAModel, weights: Mapping[str, Tensor], *, source: Path) -> None:
    """Copy weights by name into the model, strictly.

    Raises:
        CheckpointError: names or shapes differ, or weights are integers; the message lists them.
    """
    _require_same_weights(model, weights, source=source)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def _require_same_weights(model: VLAModel, weights: Mapping[str, Tensor], *, source: Path) -> None:
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    integers = [name for name, value in weights.items() if not value.is_floating_point()]
    if expected != given or integers:
        faults = [f"missing {n} {expected[n]}" for n in sorted(expected.keys() - given.keys())]
        faults += [f"unknown {n} {given[n]}" for n in sorted(given.keys() - expected.keys())]
        shared = sorted(expected.keys() & given.keys())
        faults += [f"{n} is {given[n]}, not {expected[n]}" for n in shared if expected[n] != given[n]]
        faults += [f"{n} is {weights[n].dtype}" for n in integers]
        raise CheckpointError(f"the weights in {source} do not fit its model:\n  " + "\n  ".join(faults))


def load_averaged(directory: Path) -> dict[str, Tensor]:
    """Return the averaged weights of a checkpoint by name; raises as `load_tensors` does."""
    return load_tensors(directory / WEIGHTS_NAME)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return what a safetensors file holds.

    Raises:
        CheckpointError: it is truncated or no such file.
    """
    require_regular(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it from a copy") from error


def read_state(directory: Path) -> dict[str, Any]:
    """Return the state that `save_checkpoint` was given, without reading the weights.

    Raises:
        DamagedFile: it is no JSON object.
    """
    return read_json_object(directory / STATE_NAME)


def best_directory(run_dir: Path) -> Path:
    """Return where a run keeps its best checkpoint, which cannot be resumed from."""
    return run_dir / "checkpoints" / "best"


def which_checkpoint(chosen: Path) -> str:
    """Return in a line which of a run's checkpoints this is, and which other one there is.

    Args:
        chosen: the directory of a checkpoint.
    """
    best = best_directory(chosen.parent.parent)
    text = f"{chosen}, step {read_state(chosen).get('step')}"
    if not (best / STATE_NAME).is_file():
        return text
    found = read_state(best)
    why = BEST_BY.get((found.get("best") or {}).get("by", "loss"), "the best number")
    if chosen.name == best.name:
        return f"{text}, the one with {why}"
    if found.get("step") == read_state(chosen).get("step"):
        return f"{text}, which has {why} too"
    return f"{text}; the one with {why} is {best}, step {found.get('step')}"


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the published checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run_dir / "checkpoints").glob(f"step_*/{MANIFEST_NAME}"))


def newest_whole_checkpoint(
    run_dir: Path, *, report: Callable[[str], None]
) -> tuple[Path | None, list[Path]]:
    """Return the newest checkpoint of a run that is undamaged, and the newer ones, which are not.

    Args:
        run_dir: of the run.
        report: gets a line for each damaged one.

    Raises:
        ManifestError: there are checkpoints, but all are damaged.
    """
    damaged: list[tuple[Path, ManifestError]] = []
    for directory in sorted((run_dir / "checkpoints").glob("step_*"), reverse=True):
        try:
            verify_manifest(directory)
        except ManifestError as error:
            damaged.append((directory, error))
            continue
        for newer, error in damaged:
            report(f"WARNING: {newer.name} is DAMAGED; going back to {directory}. {error}")
        return directory, [newer for newer, _ in damaged]
    if damaged:
        raise ManifestError(
            f"all {len(damaged)} checkpoints of {run_dir} are damaged; restore one from a copy, or move "
            f"{run_dir / 'checkpoints'} elsewhere to start anew. The newest: {damaged[0][1]}"
        )
    return None, []


def resolve_checkpoint(path: Path) -> Path:
    """Return `path` if it is a checkpoint, or the newest checkpoint of the run directory `path`.

    If the newest is damaged, one line says so, and it is the one before.

    Raises:
        CheckpointError: neither; the message says what is there.
        ManifestError: all checkpoints of the run are damaged.
    """
    if (path / MANIFEST_NAME).is_file() and (path / MODEL_NAME).is_file():
        return path
    found, _ = newest_whole_checkpoint(path, report=_LOG.warning)
    if found:
        return found
    there = sorted(child.name for child in path.iterdir()) if path.is_dir() else "nothing: no such directory"
    raise CheckpointError(
        f"{path} is neither a checkpoint nor a run directory with checkpoints/step_*; it holds {there}"
        f"{_nearby(path)}"
    )


def _nearby(path: Path) -> str:
    """Return what checkpoints and runs lie next to a path that does not exist; nothing if there are none."""
    if path.exists() or not path.parent.is_dir():
        return ""
    others = [one for one in path.parent.iterdir() if (one / MODEL_NAME).is_file() or list_checkpoints(one)]
    names = sorted(one.name for one in others)
    return f". Next to it: {did_you_mean(path.name, names)}" if names else ""
