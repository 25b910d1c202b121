"""Multi-head attention, as plain matrix products on a CPU and as torch's fused kernel on a GPU.

On CPUs the fused attention of torch spends most of a bf16 training step in its backward pass; explicit
`softmax(q k^T) v` is 1.7 times faster for the short sequences here.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

KeyValue = tuple[Tensor, Tensor]  # keys and values, each [batch heads seen head_dim]


class Attention(nn.Module):
    """Attention from a block of new tokens to the tokens already seen and to themselves.

    Args:
        width: of a token.
        num_heads: of them.
        head_dim: width of a head; None divides `width` among them. An expert that attends to the cache of
            another transformer takes that one's.
    """

    def __init__(self, *, width: int, num_heads: int, head_dim: int | None = None) -> None:
        super().__init__()
        if head_dim is None and width % num_heads:
            raise ValueError(f"width {width} is no multiple of num_heads {num_heads}; change conf/model")
        self.num_heads, self.head_dim = num_heads, head_dim or width // num_heads
        self.scale = 1.0 / math.sqrt(self.head_dim)
        self.fused = False
        self.observer: Callable[[Tensor], None] | None = None  # gets the weights, unless fused
        self.qkv = nn.Linear(width, 3 * num_heads * self.head_dim, bias=False)
        self.out = nn.Linear(num_heads * self.head_dim, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch new width"],
        *,
        past: KeyValue | None = None,
        bias: Float[Tensor, "#batch 1 rows total"] | None = None,
    ) -> tuple[Float[Tensor, "batch new width"], KeyValue]:
        """Return the attended tokens, and the keys and values of everything seen up to now."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        if past is not None:
            k = torch.cat((past[0], k), dim=2)
            v = torch.cat((past[1], v), dim=2)
        if self.fused:
            mask = None if bias is None else bias.to(q.dtype).expand(-1, -1, q.shape[2], -1)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        else:
            scores = torch.matmul(q * self.scale, k.transpose(-2, -1))
            if bias is not None:
                scores = scores + bias.to(scores.dtype)
            weights = scores.softmax(dim=-1)
            if self.observer is not None:
                self.observer(weights)
            mixed = torch.matmul(weights.to(v.dtype), v)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)")), (k, v)


def fuse_attention(model: nn.Module, device: torch.device) -> str:
    """Choose the attention of all modules for a device and return which it is, for a log."""
    fused = device.type == "cuda"
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused = fused
    return "fused attention" if fused else "attention as plain matrix products"


@contextmanager
def record_attention(
    model: nn.Module,
) -> Iterator[list[tuple[str, Float[Tensor, "_ _ _ _"]]]]:
    """Collect the weights of every attention that runs meanwhile, in the order in which they run.

    Keys are all tokens seen so far, the prefix first; the weights of each query sum to 1. As `Transformer`
    skips the last block's work for the prefix, that block shows the action tokens' attention alone.
    One thread at a time: the model keeps its ordinary way of attention only outside of this block.

    Yields:
        Name of the module, and its weights [batch heads queries keys].
    """
    found: list[tuple[str, Tensor]] = []
    modules = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    before = {name: module.fused for name, module in modules.items()}

    def keep(name: str, weights: Tensor) -> None:
        found.append((name, weights.detach()))

    for name, module in modules.items():
        module.fused, module.observer = False, partial(keep, name)
    try:
        yield found
    finally:
        for name, module in modules.items():
            module.fused, module.observer = before[name], None
