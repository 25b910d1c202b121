"""Which token may look at which: the prefix-LM mask of a vision-language-action sequence.

Knows only lengths. The prefix (images, text, state) is seen by everybody; what differs is the suffix.

    causal suffix (autoregressive)      bidirectional suffix (parallel decoding)

         p p p a a a                         p p p a a a
       p 1 1 1 0 0 0                       p 1 1 1 0 0 0
       p 1 1 1 0 0 0                       p 1 1 1 0 0 0
       p 1 1 1 0 0 0                       p 1 1 1 0 0 0
       a 1 1 1 1 0 0                       a 1 1 1 1 1 1
       a 1 1 1 1 1 0                       a 1 1 1 1 1 1
       a 1 1 1 1 1 1                       a 1 1 1 1 1 1
"""

import torch
from jaxtyping import Float
from torch import Tensor


def suffix_bias(
    *, num_prefix: int, num_suffix: int, causal: bool, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "suffix total"]:
    """Additive attention bias of the suffix rows: 0 where a suffix token may look, -inf where it may not.

    The prefix rows need no bias, because the transformer runs them over the prefix alone.
    """
    bias = torch.zeros(num_suffix, num_prefix + num_suffix, dtype=dtype, device=device)
    if causal:
        future = torch.ones(num_suffix, num_suffix, dtype=torch.bool, device=device).triu(diagonal=1)
        bias[:, num_prefix:] = torch.zeros_like(bias[:, num_prefix:]).masked_fill(future, float("-inf"))
    return bias
