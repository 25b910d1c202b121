"""Fine-tuning: a model that begins with what another one has learned, as far as the two have it in common.

The new model is made for its own data: its words, cameras, joints, actions and statistics. Of each parameter
those entries are kept that stand for something that both models have, by name (see `Part.axis_labels`), so a
word keeps its row of the embedding wherever it stands. All else keeps the random weights that it was given.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla.files import read_json_object, verify_manifest
from vla.model.checkpoint import (
    PROCESSOR_NAME,
    CheckpointError,
    ModelCheckpoint,
    load_checkpoint,
    newest_whole_checkpoint,
    read_state,
)
from vla.model.vla import ModelConfig, VLAModel
from vla.processing.fast import FastCodec
from vla.processing.moments import InputEncoder
from vla.processing.names import axis_names
from vla.processing.processor import Processor
from vla.processing.state import StateInput
from vla.processing.text import TextInput
from vla.spec import SpecMismatch
from vla.training.parts import freeze_parameters, learning_rate_scales, parts_table
from vla.training.settings import TrainerSettings

_WHAT = {  # names along these axes are shown
    "images": "frames",
    "state": "state",
    "action": "action",
    "text_ids": "tokens of text",
    "ids": "ids of actions",
}
_MOST_SHOWN = 8  # names
Axes = tuple[Sequence[Hashable] | None, ...]


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins with besides random weights.

    Attributes:
        given: the path that the run was given.
        checkpoint_id: sha256 of the weights that it began with.
        step: at which these were kept.
        processor_json: that begins the run: of the source, or of the run itself once it is resumed.
        provenance: of the same.
        source: whose weights are to be taken; None if the run is resumed, which has its own.
    """

    given: str
    checkpoint_id: str
    step: int
    processor_json: dict[str, Any]
    provenance: dict[str, Any]
    source: ModelCheckpoint | None

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint of the run tells of it."""
        return {"given": self.given, "checkpoint_id": self.checkpoint_id, "step": self.step}


def open_start(run_dir: Path, init_from: str | None) -> Start | None:
    """Return what a run begins with, or began with if it is resumed.

    Args:
        run_dir: of the run.
        init_from: a checkpoint, or a run directory whose newest checkpoint is taken; None for random weights.

    Raises:
        CheckpointError: there is none at `init_from`, or a resumed run began with something else.
        ManifestError: a file is damaged.
    """
    newest, _ = newest_whole_checkpoint(run_dir, report=_silent)
    if newest is None:
        return None if init_from is None else _start_from(Path(init_from))
    began = read_state(newest).get("init_from")
    if not _is_same_start(began, init_from):
        with_what = "random weights" if began is None else f"those of {began['given']} (step {began['step']})"
        asked = "init_from is null" if init_from is None else f"init_from={init_from} is something else"
        raise CheckpointError(
            f"{run_dir} was begun with {with_what}, and {asked}. Give what it was begun with to continue it, "
            "or another out_dir to begin anew"
        )
    if began is None:
        return None
    return Start(
        given=began["given"],
        checkpoint_id=began["checkpoint_id"],
        step=began["step"],
        processor_json=read_json_object(newest / PROCESSOR_NAME),
        provenance=verify_manifest(newest)["provenance"],
        source=None,
    )


def _silent(text: str) -> None:
    """Report nothing: the trainer does, when it brings the checkpoints into order."""


def _start_from(path: Path) -> Start:
    source = load_checkpoint(path)
    return Start(
        given=str(path),
        checkpoint_id=source.checkpoint_id,
        step=read_state(source.path)["step"],
        processor_json=source.processor_json,
        provenance=source.provenance,
        source=source,
    )


def _is_same_start(began: Mapping[str, Any] | None, init_from: str | None) -> bool:
    """Tell whether a run began with what is given; the same path is, whatever has become of it since."""
    if began is None or init_from is None:
        return began is None and init_from is None
    if began["given"] == init_from:
        return True
    return load_checkpoint(Path(init_from)).checkpoint_id == began["checkpoint_id"]


def require_same_family(config: ModelConfig, theirs: ModelConfig, *, source: Path) -> None:
    """Check that a trained model is of the kind and size of a new one.

    Args:
        config: of the new model.
        theirs: of the trained one.
        source: its checkpoint, for messages.

    Raises:
        CheckpointError: it has not; the message names both kinds or sizes, and the keys to give.
    """
    for part, mine, old in (
        ("backbone", config.backbone, theirs.backbone),
        ("head", config.head, theirs.head),
    ):
        if mine["kind"] != old["kind"]:
            raise CheckpointError(
                f"{source} has a model of another family: its {part} is {old['kind']!r}, that of the new "
                f"model is {mine['kind']!r}. Give model/{part}={old['kind']}, or leave out init_from"
            )
    _require_same_sizes(config.backbone, theirs.backbone, part="backbone", source=source)


def _require_same_sizes(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], *, part: str, source: Path
) -> None:
    other = {
        key: theirs.get(key)
        for key in mine
        if key not in ("kind", "embedders") and mine[key] != theirs.get(key)
    }
    if other:
        told = ", ".join(f"{key}={old} there, {mine[key]} in the new model" for key, old in other.items())
        raise CheckpointError(
            f"{source} has a model of another size: {told}. Give "
            f"{' '.join(f'model.{part}.{key}={old}' for key, old in other.items())}, or leave out init_from"
        )


def require_same_kind_of_robot(processor: Processor, old: Processor, *, source: Path) -> None:
    """Check that numbers mean the same kind of thing to both robots; their sizes and names may differ.

    Raises:
        SpecMismatch: what an action is differs.
    """
    mine, theirs = processor.robot_spec, old.robot_spec
    if mine.action_convention != theirs.action_convention:
        raise SpecMismatch(
            f"the robot of the data, {mine.name!r}, is of another kind than that of {source}, "
            f"{theirs.name!r}: its actions are {mine.action_convention}, those there "
            f"{theirs.action_convention}. Choose a checkpoint whose actions are {mine.action_convention}, or "
            "leave out init_from"
        )


def with_statistics_of(
    processor: Processor, old: Processor, *, instructions: Sequence[str], source: Path
) -> Processor:
    """Return a processor that scales state and action, and cuts text into tokens, as another one does.

    Args:
        processor: fitted to new data; its cameras and horizons stay.
        old: whose constants are taken.
        instructions: of the new data, which must not be too long in the other's tokens.
        source: where they come from, for messages.

    Raises:
        SpecMismatch: the channels, or what the codecs make, differ, so that the constants mean nothing here.
        InstructionTooLong: an instruction has more tokens than the new model has positions for.
    """
    mine, theirs = processor.robot_spec, old.robot_spec
    faults = [
        f"{what}: {there} there, {here} here"
        for what, there, here in (
            ("state", theirs.state, mine.state),
            ("action", theirs.action, mine.action),
            ("codec", _form_of_codec(old), _form_of_codec(processor)),
        )
        if there != here
    ]
    if faults:
        listing = "\n  ".join(faults)
        raise SpecMismatch(
            f"init_statistics=checkpoint takes the statistics of {source}, which are of something else:\n"
            f"  {listing}\nGive init_statistics=data"
        )
    (normalizer,) = (one.normalizer for one in old.inputs.values() if isinstance(one, StateInput))
    (tokenizer,) = (one.tokenizer for one in old.inputs.values() if isinstance(one, TextInput))
    inputs: dict[str, InputEncoder] = {}
    for name, one in processor.inputs.items():
        inputs[name] = one
        if isinstance(one, StateInput):
            inputs[name] = StateInput(robot_spec=mine, normalizer=normalizer)
        elif isinstance(one, TextInput):
            inputs[name] = text = TextInput(tokenizer=tokenizer, max_tokens=one.max_tokens)
            text.encode_text(instructions)
    return Processor(
        robot_spec=mine,
        inputs=inputs,
        codec=old.codec,
        frame_offsets=processor.frame_offsets,
        max_committed=processor.max_committed,
    )


def _form_of_codec(processor: Processor) -> tuple[Any, ...]:
    """Return what has to be the same for the constants of one codec to serve another."""
    codec = processor.codec
    if isinstance(codec, FastCodec):  # how many ids it has follows from its data
        return ("fast", codec.action_horizon, codec.scale)
    return (codec.to_json()["kind"], codec.action_horizon, *codec.specs().values())


def begin(
    model: VLAModel,
    processor: Processor,
    settings: TrainerSettings,
    *,
    start: Start | None,
    report: Callable[[str], None],
) -> dict[str, float]:
    """Take the weights that training starts with, freeze parts, and return scales of the learning rate.

    Args:
        model: with random weights; changed in place.
        processor: of the model.
        settings: say what is frozen and what learns more slowly.
        start: what to begin with; None for the random weights.
        report: gets a table of what is kept, new and frozen, unless all is random and trains alike.

    Raises:
        CheckpointError, SpecMismatch: as `take_weights`.
        SettingError: as `learning_rate_scales`.
    """
    names, kept = [name for name, _ in model.named_parameters()], None
    scales = learning_rate_scales(names, freeze=settings.freeze, scales=settings.learning_rate_scale)
    freeze_parameters(model, scales)
    lines: list[str] = []
    if start is not None and start.source is not None:
        kept = take_weights(model, processor, start.source)
        lines.append(f"beginning with weights of {start.source.path}, step {start.step}")
        lines += names_in_common(processor, Processor.from_json(start.source.processor_json))
    if kept is not None or set(scales.values()) != {1.0}:
        lines += parts_table(model, scales=scales, kept=kept)
    for line in lines:
        report(line)
    return scales


def take_weights(model: VLAModel, processor: Processor, source: ModelCheckpoint) -> dict[str, int]:
    """Copy into a new model what it has in common with a trained one.

    Args:
        model: with random weights; changed in place.
        processor: of the new model.
        source: the trained model.

    Returns:
        How many weights of each parameter were kept.

    Raises:
        CheckpointError: the models are of different kinds or sizes.
        SpecMismatch: the robots are of different kinds.
    """
    require_same_family(model.config, source.model.config, source=source.path)
    old = Processor.from_json(source.processor_json)
    require_same_kind_of_robot(processor, old, source=source.path)
    weights = _comparable_weights(model.config, source.model)
    mine = model.axis_labels(axis_names(processor))
    theirs = source.model.axis_labels(axis_names(old))
    kept = dict.fromkeys((name for name, _ in model.named_parameters()), 0)
    for name, parameter in model.named_parameters():
        if name not in weights:
            continue
        axes, old_axes = mine.get(name, (None,) * parameter.ndim), theirs.get(name, (None,) * parameter.ndim)
        if _fixed_sizes(parameter, axes) != _fixed_sizes(weights[name], old_axes):
            if name.startswith("head."):
                _require_same_sizes(
                    model.config.head, source.model.config.head, part="head", source=source.path
                )
            continue  # of a part whose sizes follow from the data, without labels: new
        kept[name] = _copy_entries(parameter, weights[name], axes, old_axes)
    return kept


def _comparable_weights(config: ModelConfig, old: VLAModel) -> dict[str, Tensor]:
    """Return the weights of a model, without auxiliary targets of another kind."""
    others = tuple(
        f"auxiliaries.{name}."
        for name, part in config.auxiliaries.items()
        if name in old.config.auxiliaries and old.config.auxiliaries[name]["kind"] != part["kind"]
    )
    return {name: p for name, p in old.named_parameters() if not name.startswith(others)}


def _fixed_sizes(parameter: Tensor, axes: Axes) -> list[int | None]:
    """Return the sizes along the axes that have no labels, None along the others."""
    return [size if one is None else None for size, one in zip(parameter.shape, axes, strict=True)]


def _copy_entries(parameter: Tensor, old: Tensor, axes: Axes, old_axes: Axes) -> int:
    """Copy the entries whose labels both have along every axis, and return how many these are."""
    to, of = [], []
    for one, before, size in zip(axes, old_axes, parameter.shape, strict=True):
        mine = range(size) if one is None else one
        assert len(mine) == size, f"an axis of {size} entries has {len(mine)} labels"
        place = {label: index for index, label in enumerate(mine if before is None else before)}
        shared = [(index, place[label]) for index, label in enumerate(mine) if label in place]
        to.append(torch.tensor([new for new, _ in shared], dtype=torch.int64))
        of.append(torch.tensor([there for _, there in shared], dtype=torch.int64))
    taken = old[torch.meshgrid(*of, indexing="ij")]
    with torch.no_grad():
        parameter[torch.meshgrid(*to, indexing="ij")] = taken.to(parameter.device, parameter.dtype)
    return taken.numel()


def names_in_common(processor: Processor, old: Processor) -> list[str]:
    """Return a line for each kind of name: which the new model knows already, and which are new to it."""
    mine, theirs = axis_names(processor), axis_names(old)
    lines = []
    for key, what in _WHAT.items():
        names, before = mine.get(key, ()), set(theirs.get(key, ()))
        known = [name for name in names if name in before]
        new = [name for name in names if name not in before]
        unused = [name for name in theirs.get(key, ()) if name not in set(names)]
        if names or unused:
            lines.append(f"{what}: kept {_few(known)}; new {_few(new)}; not needed {_few(unused)}")
    return lines


def _few(names: Sequence[Hashable]) -> str:
    """Return names for people, or how many there are."""
    if len(names) > _MOST_SHOWN or not names:
        return str(len(names))
    return ", ".join(_shown(name) for name in names)


def _shown(name: Hashable) -> str:
    match name:
        case (int(offset), str(camera)):
            return camera if offset == 0 else f"{camera} {offset} periods ago"
        case (str(channel), str(), str()):
            return channel
    return str(name)
