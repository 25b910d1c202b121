"""Which token may attend to which: the prefix-LM mask of a vision-language-action sequence.

The prefix (images, text, state) is seen by everybody, except its padding, which nobody sees; what differs is
the suffix. Below, P is a prefix token that is padding.

    causal suffix (autoregressive)      bidirectional suffix (parallel decoding)

         p P p a a a                         p P p a a a
       p 1 0 1 0 0 0                       p 1 0 1 0 0 0
       P 1 0 1 0 0 0                       P 1 0 1 0 0 0
       p 1 0 1 0 0 0                       p 1 0 1 0 0 0
       a 1 0 1 1 0 0                       a 1 0 1 1 1 1
       a 1 0 1 1 1 0                       a 1 0 1 1 1 1
       a 1 0 1 1 1 1                       a 1 0 1 1 1 1
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

FORBIDDEN = -1e9  # added to a score or logit: probability 0, yet finite, as 0 * inf is NaN


def padding_bias(valid: Bool[Tensor, "batch n"], dtype: torch.dtype) -> Float[Tensor, "batch 1 1 n"]:
    """Return what is added to attention scores so that nobody attends to tokens that are not valid."""
    bias = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    return bias.masked_fill(~valid, FORBIDDEN)[:, None, None]


def suffix_bias(
    prefix: Float[Tensor, "batch 1 1 prefix"], *, num_suffix: int, causal: bool
) -> Float[Tensor, "batch 1 rows total"]:
    """Return the bias of suffix tokens over prefix and suffix, from that of the prefix.

    `rows` is 1 if all suffix tokens see the same, and the length of the suffix if it is causal.
    """
    bias = F.pad(prefix, (0, num_suffix))
    if not causal:
        return bias
    future = torch.ones(num_suffix, num_suffix, dtype=torch.bool, device=bias.device).triu(diagonal=1)
    hidden = F.pad(future, (prefix.shape[-1], 0))
    return bias.masked_fill(hidden, FORBIDDEN)
