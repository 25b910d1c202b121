"""AdamW and Muon, a warm-up and cosine schedule, and an average of the weights."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vla.training.muon import Muon
from vla.training.parts import FROZEN

_ByScale = defaultdict[float, list[nn.Parameter]]
OPTIMIZERS = ("adamw", "muon")


def make_optimizers(
    model: nn.Module,
    *,
    kind: str,
    weight_decay: float,
    betas: tuple[float, float],
    product_dtype: torch.dtype,
    scales: Mapping[str, float],
) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a run; `kind` is one of `OPTIMIZERS`, `product_dtype` that of all products.

    "adamw": AdamW (arXiv:1711.05101) for all; matrices and filters decay, gains, biases, positions do not.
    "muon": Muon (arXiv:2502.16982) for the trunk's matrices, with steps as large as AdamW's, so that one
        learning rate serves both; AdamW for the rest.
    `scales` is by what the learning rate of each parameter is multiplied, kept as `scale` of its group;
    frozen parameters are in no group.
    """
    if kind not in OPTIMIZERS:
        raise ValueError(f"optimizer {kind!r} is none of {OPTIMIZERS}; change trainer.optimizer")
    hidden: _ByScale = defaultdict(list)
    decayed: _ByScale = defaultdict(list)
    kept: _ByScale = defaultdict(list)
    for name, parameter in model.named_parameters():
        scale = scales[name]
        if scale == FROZEN:
            continue
        is_matrix = parameter.ndim >= 2 and name.endswith("weight") and "embedding" not in name
        if kind == "muon" and parameter.ndim == 2 and "blocks." in name and is_matrix:
            hidden[scale].append(parameter)
        else:
            (decayed if is_matrix else kept)[scale].append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    groups = [*_groups(decayed, weight_decay=weight_decay), *_groups(kept, weight_decay=0.0)]
    if groups:
        optimizers.append(torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True))
    groups = _groups(hidden, weight_decay=weight_decay)
    if groups:
        optimizers.append(Muon(groups, lr=0.0, weight_decay=weight_decay, product_dtype=product_dtype))
    return optimizers


def _groups(by_scale: _ByScale, *, weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": params, "weight_decay": weight_decay, "scale": scale} for scale, params in by_scale.items()
    ]


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Have all parameters learn at a rate, each group times its `scale`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]


def learning_rate_factor(progress: float, *, warmup: float, final: float = 0.02) -> float:
    """Return the share of the peak rate at `progress` in [0, 1]: linear warm-up, then a cosine to `final`.

    >>> learning_rate_factor(0.05, warmup=0.1), learning_rate_factor(0.1, warmup=0.1)
    (0.5, 1.0)
    >>> round(learning_rate_factor(1.0, warmup=0.1), 6)
    0.02
    """
    if progress < warmup:
        return progress / warmup
    along = min(1.0, (progress - warmup) / max(1e-9, 1.0 - warmup))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * along))


class WeightAverage:
    """Exponential moving average of a model's weights, kept in fp32.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that the average forgets the random start.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema_decay is {decay}; it must lie in [0, 1)")
        self.decay, self.num_updates = decay, 0
        self._weights: dict[str, Tensor] = {
            name: p.detach().clone().float() for name, p in model.named_parameters()
        }

    def update(self, model: nn.Module) -> None:
        """Move the average toward the model's present weights."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, parameter in model.named_parameters():
            self._weights[name].lerp_(parameter.detach().float(), 1.0 - decay)

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights by parameter name."""
        return self._weights

    def load(self, weights: dict[str, Tensor], *, num_updates: int) -> None:
        """Restore what `weights` returned."""
        for name, value in self._weights.items():
            value.copy_(weights[name])
        self.num_updates = num_updates
