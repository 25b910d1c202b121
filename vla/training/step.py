"""Forward pass and loss as one module, so that they compile and distribute as one; what a batch counts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vla.model.vla import VLAModel
from vla.training.batches import Batch
from vla.training.distributed import ALONE, Ranks, sum_over_ranks


class TrainStep(nn.Module):
    """A model's loss under mixed precision."""

    def __init__(self, *, model: VLAModel, precision: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.model, self.precision, self.device_type = model, precision, device.type

    def forward(self, batch: Batch, shares: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return `loss` and what else is worth a curve, each a scalar; for `shares` see `VLAModel.loss`."""
        with torch.autocast(self.device_type, self.precision, enabled=self.precision is not torch.float32):
            return self.model.loss(batch, shares)


def shares_of_terms(
    model: VLAModel, batches: Sequence[Batch], *, device: torch.device, ranks: Ranks = ALONE
) -> list[dict[str, Tensor]]:
    """Return for each batch what `VLAModel.loss` takes, so that all batches count as one large one.

    A mean of the batches' means would give a step of a batch with much padding more weight than one of
    another; here each term of a loss weighs the same, in every batch of every process.

    Args:
        model: counts the terms of its losses.
        batches: those of one step of this process.
        device: of the shares.
        ranks: the processes that draw batches for the same step.

    Returns:
        By loss a scalar; the mean over the processes of their sums is 1.
    """
    counts = [model.num_terms(batch) for batch in batches]
    names = list(counts[0])
    table = torch.stack([torch.stack([count[name] for name in names]) for count in counts]).to(device)
    totals = sum_over_ranks(table.sum(dim=0), ranks).clamp(min=1)
    rows = (table * ranks.world_size / totals).unbind()
    return [dict(zip(names, row.unbind(), strict=True)) for row in rows]
