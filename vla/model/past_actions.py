"""An auxiliary target: which actions were executed before now (past-token prediction, arXiv:2505.09561).

A policy that sees an older frame too is prone to ignore it, or to read off it what it did last instead of
what to do. Having to tell the past actions makes it use what moved between the frames.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from jaxtyping import Float
from torch import Tensor, nn

from vla.interface import ModelSpecs
from vla.model.interface import AuxiliaryTarget, AxisLabels, AxisNames, Backbone, Prefix, Tensors
from vla.model.transformer import RMSNorm
from vla.registry import Range


class PastActions(AuxiliaryTarget):
    """Scaled past actions, read off the context token before the trunk.

    Raises:
        ValueError: the codec does not tell how many numbers an action has.
    """

    learns = ("past_actions", "past_exists")

    def __init__(
        self,
        *,
        specs: ModelSpecs,
        backbone: Backbone,
        offsets: Annotated[
            Sequence[Annotated[int, Range(1, 1000)]],
            "control periods before now whose actions are predicted",
        ] = (1, 2, 4, 8),
        weight: Annotated[float, Range(0, 1000), "of this loss next to that of the actions"] = 1.0,
    ) -> None:
        super().__init__()
        shapes = [spec.shape for spec in specs.targets.values() if len(spec.shape) == 2]  # [time action]
        if not shapes:
            raise ValueError(
                f"past_actions needs a codec with targets of each action, not {dict(specs.targets)}; give "
                "codec=uniform, quantile or continuous, or take it out of model.auxiliaries"
            )
        self._action_dim = shapes[0][1]
        self.offsets, self.weight = tuple(offsets), weight
        self.norm = RMSNorm(width=backbone.width)
        self.actions = nn.Linear(backbone.width, len(offsets) * self._action_dim)

    def axis_labels(self, names: AxisNames) -> AxisLabels:
        """Return which past action each output is: how many control periods ago, and which channel."""
        both = tuple(itertools.product(self.offsets, names["action"]))
        return {"actions.weight": (both, None), "actions.bias": (both,)}

    def requests(self) -> Mapping[str, Any]:
        """Ask for the actions at these offsets."""
        return {"past_actions": self.offsets}

    def predict(self, prefix: Prefix) -> Float[Tensor, "batch past action"]:
        """Return the scaled actions, in about [-1, 1]."""
        return self.actions(self.norm(prefix.context))[:, 0].unflatten(-1, (-1, self._action_dim))

    def loss(self, prefix: Prefix, batch: Tensors) -> Float[Tensor, ""]:
        """Return the mean absolute error of `past_actions` [batch past action] where `past_exists`."""
        errors = (self.predict(prefix).float() - batch["past_actions"]).abs().mean(dim=-1)
        return (errors * batch["past_exists"]).sum() / batch["past_exists"].sum().clamp(min=1)

    def num_terms(self, batch: Tensors) -> Float[Tensor, ""]:
        """Return how many past actions there are."""
        return batch["past_exists"].sum().float()
