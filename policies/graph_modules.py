"""Parts of the model written so that a graph of them has few nodes: the same weights, the same numbers.

A runtime of graphs spends about a microsecond on each node, and autoregressive decoding runs all of them for
every token. Training keeps its own modules, which are written to be read; whether both agree is checked by
every export.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vla.model.attention import Attention, KeyValue
from vla.model.heads.bins import BinLogits
from vla.model.transformer import RMSNorm
from vla.model.vla import VLAModel


class GraphNorm(nn.Module):
    """`RMSNorm` in the order of operations that runtimes recognize and run as one."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.gain = norm.gain

    def forward(self, x: Float[Tensor, "batch n width"]) -> Float[Tensor, "batch n width"]:
        """Scale each token to unit root mean square, then by the gain."""
        return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * self.gain


class GraphAttention(nn.Module):
    """`Attention` with its heads split in one go; for a single new token nothing is transposed."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.scale = attention.scale
        self.qkv, self.out = attention.qkv, attention.out

    def forward(
        self,
        x: Float[Tensor, "batch new width"],
        *,
        past: KeyValue | None = None,
        bias: Float[Tensor, "#batch 1 rows total"] | None = None,
    ) -> tuple[Float[Tensor, "batch new width"], KeyValue]:
        """Return the attended tokens, and the keys and values of everything seen up to now."""
        num_new = x.shape[1]
        if num_new == 1:
            heads = self.qkv(x).reshape(-1, 3 * self.num_heads, 1, self.head_dim)
        else:
            heads = self.qkv(x).reshape(-1, num_new, 3 * self.num_heads, self.head_dim).transpose(1, 2)
        q, k, v = heads.split(self.num_heads, dim=1)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        scores = torch.matmul(q * self.scale, k.transpose(-2, -1))
        scores = scores if bias is None else scores + bias
        mixed = torch.matmul(scores.softmax(dim=-1), v)
        mixed = mixed if num_new == 1 else mixed.transpose(1, 2)
        return self.out(mixed.reshape(-1, num_new, self.num_heads * self.head_dim)), (k, v)


class GraphBinLogits(nn.Module):
    """`BinLogits` with all that it reads off a token in one matrix product."""

    def __init__(self, head: BinLogits) -> None:
        super().__init__()
        self.dims, self.num_bins = head.dims, head.centers.shape[0]
        self.weight = nn.Parameter(torch.cat((head.residual.weight, head.mean, head.log_width)))
        self.bias = nn.Parameter(torch.cat((head.residual.bias, head.mean_bias, head.log_width_bias)))
        self.centers: Tensor
        self.register_buffer("centers", head.centers, persistent=False)

    def forward(self, tokens: Float[Tensor, "batch n width"]) -> Float[Tensor, "batch n dims bins"]:
        """Return the logits of each dimension."""
        residual, mean, log_width = self._read(tokens)
        residual = residual.unflatten(-1, (self.dims, self.num_bins))
        return _with_gaussian(residual, mean[..., None], log_width[..., None], self.centers)

    def of_one_dimension(self, tokens: Float[Tensor, "batch width"]) -> Float[Tensor, "batch bins"]:
        """Return the logits of tokens that stand for one dimension each."""
        return _with_gaussian(*self._read(tokens), self.centers)

    def _read(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sizes = (self.dims * self.num_bins, self.dims, self.dims)
        residual, mean, log_width = F.linear(tokens, self.weight, self.bias).split(sizes, dim=-1)
        return residual, mean, log_width


def _with_gaussian(residual: Tensor, mean: Tensor, log_width: Tensor, centers: Tensor) -> Tensor:
    return residual - 0.5 * ((centers - mean) * torch.exp(-log_width.clamp(-4.5, 1.0))).square()


def graph_friendly(model: VLAModel) -> VLAModel:
    """Return a copy of a model, in evaluation mode, with these modules in the place of its own."""
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            match child:
                case RMSNorm():
                    setattr(parent, name, GraphNorm(child))
                case Attention():
                    setattr(parent, name, GraphAttention(child))
                case BinLogits():
                    setattr(parent, name, GraphBinLogits(child))
                case _:
                    pass
    return model
