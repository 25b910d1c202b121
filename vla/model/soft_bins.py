"""Numbers as distributions over bins: what lies between two is shared by both (C51, arXiv:1707.06887).

A classifier over bins may be unsure between two places, where a regression would name the middle of them.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def soft_bin_loss(
    logits: Float[Tensor, "*terms bins"], places: Float[Tensor, " *terms"], counts: Bool[Tensor, " *terms"]
) -> Float[Tensor, ""]:
    """Return the mean divergence of the predicted distributions from the right ones [nats], 0 at best.

    Args:
        logits: of the bins.
        places: where each number lies between the middles of the first bin, 0, and of the last one,
            bins - 1; what lies beyond counts as there.
        counts: False for terms that are left out; without any the loss is 0.
    """
    last = logits.shape[-1] - 1
    places = places.clamp(0, last)
    lower = places.floor().clamp(max=last - 1)
    share = places - lower
    index = lower.long()[..., None]
    log_probabilities = logits.float().log_softmax(dim=-1)
    below, above = (log_probabilities.gather(-1, index + step)[..., 0] for step in (0, 1))
    certainty = torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)
    divergence = certainty - (1 - share) * below - share * above
    return (divergence * counts).sum() / counts.sum().clamp(min=1)


def expected_place(logits: Float[Tensor, "*terms bins"]) -> Float[Tensor, " *terms"]:
    """Return the mean place under the predicted distributions, in [0, bins - 1]."""
    numbers = torch.arange(logits.shape[-1], dtype=torch.float32, device=logits.device)
    return (logits.float().softmax(dim=-1) * numbers).sum(dim=-1)
