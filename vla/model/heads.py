"""The parts of the model at its two ends: what sums up an instruction, and what names action bins.

Knows sizes only, no tokenizers and no units.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.model.transformer import RMSNorm


class PhraseEncoder(nn.Module):
    """Sums up an instruction in one vector: its words, and the phrases of three that stand out."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width=width)
        self.words = nn.Linear(width, width, bias=False)
        self.phrase = nn.Conv1d(width, width, kernel_size=3, padding=1)

    def forward(
        self, text: Float[Tensor, "batch text width"], valid: Bool[Tensor, "batch text"]
    ) -> Float[Tensor, "batch width"]:
        """Return the sum over words plus the maximum over phrases; padding is 0 and counts in neither."""
        text = self.norm(text)
        phrases = torch.relu(self.phrase(rearrange(text, "b n d -> b d n"))) * valid[:, None]
        return 0.7 * self.words(text).sum(dim=1) + phrases.amax(dim=-1)


class BinHead(nn.Module):
    """Logits over ordered bins: a discretised Gaussian, which learns as fast as regression, plus free logits.

    The Gaussian's mean and width are read off the token, as in PixelCNN++ (arXiv:1701.05517); the free logits
    make any other distribution possible. Bin centres count as -1 to 1.
    """

    def __init__(self, *, width: int, dims: int, num_bins: int) -> None:
        super().__init__()
        self.dims = dims
        self.free = nn.Linear(width, dims * num_bins)
        self.mean = nn.Parameter(0.02 * torch.randn(dims, width))
        self.log_width = nn.Parameter(torch.zeros(dims, width))
        self.mean_bias = nn.Parameter(torch.zeros(dims))
        self.log_width_bias = nn.Parameter(torch.full((dims,), -0.7))
        nn.init.normal_(self.free.weight, std=0.002)
        nn.init.zeros_(self.free.bias)
        self.centres: Tensor
        self.register_buffer("centres", torch.linspace(-1, 1, num_bins), persistent=False)

    def forward(self, tokens: Float[Tensor, "batch n width"]) -> Float[Tensor, "batch n dims bins"]:
        """Return the logits of each dimension."""
        wide = tokens.float()[..., None, :]  # products, not a Linear: autocast would round the mean to bf16
        mean = (wide * self.mean).sum(dim=-1) + self.mean_bias
        log_width = ((wide * self.log_width).sum(dim=-1) + self.log_width_bias).clamp(-4.5, 1.0)
        distance = (self.centres - mean[..., None]) * torch.exp(-log_width)[..., None]
        return self.free(tokens).unflatten(-1, (self.dims, -1)) - 0.5 * distance.square()
