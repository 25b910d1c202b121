"""An auxiliary target: in which pixels hand, object and goal are, and will be (TraceVLA, arXiv:2412.10345).

It is read off the context token, as actions are, so the keypoints that make the token have to find what the
task is about.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.geometry import OUTSIDE
from vla.interface import ModelSpecs
from vla.model.interface import AuxiliaryTarget, AxisLabels, AxisNames, Backbone, Prefix, Tensors
from vla.model.soft_bins import soft_bin_loss
from vla.model.transformer import RMSNorm
from vla.registry import Range

_AXES = ("column", "row")


class Traces(AuxiliaryTarget):
    """A distribution over columns and one over rows for each point, moment and frame that a policy sees.

    Points that are covered count, those outside the picture do not.
    """

    learns = ("traces",)

    def __init__(
        self,
        *,
        specs: ModelSpecs,
        backbone: Backbone,
        points: Annotated[Sequence[str], "names of the recorded points"] = ("hand", "object", "goal"),
        offsets: Annotated[
            Sequence[Annotated[int, Range(0, 1000)]],
            "control periods after a frame at which its points are predicted; 0 is the frame itself",
        ] = (0, 8, 16, 32),
        bins: Annotated[int, Range(2, 1024), "along each side of a picture"] = 32,
        weight: Annotated[float, Range(0, 1000), "of this loss next to that of the actions"] = 0.3,
    ) -> None:
        super().__init__()
        if not points or not offsets:
            raise ValueError(
                f"traces of points={list(points)} at offsets={list(offsets)} are none; name some"
            )
        self.points, self.offsets, self.bins, self.weight = tuple(points), tuple(offsets), bins, weight
        self._shape = (specs.inputs["images"].shape[0], len(offsets), len(points), len(_AXES), bins)
        self.norm = RMSNorm(width=backbone.width)
        self.read = nn.Linear(backbone.width, math.prod(self._shape))

    def axis_labels(self, names: AxisNames) -> AxisLabels:
        """Return what each output is of: frame, offset, point, axis and bin."""
        parts = (names["images"], self.offsets, self.points, _AXES, range(self.bins))
        labels = tuple(itertools.product(*parts))
        return {"read.weight": (labels, None), "read.bias": (labels,)}

    def requests(self) -> Mapping[str, Any]:
        """Ask for these points at these offsets."""
        return {"traces": {"points": self.points, "offsets": self.offsets}}

    def logits(self, prefix: Prefix) -> Float[Tensor, "batch images future point 2 bins"]:
        """Return the logits of columns and rows."""
        return self.read(self.norm(prefix.context))[:, 0].unflatten(-1, self._shape)

    def loss(self, prefix: Prefix, batch: Tensors) -> Float[Tensor, ""]:
        """Return the mean divergence [nats] over the coordinates of points in the picture.

        `traces` is [batch images future point 3], frames oldest first: column and row as shares of the
        picture, and visibility.
        """
        places = batch["traces"][..., :2] * self.bins - 0.5  # the middle of the first bin is at 0
        return soft_bin_loss(self.logits(prefix), places, self._counts(batch))

    def num_terms(self, batch: Tensors) -> Float[Tensor, ""]:
        """Return how many coordinates there are of points in the picture."""
        return self._counts(batch).sum().float()

    def _counts(self, batch: Tensors) -> Bool[Tensor, "batch images future point 2"]:
        traces = batch["traces"]
        return (traces[..., 2:] != OUTSIDE).expand_as(traces[..., :2])
