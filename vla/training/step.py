"""Forward pass and loss as one module, so that they compile and distribute as one."""

import torch
from torch import Tensor, nn

from vla.model.vla import VLAModel
from vla.training.batches import Batch


class TrainStep(nn.Module):
    """A model's loss under mixed precision."""

    def __init__(self, *, model: VLAModel, precision: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.model, self.precision, self.device_type = model, precision, device.type

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and what else is worth a curve, each a scalar."""
        with torch.autocast(self.device_type, self.precision, enabled=self.precision is not torch.float32):
            return self.model.loss(batch)
