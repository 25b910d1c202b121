"""Features that several parts of the model read numbers and words through."""

import itertools
from collections.abc import Hashable, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.model.transformer import RMSNorm

FREQUENCIES = (1.0, 2.0, 4.0, 8.0)  # of sines over [-1, 1] that tell near numbers apart
NUM_FEATURES = 1 + 2 * len(FREQUENCIES)  # of one number


def fourier_features(values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch features"]:
    """Return numbers in about [-1, 1] with their sines and cosines, `NUM_FEATURES` for each."""
    angles = torch.cat([values * (frequency * torch.pi) for frequency in FREQUENCIES], dim=-1)
    return torch.cat((values, angles.sin(), angles.cos()), dim=-1)


def feature_labels(names: Sequence[Hashable]) -> tuple[Hashable, ...]:
    """Return what each of the `fourier_features` of named numbers is of: which feature, and which number."""
    return tuple(itertools.product(range(NUM_FEATURES), names))


class InstructionEncoder(nn.Module):
    """Sums up an instruction in one vector: its words, and the phrases of three that stand out."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width=width)
        self.words = nn.Linear(width, width, bias=False)
        self.phrase = nn.Conv1d(width, width, kernel_size=3, padding=1)

    def forward(
        self, text: Float[Tensor, "batch text width"], valid: Bool[Tensor, "batch text"]
    ) -> Float[Tensor, "batch width"]:
        """Return the sum over words plus the maximum over phrases; padding is 0 and counts in neither.

        The sum is scaled to be about as large as the maximum.
        """
        text = self.norm(text)
        phrases = torch.relu(self.phrase(rearrange(text, "b n d -> b d n"))) * valid[:, None]
        return 0.7 * self.words(text).sum(dim=1) + phrases.amax(dim=-1)
