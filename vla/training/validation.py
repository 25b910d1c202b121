"""How well a model predicts demonstrations that it was not trained on: loss, token accuracy, error in units.

Knows nothing of optimisation; it is handed a model and fixed batches.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vla.model.vla import VLAModel
from vla.processing.processor import Processor
from vla.training.batches import Batch
from vla.training.losses import action_token_loss


@torch.no_grad()
def validate(
    model: VLAModel,
    processor: Processor,
    batches: Sequence[Batch],
    *,
    targets: Tensor,
    precision: torch.dtype,
    device: torch.device,
) -> dict[str, float]:
    """Return mean loss, token accuracy, and the mean absolute error of each action channel in its own unit.

    Autoregressive models are teacher-forced here: the error is that of the next token, not of a rollout.

    Raises:
        ValueError: there is no batch.
    """
    if not batches:
        raise ValueError(
            "validation needs at least one batch; raise validation_share or record more episodes"
        )
    losses, accuracies, errors = [], [], []
    was_training = model.training
    model.eval()
    for batch in (batch.to(device) for batch in batches):
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            logits = model(batch.images, batch.text_ids, batch.state, batch.bins)
        loss, accuracy = action_token_loss(logits, batch.bins, batch.valid, targets)
        losses.append(float(loss))
        accuracies.append(float(accuracy))
        predicted = processor.decode(logits.argmax(dim=-1).cpu().numpy())
        wanted = processor.decode(batch.bins.cpu().numpy())
        errors.append(np.abs(predicted - wanted)[batch.valid.cpu().numpy()].mean(axis=0))
    model.train(was_training)
    values = {
        "validation/loss": float(np.mean(losses)),
        "validation/token_accuracy": float(np.mean(accuracies)),
    }
    for name, error in zip(processor.robot_spec.action, np.mean(errors, axis=0), strict=True):
        values[f"validation/error/{name.name} [{name.unit}]"] = float(error)
    return values
