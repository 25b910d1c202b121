"""Greedy decoding of action bins, in one pass or token by token with a key-value cache.

Illegal bins have probability 0 at every position, so no sequence can be malformed. Written without
data-dependent control flow, so that both decodings export to one graph. Knows nothing of units.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vla.model.masks import suffix_bias
from vla.model.vla import VLAModel

LARGEST_LOGIT = 1e8  # beyond it, or with NaN, a model is broken: its actions must not reach a robot


def most_likely_bins(logits: Float[Tensor, "*positions bins"]) -> Int[Tensor, "*positions"]:
    """Return the bin of the largest logit, or -1, which decodes to an error, where logits are not finite."""
    peak = logits.amax(dim=-1)  # NaN if any logit is
    return torch.where(peak.abs() < LARGEST_LOGIT, logits.argmax(dim=-1), -1)


def keep_committed(committed: Int[Tensor, "*positions"], chosen: Int[Tensor, "*positions"]) -> Tensor:
    """Return what is committed where something is, else what was chosen."""
    return torch.where(committed >= 0, committed, chosen)


def generate(
    model: VLAModel,
    images: UInt8[Tensor, "batch images h w 3"],
    text_ids: Int[Tensor, "batch text"],
    state: Float[Tensor, "batch state"],
    committed: Int[Tensor, "batch time action"] | None = None,
) -> Int[Tensor, "batch time action"]:
    """Return the most likely bin of every action, in [0, bins_per_dim) of its dimension.

    `committed` holds bins that are promised to the robot already, `NO_BIN` elsewhere; they are returned as
    they are, and the others follow on from them (arXiv:2506.07339, for tokens by forced decoding).
    """
    prefix = model.read_prefix(images, text_ids, state)
    if model.decoding == "parallel":
        chosen = most_likely_bins(model.parallel_logits(prefix, committed))
        return chosen if committed is None else keep_committed(committed, chosen)
    forced = None if committed is None else rearrange(committed, "b t a -> b (t a)")
    cache = prefix.cache
    token = torch.zeros_like(model.suffix_position[:1]).expand(images.shape[0], 1, -1)
    all_chosen: list[Tensor] = []
    for position in range(model.action_horizon * model.action_dim):
        suffix = (token + model.suffix_position[position] + prefix.situation).to(cache[0][0].dtype)
        bias = suffix_bias(prefix.bias, num_suffix=position + 1, causal=False)
        tokens, cache = model.trunk.write(suffix, cache, bias=bias)
        bins = most_likely_bins(model.bin_logits(tokens, first_position=position)[:, 0, 0])
        if forced is not None:
            bins = keep_committed(forced[:, position], bins)
        all_chosen.append(bins)
        token = model.token_embedding(bins[:, None] + model.action_offset)
    return rearrange(torch.stack(all_chosen, dim=1), "b (t a) -> b t a", a=model.action_dim)
