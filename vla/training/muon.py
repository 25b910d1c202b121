"""Muon: momentum whose direction is orthogonalized, for the matrices of the transformer (arXiv:2502.16982).

`torch.optim.Muon` casts to bf16 on every machine and takes one matrix at a time. On a processor without bf16
products that was 81 % of a training step. Here the type is an argument, and all matrices of one shape are
multiplied at once.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as in torch.optim.Muon
_ITERATIONS = 5
_SMALLEST_NORM = 1e-7
_WIDE = 3  # times as many columns as rows
_LIKE_ADAMW = 0.2  # times the square root of the longer side: a step's root mean square is that of AdamW


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, decoupled weight decay, and steps as large as those of AdamW.

    Args:
        params: matrices, or groups of them as torch's optimizers take them.
        lr: learning rate.
        weight_decay: share of the weights that is removed per step and unit of `lr`.
        momentum: how much of the averaged gradient is kept per step.
        product_dtype: type of the matrix products; weights and momentum stay in their own.
    """

    def __init__(
        self,
        params: Sequence[nn.Parameter] | Sequence[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        product_dtype: torch.dtype,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.momentum, self.product_dtype = momentum, product_dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: nothing here calls it
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for params in by_shape.values():
                self._step_together(params, lr=group["lr"], weight_decay=group["weight_decay"])

    def _step_together(self, params: Sequence[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        """Update matrices of one shape."""
        ahead = torch.stack([self._nesterov(p) for p in params])
        directions = orthogonalize(ahead, self.product_dtype)
        rate = lr * _LIKE_ADAMW * max(directions.shape[1:]) ** 0.5
        for parameter, direction in zip(params, directions, strict=True):
            parameter.mul_(1.0 - lr * weight_decay).add_(direction, alpha=-rate)

    def _nesterov(self, parameter: nn.Parameter) -> Tensor:
        """Move the momentum of a parameter, and return the gradient that Nesterov looks ahead to."""
        gradient, state = cast(Tensor, parameter.grad), self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].lerp_(gradient, 1.0 - self.momentum)
        return gradient.lerp(average, self.momentum)


def orthogonalize(
    matrices: Float[Tensor, "n rows columns"], dtype: torch.dtype
) -> Float[Tensor, "n rows columns"]:
    """Return matrices with the same singular vectors and singular values of about 1 (0.7 to 1.2).

    Five steps of a Newton-Schulz iteration, computed in `dtype` and returned in the type of the input.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_SMALLEST_NORM)
    is_wide = x.shape[2] >= _WIDE * x.shape[1]
    x = _iterate_on_gram(x) if is_wide and dtype is torch.float32 else _iterate(x)
    return (x.mT if is_tall else x).to(matrices.dtype)


def _iterate(x: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """Multiply by a polynomial of x x^T, again and again."""
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _iterate_on_gram(x: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """Do the same with products of small matrices: for four times as many columns as rows 40 % less work.

    All polynomials commute with x x^T, so their product can be found without x. In bf16 rounding would drown
    the small singular values, as those of x x^T are their squares.
    """
    gram = torch.bmm(x, x.mT)
    product = polynomial = _polynomial(gram)
    for _ in range(_ITERATIONS - 1):
        gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)
        polynomial = _polynomial(gram)
        product = torch.bmm(polynomial, product)
    return torch.bmm(product, x)


def _polynomial(gram: Float[Tensor, "n rows rows"]) -> Float[Tensor, "n rows rows"]:
    a, b, c = _COEFFICIENTS
    polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    polynomial.diagonal(dim1=1, dim2=2).add_(a)
    return polynomial
