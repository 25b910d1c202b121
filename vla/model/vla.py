"""The vision-language-action model: images, text ids and state in, logits over action bins out.

One trunk, two decodings (`decoding`):
  "parallel": one query token for each time step, all read in one pass (OpenVLA-OFT, arXiv:2502.19645); each
      query yields one categorical over bins for every action dimension.
  "autoregressive": one token for each time step and dimension, causal (RT-2, arXiv:2307.15818); action tokens
      share one embedding table with text and special ids.
The model receives sizes and arrays. It knows nothing of tokenizers, units, robots or files.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from vla.model.attention import KeyValue
from vla.model.heads import BinHead, PhraseEncoder
from vla.model.image_tokenizer import ImageTokenizer
from vla.model.masks import FORBIDDEN, padding_bias, suffix_bias
from vla.model.sizes import ModelSizes
from vla.model.transformer import RMSNorm, Transformer

PAD_ID = 0  # id of padding in the vocabulary
FREQUENCIES = (1.0, 2.0, 4.0, 8.0)  # waves over [-1, 1] that tell near numbers apart
WAVES = 1 + 2 * len(FREQUENCIES)  # features of one number
NO_BIN = -1  # in committed bins: nothing was promised there


class Prefix(NamedTuple):
    """What actions are decoded from."""

    cache: list[KeyValue]  # keys and values of each block
    situation: Tensor  # [batch 1 width] state, places, instruction in one; added to every action token
    bias: Tensor  # [batch 1 1 prefix] hides padding from whoever attends to the cache


def waves(values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch features"]:
    """Return numbers in about [-1, 1] with their sines and cosines, `WAVES` features for each."""
    angles = torch.cat([values * (frequency * torch.pi) for frequency in FREQUENCIES], dim=-1)
    return torch.cat((values, angles.sin(), angles.cos()), dim=-1)


class VLAModel(nn.Module):
    """A prefix-LM over image, text and state tokens with a suffix of action tokens or action queries."""

    def __init__(self, sizes: ModelSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.decoding, self.num_bins, self.action_offset = sizes.decoding, sizes.num_bins, sizes.action_offset
        self.action_dim, self.action_horizon = sizes.action_dim, sizes.action_horizon
        width, first, second = sizes.width, *sizes.stem_channels
        self.image_tokenizer = ImageTokenizer(
            num_images=sizes.num_images,
            image_size=sizes.image_size,
            width=width,
            stem_channels=(first, second),
            patch_size=sizes.patch_size,
        )
        self.phrase_encoder = PhraseEncoder(width=width)
        self.token_embedding = nn.Embedding(sizes.vocab_size, width, padding_idx=PAD_ID)
        self.text_position = nn.Parameter(torch.randn(sizes.max_text_tokens, width) * 0.02)
        num_state_features = sizes.state_dim * WAVES + self.image_tokenizer.num_places + width
        self.state_tokenizer = nn.Sequential(
            nn.Linear(num_state_features, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.num_future_states, self.state_dim = sizes.num_future_states, sizes.state_dim
        if sizes.num_future_states:
            self.future_norm = RMSNorm(width=width)
            self.future_head = nn.Linear(width, sizes.num_future_states * sizes.state_dim)
        self.trunk = Transformer(
            width=width, depth=sizes.depth, num_heads=sizes.num_heads, mlp_ratio=sizes.mlp_ratio
        )
        is_parallel = sizes.decoding == "parallel"
        num_suffix = sizes.action_horizon * (1 if is_parallel else sizes.action_dim)
        self.suffix_position = nn.Parameter(torch.randn(num_suffix, width) * 0.02)
        head_dims = sizes.action_dim if is_parallel else 1
        if sizes.max_committed and is_parallel:
            self.committed_tokenizer = nn.Linear(self.action_dim * WAVES, width)
        self.action_head = BinHead(width=width, dims=head_dims, num_bins=sizes.num_bins)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.zeros_(self.token_embedding.weight[PAD_ID])  # padding says nothing
        legal = torch.arange(sizes.num_bins)[None] < torch.tensor(sizes.bins_per_dim)[:, None]
        self.illegal_bias: Tensor
        self.register_buffer(
            "illegal_bias", torch.zeros(legal.shape).masked_fill(~legal, FORBIDDEN), persistent=False
        )

    def num_parameters(self) -> int:
        """Count all weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def read_prefix(
        self,
        images: UInt8[Tensor, "batch images h w 3"],
        text_ids: Int[Tensor, "batch text"],
        state: Float[Tensor, "batch state"],
    ) -> Prefix:
        """Run images, text and state through the trunk and return what the suffix looks at.

        `text` may be shorter than `max_text_tokens`: padding changes nothing, and costs time.
        """
        text, has_word = self.token_embedding(text_ids), text_ids != PAD_ID
        instruction = self.phrase_encoder(text, has_word)
        image_tokens, places = self.image_tokenizer(images, instruction)
        text_tokens = (text + self.text_position[: text_ids.shape[1]]).to(image_tokens.dtype)
        features = torch.cat((waves(state), 4.0 * places, instruction.float()), dim=-1)
        situation = self.state_tokenizer(features)[:, None].to(image_tokens.dtype)
        seen = torch.ones_like(has_word[:, :1])
        valid = torch.cat((seen.expand(-1, image_tokens.shape[1]), has_word, seen), dim=1)
        bias = padding_bias(valid, image_tokens.dtype)
        cache = self.trunk.read(torch.cat((image_tokens, text_tokens, situation), dim=1), bias=bias)
        return Prefix(cache=cache, situation=situation, bias=bias)

    def bin_logits(
        self, tokens: Float[Tensor, "batch suffix width"], *, first_position: int = 0
    ) -> Float[Tensor, "batch suffix dims bins"]:
        """Return logits over bins with every illegal bin at `FORBIDDEN`.

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
        *,
        num_committed: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch time action bins"], Float[Tensor, "batch future state"] | None]:
        """Return teacher-forced logits over the bins of every action, and predicted later states if any.

        `bins` are the true action bins. Autoregressive decoding looks at them, each position at those before
        it; parallel decoding only at the first `num_committed` steps of them.
        """
        prefix = self.read_prefix(images, text_ids, state)
        cache = prefix.cache
        future = self._future_states(prefix.situation) if self.num_future_states else None
        if self.decoding == "parallel":
            if num_committed is not None:
                steps = torch.arange(bins.shape[1], device=bins.device)
                bins = bins.masked_fill((steps >= num_committed[:, None])[..., None], NO_BIN)
                return self.parallel_logits(prefix, bins), future
            return self.parallel_logits(prefix), future
        ids = rearrange(bins, "b t a -> b (t a)")[:, :-1] + self.action_offset
        width = self.suffix_position.shape[-1]
        start = self.suffix_position.new_zeros(ids.shape[0], 1, width)
        suffix = (
            torch.cat((start, self.token_embedding(ids)), dim=1) + self.suffix_position + prefix.situation
        )
        bias = suffix_bias(prefix.bias, num_suffix=suffix.shape[1], causal=True)
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

    def parallel_logits(
        self, prefix: Prefix, committed: Int[Tensor, "batch time action"] | None = None
    ) -> Float[Tensor, "batch time action bins"]:
        """Return the logits of all actions in one pass from what `read_prefix` returned.

        `committed` holds the bins that are promised already and `NO_BIN` from there on. Training with them
        is real-time chunking without any cost at inference (arXiv:2512.05964).
        """
        queries = prefix.situation + self.suffix_position.to(prefix.situation.dtype)
        if committed is not None and self.sizes.max_committed:
            known = (committed >= 0).to(queries.dtype)
            features = waves(self.action_head.centres[committed.clamp(min=0)])
            queries = queries + self.committed_tokenizer(features).to(queries.dtype) * known[..., :1]
        bias = suffix_bias(prefix.bias, num_suffix=queries.shape[1], causal=False)
        tokens, _ = self.trunk.write(queries, prefix.cache, bias=bias)
        return self.bin_logits(tokens)
