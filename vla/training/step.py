"""Forward pass and loss as one module, so that they compile and distribute as one.

Knows nothing of batches' origin or of optimisation.
"""

import torch
from torch import Tensor, nn

from vla.model.vla import VLAModel
from vla.training.losses import action_token_loss, future_state_loss


class TrainStep(nn.Module):
    """A model with its loss under mixed precision."""

    def __init__(
        self,
        *,
        model: VLAModel,
        targets: Tensor,
        future_weight: float,
        precision: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.future_weight = future_weight
        self.model, self.precision, self.device_type = model, precision, device.type
        self.targets: Tensor
        self.register_buffer("targets", targets, persistent=False)

    def forward(
        self,
        images: Tensor,
        text_ids: Tensor,
        state: Tensor,
        bins: Tensor,
        valid: Tensor,
        future: Tensor,
        num_committed: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return loss and token accuracy of a batch; committed steps are given, so they carry no loss."""
        committed = num_committed if self.model.sizes.max_committed else None
        if committed is not None:
            steps = torch.arange(valid.shape[1], device=valid.device)
            valid = valid & (steps >= committed[:, None])
        enabled = self.precision is not torch.float32
        with torch.autocast(self.device_type, self.precision, enabled=enabled):
            logits, future_logits = self.model.forward_with_future(
                images, text_ids, state, bins, num_committed=committed
            )
        loss, accuracy = action_token_loss(logits, bins, valid, self.targets)
        if future_logits is not None:
            loss = loss + self.future_weight * future_state_loss(future_logits, future)
        return loss, accuracy
