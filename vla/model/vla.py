"""The vision-language-action model: images, text ids and state in, logits over action bins out.

One trunk, two decodings (`decoding`):
  "parallel": one query token for each time step, all read in one pass (OpenVLA-OFT, arXiv:2502.19645); each
      query yields one categorical over bins for every action dimension.
  "autoregressive": one token for each time step and dimension, causal (RT-2, arXiv:2307.15818); action tokens
      share one embedding table with text and special ids.
The model receives sizes and arrays. It knows nothing of tokenizers, units, robots or files.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from vla.model.attention import KeyValue
from vla.model.image_tokenizer import ImageTokenizer
from vla.model.masks import suffix_bias
from vla.model.transformer import Transformer

DECODINGS = ("parallel", "autoregressive")
STATE_FREQUENCIES = (1.0, 2.0, 4.0, 8.0)
ILLEGAL = (
    -1e9
)  # logit of a bin that may not be used: probability 0, and finite, so that 0 * ILLEGAL is no NaN


class VLAModel(nn.Module):
    """A prefix-LM over image, text and state tokens with a suffix of action tokens or action queries.

    Args are sizes: `vocab_size` of the shared id space, `num_bins` of an action dimension, `action_offset`,
    the id of bin 0, `bins_per_dim`, how many bins each dimension may use, `num_images` frames (frames x
    cameras), `stem_channels` of the image stem.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        num_bins: int,
        action_offset: int,
        bins_per_dim: list[int],
        action_horizon: int,
        num_images: int,
        image_size: int,
        state_dim: int,
        max_text_tokens: int,
        width: int = 256,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: int = 4,
        stem_channels: Sequence[int] = (64, 128),
        patch_size: int = 16,
        decoding: str = "parallel",
    ) -> None:
        super().__init__()
        if decoding not in DECODINGS:
            raise ValueError(f"decoding {decoding!r} is none of {DECODINGS}; change conf/model")
        if not all(1 <= bins <= num_bins for bins in bins_per_dim):
            raise ValueError(f"bins_per_dim {bins_per_dim} must lie in [1, num_bins={num_bins}]")
        self._hyperparameters: dict[str, Any] = {
            "vocab_size": vocab_size,
            "num_bins": num_bins,
            "action_offset": action_offset,
            "bins_per_dim": list(bins_per_dim),
            "action_horizon": action_horizon,
            "num_images": num_images,
            "image_size": image_size,
            "state_dim": state_dim,
            "max_text_tokens": max_text_tokens,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "stem_channels": list(stem_channels),
            "patch_size": patch_size,
            "decoding": decoding,
        }
        self.decoding, self.num_bins, self.action_offset = decoding, num_bins, action_offset
        self.action_dim, self.action_horizon = len(bins_per_dim), action_horizon
        if len(stem_channels) != 2:
            raise ValueError(f"stem_channels {list(stem_channels)} must be two numbers; change conf/model")
        first, second = stem_channels
        self.image_tokenizer = ImageTokenizer(
            num_images=num_images,
            image_size=image_size,
            width=width,
            stem_channels=(first, second),
            patch_size=patch_size,
        )
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.text_position = nn.Parameter(torch.randn(max_text_tokens, width) * 0.02)
        self.state_tokenizer = nn.Sequential(
            nn.Linear(state_dim * (1 + 2 * len(STATE_FREQUENCIES)), width), nn.ReLU(), nn.Linear(width, width)
        )
        self.trunk = Transformer(width=width, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio)
        num_suffix = action_horizon * (1 if decoding == "parallel" else self.action_dim)
        self.suffix_position = nn.Parameter(torch.randn(num_suffix, width) * 0.02)
        head_outputs = num_bins * (self.action_dim if decoding == "parallel" else 1)
        self.action_head = nn.Linear(width, head_outputs)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.action_head.weight, std=0.02)
        nn.init.zeros_(self.action_head.bias)
        legal = torch.arange(num_bins)[None] < torch.tensor(bins_per_dim)[:, None]
        self.illegal_bias: Tensor
        self.register_buffer(
            "illegal_bias", torch.zeros(legal.shape).masked_fill(~legal, ILLEGAL), persistent=False
        )

    def hyperparameters(self) -> dict[str, Any]:
        """Return the constructor arguments as JSON-ready data; `VLAModel(**these)` rebuilds the model."""
        return dict(self._hyperparameters)

    def num_parameters(self) -> int:
        """Count all weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def read_prefix(
        self,
        images: UInt8[Tensor, "batch images h w 3"],
        text_ids: Int[Tensor, "batch text"],
        state: Float[Tensor, "batch state"],
    ) -> list[KeyValue]:
        """Run images, text and state through the trunk and return the cache that the suffix looks at."""
        image_tokens = self.image_tokenizer(images)
        text_tokens = (self.token_embedding(text_ids) + self.text_position).to(image_tokens.dtype)
        angles = torch.cat([state * (frequency * torch.pi) for frequency in STATE_FREQUENCIES], dim=-1)
        features = torch.cat((state, angles.sin(), angles.cos()), dim=-1)
        state_token = self.state_tokenizer(features)[:, None].to(image_tokens.dtype)
        return self.trunk.read(torch.cat((image_tokens, text_tokens, state_token), dim=1))

    def bin_logits(
        self, tokens: Float[Tensor, "batch suffix width"], *, first_position: int = 0
    ) -> Float[Tensor, "batch suffix dims bins"]:
        """Return logits over bins with every illegal bin at `ILLEGAL`.

        In parallel decoding `dims` is the action dimension and suffix is time. In autoregressive decoding
        `dims` is 1 and the suffix positions, counted from `first_position`, run over time and dimension.
        """
        logits = self.action_head(tokens).unflatten(-1, (-1, self.num_bins))
        if self.decoding == "parallel":
            return logits + self.illegal_bias.to(logits.dtype)
        positions = torch.arange(tokens.shape[1], device=tokens.device) + first_position
        return logits + self.illegal_bias[positions % self.action_dim][:, None].to(logits.dtype)

    def forward(
        self,
        images: UInt8[Tensor, "batch images h w 3"],
        text_ids: Int[Tensor, "batch text"],
        state: Float[Tensor, "batch state"],
        bins: Int[Tensor, "batch time action"],
    ) -> Float[Tensor, "batch time action bins"]:
        """Return teacher-forced logits over the bins of every action.

        `bins` are the true action bins; only autoregressive decoding looks at them, each position at those
        before it.
        """
        cache = self.read_prefix(images, text_ids, state)
        if self.decoding == "parallel":
            return self.parallel_logits(cache, batch=images.shape[0])
        ids = rearrange(bins, "b t a -> b (t a)")[:, :-1] + self.action_offset
        width = self.suffix_position.shape[-1]
        start = self.suffix_position.new_zeros(ids.shape[0], 1, width)
        suffix = torch.cat((start, self.token_embedding(ids)), dim=1) + self.suffix_position
        bias = suffix_bias(
            num_prefix=cache[0][0].shape[2],
            num_suffix=suffix.shape[1],
            causal=True,
            dtype=cache[0][0].dtype,
            device=suffix.device,
        )
        tokens, _ = self.trunk.write(suffix.to(cache[0][0].dtype), cache, bias=bias)
        logits = self.bin_logits(tokens)
        return rearrange(logits, "b (t a) 1 v -> b t a v", a=self.action_dim)

    def parallel_logits(
        self, cache: list[KeyValue], *, batch: int
    ) -> Float[Tensor, "batch time action bins"]:
        """Return the logits of all actions in one pass from the cache of `read_prefix`."""
        queries = self.suffix_position.to(cache[0][0].dtype).expand(batch, -1, -1)
        tokens, _ = self.trunk.write(queries, cache)
        return self.bin_logits(tokens)
