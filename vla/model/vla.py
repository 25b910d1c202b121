"""The vision-language-action model: images, text ids and state in, logits over action bins out.

One trunk, two decodings (`decoding`):
  "parallel": one query token for each time step, all read in one pass (OpenVLA-OFT, arXiv:2502.19645); each
      query yields one categorical over bins for every action dimension.
  "autoregressive": one token for each time step and dimension, causal (RT-2, arXiv:2307.15818); action tokens
      share one embedding table with text and special ids.
The model receives sizes and arrays. It knows nothing of tokenizers, units, robots or files.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from vla.model.attention import KeyValue
from vla.model.image_tokenizer import ImageTokenizer
from vla.model.masks import suffix_bias
from vla.model.transformer import RMSNorm, Transformer

DECODINGS = ("parallel", "autoregressive")
PAD_ID = 0  # id of padding in the vocabulary
STATE_FREQUENCIES = (1.0, 2.0, 4.0, 8.0)
ILLEGAL = (
    -1e9
)  # logit of a bin that may not be used: probability 0, and finite, so that 0 * ILLEGAL is no NaN


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


class Prefix(NamedTuple):
    """What actions are decoded from."""

    cache: list[KeyValue]  # keys and values of each block
    situation: Tensor  # [batch 1 width] state, places, instruction in one; added to every action token


class PhraseEncoder(nn.Module):
    """Sums up an instruction in one vector: its words, and the phrases of three that stand out."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width=width)
        self.words = nn.Linear(width, width, bias=False)
        self.phrase = nn.Conv1d(width, width, kernel_size=3, padding=1)

    def forward(self, text: Float[Tensor, "batch text width"]) -> Float[Tensor, "batch width"]:
        """Return the sum over words, padding being 0, plus the maximum over phrases."""
        text = self.norm(text)
        phrases = torch.relu(self.phrase(rearrange(text, "b n d -> b d n"))).amax(dim=-1)
        return 0.7 * self.words(text).sum(dim=1) + phrases


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
        num_future_states: int = 0,
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
            "num_future_states": num_future_states,
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
        self.phrase_encoder = PhraseEncoder(width=width)
        self.token_embedding = nn.Embedding(vocab_size, width, padding_idx=PAD_ID)
        self.text_position = nn.Parameter(torch.randn(max_text_tokens, width) * 0.02)
        num_state_features = state_dim * (1 + 2 * len(STATE_FREQUENCIES))
        num_state_features += self.image_tokenizer.num_places + width
        self.state_tokenizer = nn.Sequential(
            nn.Linear(num_state_features, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.num_future_states, self.state_dim = num_future_states, state_dim
        if num_future_states:
            self.future_norm = RMSNorm(width=width)
            self.future_head = nn.Linear(width, num_future_states * state_dim)
        self.trunk = Transformer(width=width, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio)
        num_suffix = action_horizon * (1 if decoding == "parallel" else self.action_dim)
        self.suffix_position = nn.Parameter(torch.randn(num_suffix, width) * 0.02)
        head_dims = self.action_dim if decoding == "parallel" else 1
        self.action_head = BinHead(width=width, dims=head_dims, num_bins=num_bins)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.zeros_(self.token_embedding.weight[PAD_ID])  # padding says nothing
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
    ) -> Prefix:
        """Run images, text and state through the trunk and return what the suffix looks at."""
        text = self.token_embedding(text_ids)
        instruction = self.phrase_encoder(text)
        image_tokens, places = self.image_tokenizer(images, instruction)
        text_tokens = (text + self.text_position).to(image_tokens.dtype)
        angles = torch.cat([state * (frequency * torch.pi) for frequency in STATE_FREQUENCIES], dim=-1)
        features = torch.cat((state, angles.sin(), angles.cos()), dim=-1)
        features = torch.cat((features, 4.0 * places, instruction.float()), dim=-1)
        situation = self.state_tokenizer(features)[:, None].to(image_tokens.dtype)
        cache = self.trunk.read(torch.cat((image_tokens, text_tokens, situation), dim=1))
        return Prefix(cache=cache, situation=situation)

    def bin_logits(
        self, tokens: Float[Tensor, "batch suffix width"], *, first_position: int = 0
    ) -> Float[Tensor, "batch suffix dims bins"]:
        """Return logits over bins with every illegal bin at `ILLEGAL`.

        In parallel decoding `dims` is the action dimension and suffix is time. In autoregressive decoding
        `dims` is 1 and the suffix positions, counted from `first_position`, run over time and dimension.
        """
        logits = self.action_head(tokens)
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
        """Return teacher-forced logits over the bins of every action; see `forward_with_future`."""
        return self.forward_with_future(images, text_ids, state, bins)[0]

    def forward_with_future(
        self,
        images: UInt8[Tensor, "batch images h w 3"],
        text_ids: Int[Tensor, "batch text"],
        state: Float[Tensor, "batch state"],
        bins: Int[Tensor, "batch time action"],
    ) -> tuple[Float[Tensor, "batch time action bins"], Float[Tensor, "batch future state"] | None]:
        """Return teacher-forced logits over the bins of every action, and predicted later states if any.

        `bins` are the true action bins; only autoregressive decoding looks at them, each position at those
        before it.
        """
        prefix = self.read_prefix(images, text_ids, state)
        cache = prefix.cache
        future = self._future_states(prefix.situation) if self.num_future_states else None
        if self.decoding == "parallel":
            return self.parallel_logits(prefix), future
        ids = rearrange(bins, "b t a -> b (t a)")[:, :-1] + self.action_offset
        width = self.suffix_position.shape[-1]
        start = self.suffix_position.new_zeros(ids.shape[0], 1, width)
        suffix = (
            torch.cat((start, self.token_embedding(ids)), dim=1) + self.suffix_position + prefix.situation
        )
        bias = suffix_bias(
            num_prefix=cache[0][0].shape[2],
            num_suffix=suffix.shape[1],
            causal=True,
            dtype=cache[0][0].dtype,
            device=suffix.device,
        )
        tokens, _ = self.trunk.write(suffix.to(cache[0][0].dtype), cache, bias=bias)
        logits = self.bin_logits(tokens)
        return rearrange(logits, "b (t a) 1 v -> b t a v", a=self.action_dim), future

    def _future_states(self, situation: Float[Tensor, "b 1 width"]) -> Float[Tensor, "b future state"]:
        """Return normalised later states, read off the situation token before the trunk.

        Where the hand will be is a plainer function of picture and instruction than the next step; learning
        it teaches the image stem which object is meant. It is for training alone: nothing decodes it.
        """
        states = self.future_head(self.future_norm(situation))
        return rearrange(states, "b 1 (f s) -> b f s", s=self.state_dim)

    def parallel_logits(self, prefix: Prefix) -> Float[Tensor, "batch time action bins"]:
        """Return the logits of all actions in one pass from what `read_prefix` returned."""
        queries = prefix.situation + self.suffix_position.to(prefix.situation.dtype)
        tokens, _ = self.trunk.write(queries, prefix.cache)
        return self.bin_logits(tokens)
