"""Writing checkpoints and resuming from them; each is published whole by one rename.

What a checkpoint holds stands in vla/model/checkpoint.py, which reads it.
"""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vla.files import (
    DamagedFile,
    atomic_write_json,
    publish_directory,
    read_json_object,
    remove_leftovers,
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
    load_tensors,
    load_weights,
    model_json,
    newest_whole_checkpoint,
    read_state,
)
from vla.model.vla import VLAModel
from vla.plugins import require_versions
from vla.processing.golden import write_observations
from vla.processing.processor import Processor
from vla.training.settings import BudgetSpent, TrainerSettings

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

    Raises:
        DiskFault: the disk is full or read-only, for example; the checkpoints before are kept.
    """
    with staging_directory(directory) as staging:
        atomic_write_json(staging / MODEL_NAME, model_json(model))
        for name, tensors in ((WEIGHTS_NAME, averaged), (TRAINING_NAME, training)):
            save_tensors(tensors, staging / name)
            shutil.copymode(staging / MODEL_NAME, staging / name)  # theirs is for the owner alone
        atomic_write_json(staging / PROCESSOR_NAME, processor.to_json())
        atomic_write_json(staging / STATE_NAME, dict(state))
        write_observations(staging / GOLDEN_NAME, golden)
        write_manifest(staging, provenance)
        publish_directory(staging, directory, replace=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file; a full disk is an `OSError`, as from everything else that writes."""
    try:
        save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def settle_checkpoints(run_dir: Path, *, report: Callable[[str], None]) -> None:
    """Bring the checkpoints of a run into order before it is resumed; the caller holds the lock.

    What killed processes left is removed. Damaged checkpoints that are newer than the newest whole one are
    renamed to `damaged_step_...`, so that the run goes on from that one; nothing of them is deleted.

    Args:
        run_dir: of the run.
        report: gets a line for each damaged one.

    Raises:
        ManifestError: there are checkpoints, but all are damaged.
    """
    remove_leftovers(run_dir / "checkpoints")
    _, damaged = newest_whole_checkpoint(run_dir, report=report)
    for directory in damaged:
        names = (f"damaged_{directory.name}" + (f"-{i}" if i > 1 else "") for i in itertools.count(1))
        directory.rename(next(path for name in names if not (path := directory.with_name(name)).exists()))


def require_same_parts(directory: Path, *, model: VLAModel, processor: Processor) -> None:
    """Check that a checkpoint was written for this very model and processor, robot spec included.

    Raises:
        CheckpointError: it was not; the message names what differs and what to do.
    """
    for name, file, given in (
        ("model", MODEL_NAME, model_json(model)),
        ("processor", PROCESSOR_NAME, processor.to_json()),
    ):
        stored = read_json_object(directory / file)
        given = json.loads(json.dumps(given))
        keys = [key for key in given if stored.get(key) != given[key]]
        if keys:
            raise CheckpointError(
                f"{directory} was written with another {name}: {keys} differ. "
                "Resume with the settings and data of that run, or start in a new run directory"
            )


def newest_state(
    run_dir: Path,
    *,
    settings: TrainerSettings,
    kept: Mapping[str, Any],
    most_samples: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Return the state of the newest checkpoint of a run, empty if there is none.

    Args:
        run_dir: of the run.
        settings: of the trainer that wants to continue it.
        kept: all settings that shape what is learned, by name.
        most_samples: that the run will have been trained on when its last step is done.
        report: gets a line if settings differ and may.

    Raises:
        BudgetSpent: that checkpoint was trained for longer than this run may.
        CheckpointError: it is of a version that did not count samples, or has other settings.
    """
    found = list_checkpoints(run_dir)
    if not found:
        return {}
    state = read_state(found[-1])
    if "settings" not in state:
        raise CheckpointError(
            f"{found[-1]} was written by an older version and cannot be continued; it can be evaluated "
            "and exported. Train in a new run directory"
        )
    _require_same_settings(
        found[-1], state["settings"], kept, may_differ=settings.resume == "override", report=report
    )
    minutes = state["elapsed_s"] / 60
    if state["num_samples"] > most_samples:
        raise BudgetSpent(
            f"trainer.num_samples={settings.num_samples}, but {run_dir} was trained on "
            f"{state['num_samples']} already; raise it, or train in a new run directory"
        )
    is_done = state["num_samples"] >= settings.num_samples
    if settings.max_minutes is not None and not is_done and minutes >= settings.max_minutes:
        raise BudgetSpent(
            f"trainer.max_minutes={settings.max_minutes:g}, but {run_dir} was trained for "
            f"{minutes:.1f} minutes already; raise it, or give trainer.max_minutes=null"
        )
    return state


def _require_same_settings(
    checkpoint: Path,
    stored: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    may_differ: bool,
    report: Callable[[str], None],
) -> None:
    """Refuse, or report if they may differ, other settings than the checkpoint's."""
    changed = [
        f"{key}={given.get(key)} (was {stored.get(key)})"
        for key in sorted({*given, *stored})
        if given.get(key) != stored.get(key)
    ]
    if not changed:
        return
    text = f"{checkpoint} was trained with other settings: {', '.join(changed)}"
    if not may_differ:
        raise CheckpointError(
            f"{text}. Give those of before, train in a new run directory, or continue with the new "
            "ones by trainer.resume=override"
        )
    report(f"{text}; continuing with the new ones")


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
        owner = owners.get(id(parameter))
        if owner is None:
            continue  # frozen
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
    """Return the tensors and the state that `save_checkpoint` was given, after checking their hashes.

    Raises:
        ManifestError: a file is damaged.
        DamagedFile: the state has not the numbers that resuming needs.
    """
    require_versions(verify_manifest(directory)["provenance"], source=directory)
    state = read_state(directory)
    numbers = [state.get(key) for key in ("step", "num_samples", "elapsed_s", "average_updates")]
    if not all(isinstance(number, int | float) and number >= 0 for number in numbers):
        raise DamagedFile(f"the state of {directory} has not the numbers that resuming needs: {numbers}")
    return load_tensors(directory / TRAINING_NAME), state


def checkpoint_directory(run_dir: Path, step: int) -> Path:
    """Return where the checkpoint of a step of a run lies."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def prune_checkpoints(run_dir: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of a run; -1 keeps all."""
    if keep == -1:
        return
    for directory in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(directory)
