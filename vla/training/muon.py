"""Muon: momentum whose direction is orthogonalized, for the matrices of the transformer (arXiv:2502.16982).

`torch.optim.Muon` casts to bf16 on every machine and takes one matrix at a time. On a processor without bf16
products that was 81 % of a training step. Here the type is an argument, and all matrices of one shape are
multiplied at once.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as in torch.optim.Muon
_ITERATIONS = 5
_SMALLEST_NORM = 1e-7
_LIKE_ADAMW = 0.2  # times the square root of the longer side: a step's root mean square is that of AdamW


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, decoupled weight decay, and steps as large as those of AdamW.

    Args:
        params: matrices.
        lr: learning rate.
        weight_decay: share of the weights that is removed per step and unit of `lr`.
        momentum: how much of the averaged gradient is kept per step.
        product_dtype: type of the matrix products; weights and momentum stay in their own.
    """

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        product_dtype: torch.dtype,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.product_dtype = product_dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: nothing here calls it
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            gradients = [cast(Tensor, p.grad) for p in params]
            averages = [self._momentum_buffer(p) for p in params]
            torch._foreach_lerp_(averages, gradients, 1.0 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
            torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
            for indices in _by_shape(params):
                directions = orthogonalize(torch.stack([ahead[i] for i in indices]), self.product_dtype)
                longer_side = max(directions.shape[1:])
                rate = group["lr"] * _LIKE_ADAMW * longer_side**0.5
                torch._foreach_add_([params[i] for i in indices], list(directions.unbind()), alpha=-rate)

    def _momentum_buffer(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def _by_shape(params: Sequence[Tensor]) -> list[list[int]]:
    """Return the indices of the matrices of each shape."""
    groups: dict[torch.Size, list[int]] = defaultdict(list)
    for index, parameter in enumerate(params):
        groups[parameter.shape].append(index)
    return list(groups.values())


def orthogonalize(
    matrices: Float[Tensor, "n rows columns"], dtype: torch.dtype
) -> Float[Tensor, "n rows columns"]:
    """Return matrices with the same singular vectors and singular values of about 1 (0.7 to 1.2).

    Five steps of a Newton-Schulz iteration, computed in `dtype` and returned in the type of the input.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_SMALLEST_NORM)
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)
