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

FORBIDDEN = -1e9  # added to a score or logit: probability 0, yet finite, as 0 * inf is NaN


def attention_bias(
    valid: Bool[Tensor, "batch total"], *, num_new: int, causal: bool, dtype: torch.dtype
) -> Float[Tensor, "batch 1 rows total"]:
    """Return what is added to the attention scores of the last `num_new` of these tokens.

    `rows` is 1 if all of them see the same, and `num_new` if each sees only those before it and itself.
    """
    bias = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    bias = bias.masked_fill(~valid, FORBIDDEN)[:, None, None]
    if not causal or num_new == 1:
        return bias
    total = valid.shape[1]
    rows = torch.arange(total - num_new, total, device=valid.device)
    later = torch.arange(total, device=valid.device) > rows[:, None]
    return bias.masked_fill(later, FORBIDDEN)
