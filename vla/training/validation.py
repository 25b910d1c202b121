"""How well a model predicts demonstrations that it was not trained on: losses, and errors in units."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from vla.interface import NOTHING, Arrays, ArraySpec
from vla.model.vla import VLAModel
from vla.processing.processor import Processor
from vla.training.batches import Batch, to_device


@torch.no_grad()
def validate(
    model: VLAModel,
    processor: Processor,
    batches: Sequence[Batch],
    *,
    precision: torch.dtype,
    device: torch.device,
) -> dict[str, float]:
    """Return mean losses, and the mean absolute error of each action channel in its own unit.

    The error is that of the chunk that the policy would answer, against the demonstrated one as the codec
    keeps it. `ids_per_chunk` is how many ids the model chose for it.

    Raises:
        ValueError: there is no batch.
        DecodeError: the model answers with what is no chunk.
    """
    if not batches:
        raise ValueError(
            "validation needs at least one batch; raise validation_share or record more episodes"
        )
    losses: defaultdict[str, list[float]] = defaultdict(list)
    errors: list[np.ndarray] = []
    was_training = model.training
    model.eval()
    for batch in (to_device(batch, device) for batch in batches):
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            values, outputs = model.loss(batch), model.sample(batch)
        for name, value in values.items():
            losses[name].append(float(value))
        answers = {name: value.cpu().numpy() for name, value in outputs.items()}
        losses["ids_per_chunk"].append(_ids_per_chunk(answers))
        predicted = processor.decode(answers)
        wanted = processor.decode(
            {name: _whole(batch[name].cpu().numpy(), spec) for name, spec in processor.codec.specs().items()}
        )
        errors.append(np.abs(predicted - wanted)[batch["valid"].cpu().numpy()].mean(axis=0))
    model.train(was_training)
    means = {f"validation/{name}": float(np.mean(values)) for name, values in losses.items()}
    for channel, error in zip(processor.robot_spec.action, np.mean(errors, axis=0), strict=True):
        means[f"validation/error/{channel.name} [{channel.unit}]"] = float(error)
    return means


def _ids_per_chunk(answers: Arrays) -> float:
    """Return the mean number of ids that the model chose for a chunk; 0 if it answers with numbers."""
    ids = [answer.reshape(len(answer), -1) for answer in answers.values() if answer.dtype.kind == "i"]
    return float(sum((one != NOTHING).sum(axis=1).mean() for one in ids))


def _whole(targets: np.ndarray, spec: ArraySpec) -> np.ndarray:
    """Return targets with the end of sequences that a batch leaves out because all samples are over."""
    missing = spec.shape[0] - targets.shape[1]
    widths = [(0, 0), (0, missing), *[(0, 0)] * (targets.ndim - 2)]
    return np.pad(targets, widths, constant_values=NOTHING) if missing else targets
