"""How well a model predicts demonstrations that it was not trained on: losses, and errors in units."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from vla.data.source import Source
from vla.interface import NOTHING, Arrays, ArraySpec, Observation
from vla.model.vla import VLAModel
from vla.processing.processor import Processor
from vla.training.batches import Batch, BatchMaker, to_device
from vla.training.step import shares_of_terms

NUM_GOLDEN = 16  # held-out moments that a checkpoint keeps for exports
HELD_OUT_LOSS = "validation/action_loss"  # by which checkpoints are told apart: that of the head alone


def validation_batches(
    model: VLAModel, processor: Processor, validation: Source, *, batch_size: int, most: int
) -> list[Batch]:
    """Return at most `most` batches of a held-out source, the same for every seed of a run.

    They have the targets of all parts of the model, so that each loss of training has its held-out one.
    """
    count = min(most * batch_size, validation.num_samples)
    chosen = np.random.default_rng(0).permutation(validation.num_samples)[:count].astype(np.int64)
    maker = BatchMaker(
        validation,
        processor=processor,
        requests=model.requests(),
        noise=model.noise_specs(training=True),
        seed=None,
    )
    return [maker.make(part, number=0) for part in np.array_split(chosen, max(1, count // batch_size))]


def golden_moments(source: Source) -> list[Observation]:
    """Return moments for a checkpoint to keep, spread evenly over the samples."""
    count = min(NUM_GOLDEN, source.num_samples)
    return source.observations(np.linspace(0, source.num_samples - 1, count).astype(np.int64))


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
        DecodeError: the model answers with what is no chunk.
    """
    assert batches, "there is nothing to validate on"
    means: defaultdict[str, float] = defaultdict(float)
    num_samples = sum(len(batch["valid"]) for batch in batches)
    errors: list[np.ndarray] = []
    was_training = model.training
    model.eval()
    for batch, share in zip(batches, shares_of_terms(model, batches, device=device), strict=True):
        batch = to_device(batch, device)
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            values, outputs = model.loss(batch, share), model.sample(batch)
        for name, value in values.items():
            means[f"validation/{name}"] += float(value)
        answers = {name: value.cpu().numpy() for name, value in outputs.items()}
        means["validation/ids_per_chunk"] += _num_ids(answers) / num_samples
        predicted = processor.decode(answers)
        wanted = processor.decode(
            {name: _whole(batch[name].cpu().numpy(), spec) for name, spec in processor.codec.specs().items()}
        )
        errors.append(np.abs(predicted - wanted)[batch["valid"].cpu().numpy()])
    model.train(was_training)
    mean_errors = np.concatenate(errors).mean(axis=0, dtype=np.float64)
    for channel, error in zip(processor.robot_spec.action, mean_errors, strict=True):
        means[f"validation/error/{channel.name} [{channel.unit}]"] = float(error)
    return dict(means)


def _num_ids(answers: Arrays) -> int:
    """Return how many ids the model chose in all; 0 if it answers with numbers."""
    return sum(int((answer != NOTHING).sum()) for answer in answers.values() if answer.dtype.kind == "i")


def _whole(targets: np.ndarray, spec: ArraySpec) -> np.ndarray:
    """Return targets with the end of sequences that a batch leaves out because all samples are over."""
    missing = spec.shape[0] - targets.shape[1]
    widths = [(0, 0), (0, missing), *[(0, 0)] * (targets.ndim - 2)]
    return np.pad(targets, widths, constant_values=NOTHING) if missing else targets
