"""A pre-norm transformer trunk in two passes: first the prefix, then a suffix that looks back at it.

Running the suffix apart gives prefix-LM attention without a mask over the prefix, skips the last block's work
for prefix tokens whose output nobody reads, and is the key-value cache of autoregressive decoding.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vla.model.attention import Attention, KeyValue


class RMSNorm(nn.Module):
    """Root-mean-square normalization with a learned gain (arXiv:1910.07467)."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "batch n width"]) -> Float[Tensor, "batch n width"]:
        """Scale each token to unit root mean square, then by the gain."""
        mean_square = torch.linalg.vecdot(x, x)[..., None].float() / x.shape[-1]
        inverse = torch.rsqrt(mean_square + 1e-6).to(x.dtype)
        return x * inverse * self.gain.to(x.dtype)  # in this order no gradient is a large tensor in fp32


class Block(nn.Module):
    """Attention and a squared-ReLU MLP (arXiv:2109.08668), each on a residual branch."""

    def __init__(self, *, width: int, num_heads: int, mlp_ratio: int, head_dim: int | None) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width=width)
        self.attention = Attention(width=width, num_heads=num_heads, head_dim=head_dim)
        self.mlp_norm = RMSNorm(width=width)
        self.up = nn.Linear(width, mlp_ratio * width, bias=False)
        self.down = nn.Linear(mlp_ratio * width, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch new width"],
        *,
        past: KeyValue | None = None,
        bias: Float[Tensor, "#batch 1 rows total"] | None = None,
    ) -> tuple[Float[Tensor, "batch new width"], KeyValue]:
        """Return the new tokens after this block, and its keys and values so far."""
        mixed, seen = self.attention(self.attention_norm(x), past=past, bias=bias)
        x = x + mixed
        return x + self.down(F.relu(self.up(self.mlp_norm(x)), inplace=True).square()), seen

    def keys_values(self, x: Float[Tensor, "batch new width"]) -> KeyValue:
        """Return only keys and values, for the last block, whose prefix outputs nobody reads."""
        attention = self.attention
        weight = attention.qkv.weight[attention.num_heads * attention.head_dim :]
        k, v = F.linear(self.attention_norm(x), weight).chunk(2, dim=-1)
        return (
            k.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2),
            v.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2),
        )


class Transformer(nn.Module):
    """`depth` blocks; `prefill` takes the prefix in, `extend` runs tokens that look back at it."""

    def __init__(
        self, *, width: int, depth: int, num_heads: int, mlp_ratio: int = 4, head_dim: int | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width=width, num_heads=num_heads, mlp_ratio=mlp_ratio, head_dim=head_dim)
            for _ in range(depth)
        )
        self.final_norm = RMSNorm(width=width)
        for block in self.blocks:
            assert isinstance(block, Block)
            for projection in (block.attention.out, block.down):
                nn.init.zeros_(projection.weight)  # each block starts as the identity

    def prefill(
        self, prefix: Float[Tensor, "batch prefix width"], *, bias: Float[Tensor, "#batch 1 1 prefix"]
    ) -> list[KeyValue]:
        """Run the prefix, every token seeing all that `bias` allows; return each block's keys and values."""
        cache: list[KeyValue] = []
        for block in self.blocks[:-1]:
            prefix, seen = block(prefix, bias=bias)
            cache.append(seen)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        cache.append(last.keys_values(prefix))
        return cache

    def extend(
        self,
        suffix: Float[Tensor, "batch suffix width"],
        cache: list[KeyValue],
        *,
        bias: Float[Tensor, "#batch 1 rows total"],
    ) -> tuple[Float[Tensor, "batch suffix width"], list[KeyValue]]:
        """Run suffix tokens that see the cache and one another under `bias`; return them normalized."""
        grown: list[KeyValue] = []
        for block, past in zip(self.blocks, cache, strict=True):
            suffix, seen = block(suffix, past=past, bias=bias)
            grown.append(seen)
        return self.final_norm(suffix), grown
