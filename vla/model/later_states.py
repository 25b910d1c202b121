"""An auxiliary target: where the robot will be some control periods later.

Where the hand will be is a plainer function of picture and instruction than the next step; learning it
teaches the image stem which object is meant.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vla.interface import ModelSpecs
from vla.model.interface import AuxiliaryTarget, AxisLabels, AxisNames, Backbone, Prefix, Tensors
from vla.model.transformer import RMSNorm
from vla.registry import Range


class LaterStates(AuxiliaryTarget):
    """Normalized later states, read off the context token before the trunk."""

    learns = ("later_states",)

    def __init__(
        self,
        *,
        specs: ModelSpecs,
        backbone: Backbone,
        offsets: Annotated[
            Sequence[Annotated[int, Range(1, 1000)]],
            "control periods after now at which the state is predicted",
        ] = (8, 16, 32),
        weight: Annotated[float, Range(0, 1000), "of this loss next to that of the actions"] = 3.0,
    ) -> None:
        super().__init__()
        (self._state_dim,) = specs.inputs["state"].shape
        self.offsets, self.weight = tuple(offsets), weight
        self.norm = RMSNorm(width=backbone.width)
        self.states = nn.Linear(backbone.width, len(offsets) * self._state_dim)

    def axis_labels(self, names: AxisNames) -> AxisLabels:
        """Return which later state each output is: how many control periods later, and which channel."""
        both = tuple(itertools.product(self.offsets, names["state"]))
        return {"states.weight": (both, None), "states.bias": (both,)}

    def requests(self) -> Mapping[str, Any]:
        """Ask for the states at these offsets."""
        return {"later_states": self.offsets}

    def loss(self, prefix: Prefix, batch: Tensors) -> Float[Tensor, ""]:
        """Return the mean absolute error, in normalized units, of `later_states` [batch future state]."""
        predicted = rearrange(self.states(self.norm(prefix.context)), "b 1 (f s) -> b f s", s=self._state_dim)
        return (predicted.float() - batch["later_states"]).abs().mean()
