"""What heads over bins share: logits over ordered bins, their choice, and the loss.

Bins of one dimension are numbers in a row, which plain logits do not know: the logits here are those of a
discretized Gaussian plus unrestricted ones, and the targets may spread over neighboring bins.
"""

import itertools
from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.model.interface import AxisLabels, Tensors

LARGEST_LOGIT = 1e8  # beyond it, or with NaN, a model is broken: its actions must not reach a robot


class BinLogits(nn.Module):
    """Logits over ordered bins: a discretized Gaussian, which learns as fast as regression, plus residuals.

    The Gaussian's mean and width are read off the token, as in PixelCNN++ (arXiv:1701.05517); the residual
    logits make any other distribution possible. Bin centers count as -1 to 1.
    """

    def __init__(self, *, width: int, dims: int, num_bins: int) -> None:
        super().__init__()
        self.dims = dims
        self.residual = nn.Linear(width, dims * num_bins)
        self.mean = nn.Parameter(0.02 * torch.randn(dims, width))
        self.log_width = nn.Parameter(torch.zeros(dims, width))
        self.mean_bias = nn.Parameter(torch.zeros(dims))
        self.log_width_bias = nn.Parameter(torch.full((dims,), -0.7))  # a width of half the range
        nn.init.normal_(self.residual.weight, std=0.002)
        nn.init.zeros_(self.residual.bias)
        self.centers: Tensor
        self.register_buffer("centers", torch.linspace(-1, 1, num_bins), persistent=False)

    def axis_labels(self, dims: Sequence[Hashable], ids: Sequence[Hashable]) -> AxisLabels:
        """Return labels of the parameters; see `Part.axis_labels`.

        Args:
            dims: names of the dimensions.
            ids: names of the bins.
        """
        both = tuple(itertools.product(dims, ids))
        return {
            "residual.weight": (both, None),
            "residual.bias": (both,),
            **dict.fromkeys(("mean", "log_width"), (dims, None)),
            **dict.fromkeys(("mean_bias", "log_width_bias"), (dims,)),
        }

    def forward(self, tokens: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch dims bins"]:
        """Return the logits of each dimension."""
        wide = tokens.float()[..., None, :]  # products, not a Linear: autocast would round the mean to bf16
        mean = (wide * self.mean).sum(dim=-1) + self.mean_bias
        log_width = ((wide * self.log_width).sum(dim=-1) + self.log_width_bias).clamp(-4.5, 1.0)
        distance = (self.centers - mean[..., None]) * torch.exp(-log_width)[..., None]
        return self.residual(tokens).unflatten(-1, (self.dims, -1)) - 0.5 * distance.square()

    def of_one_dimension(self, tokens: Float[Tensor, "batch width"]) -> Float[Tensor, "batch bins"]:
        """Return the logits of tokens that stand for one dimension each."""
        return self(tokens)[:, 0]


def most_likely(logits: Float[Tensor, "*positions ids"]) -> Int[Tensor, "*positions"]:
    """Return the id of the largest logit, or -1, which decodes to an error, where logits are not finite."""
    peak = logits.amax(dim=-1)  # NaN if any logit is
    return torch.where(peak.abs() < LARGEST_LOGIT, logits.argmax(dim=-1), -1)


def keep_committed(committed: Int[Tensor, "*positions"], chosen: Int[Tensor, "*positions"]) -> Tensor:
    """Return what is committed where something is, else what was chosen."""
    return torch.where(committed >= 0, committed, chosen)


def closest_margin(
    logits: Float[Tensor, "batch time action ids"], is_choice: Bool[Tensor, "batch time action"]
) -> Float[Tensor, " batch"]:
    """Return by how much the closest of each sample's choices was won."""
    best = logits.topk(2, dim=-1).values
    margins = (best[..., 0] - best[..., 1]).masked_fill(~is_choice, torch.inf)
    return margins.flatten(1).amin(dim=1)


def smoothed_targets(*, num_bins: int, smoothing_bins: float) -> Float[Tensor, "bin bin"]:
    """Return for each true bin the target distribution: a Gaussian `smoothing_bins` wide.

    Neighboring bins mean nearly the same action, which one-hot targets do not say. 0 gives one-hot targets.
    """
    index = torch.arange(num_bins, dtype=torch.float32)
    if smoothing_bins > 0:
        kernel = torch.exp(-0.5 * ((index[:, None] - index[None]) / smoothing_bins) ** 2)
    else:
        kernel = torch.eye(num_bins)
    return kernel / kernel.sum(dim=-1, keepdim=True).clamp(min=1e-12)


def learned_steps(batch: Tensors) -> Bool[Tensor, "batch time"]:
    """Return which steps a head over bins learns: they exist and are not committed."""
    committed, valid = batch.get("committed"), batch["valid"]
    return valid if committed is None else valid & (committed[..., 0] < 0)


def bin_loss(
    logits: Float[Tensor, "batch time action bins"],
    bins: Int[Tensor, "batch time action"],
    valid: Bool[Tensor, "batch time"],
    targets: Float[Tensor, "bins bins"],
) -> dict[str, Tensor]:
    """Return the mean cross-entropy per action over existing steps, and the share of bins guessed right.

    Chunks that run past the end of an episode are padded; `valid` is False there, and such steps carry no
    loss.
    """
    wanted = targets[bins]  # [batch time action bins]
    logits = logits.float()
    cross_entropy = torch.logsumexp(logits, dim=-1) - (wanted * logits).sum(dim=-1)
    weight = valid.float()[..., None] / (valid.sum().clamp(min=1) * bins.shape[-1])
    accuracy = ((logits.argmax(dim=-1) == bins).float() * weight).sum()
    return {"loss": (cross_entropy * weight).sum(), "token_accuracy": accuracy}
