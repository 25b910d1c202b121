"""Multi-head attention, as plain matrix products on a CPU and as torch's fused kernel on a GPU.

On CPUs the fused attention of torch spends most of a bf16 training step in its backward pass; explicit
`softmax(q k^T) v` is 1.7 times faster for the short sequences here.
"""

import math

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
            mixed = torch.matmul(scores.softmax(dim=-1).to(v.dtype), v)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)")), (k, v)


def fuse_attention(model: nn.Module, device: torch.device) -> str:
    """Choose the attention of all modules for a device and return which it is, for a log."""
    fused = device.type == "cuda"
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused = fused
    return "fused attention" if fused else "attention as plain matrix products"
