"""What training minimises: cross-entropy over action bins, with targets that may be smoothed over near bins.

Knows nothing of batches, models or units.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def bin_targets(
    *, bins_per_dim: list[int], num_bins: int, smoothing_bins: float
) -> Float[Tensor, "dim bin bin"]:
    """Return for each dimension and true bin the target distribution: a Gaussian `smoothing_bins` wide.

    Neighbouring bins mean nearly the same action, which one-hot targets do not say. 0 gives one-hot targets.
    Illegal bins, those at or above `bins_per_dim` of a dimension, get no mass.
    """
    index = torch.arange(num_bins, dtype=torch.float32)
    if smoothing_bins > 0:
        kernel = torch.exp(-0.5 * ((index[:, None] - index[None]) / smoothing_bins) ** 2)
    else:
        kernel = torch.eye(num_bins)
    legal = index[None] < torch.tensor(bins_per_dim)[:, None]
    targets = kernel[None] * legal[:, None]
    return targets / targets.sum(dim=-1, keepdim=True).clamp(min=1e-12)


def action_token_loss(
    logits: Float[Tensor, "batch time action bins"],
    bins: Int[Tensor, "batch time action"],
    valid: Bool[Tensor, "batch time"],
    targets: Float[Tensor, "action bins bins"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross-entropy per action token over the steps that exist, and the share of tokens guessed right.

    Chunks that run past the end of an episode are padded; `valid` is False there, and such steps carry no
    loss.
    """
    dims = torch.arange(bins.shape[-1], device=bins.device)
    wanted = targets[dims, bins]  # [batch time action bins]
    logits = logits.float()
    cross_entropy = torch.logsumexp(logits, dim=-1) - (wanted * logits).sum(dim=-1)
    weight = valid.float()[..., None] / (valid.sum().clamp(min=1) * bins.shape[-1])
    accuracy = ((logits.argmax(dim=-1) == bins).float() * weight).sum()
    return (cross_entropy * weight).sum(), accuracy


def future_state_loss(
    predicted: Float[Tensor, "batch future state"], states: Float[Tensor, "batch future state"]
) -> Float[Tensor, ""]:
    """Mean absolute error of later states, in normalised units."""
    return (predicted.float() - states).abs().mean()
