"""An auxiliary target: in which cells of a frame hand, object and goal are, read off the image features.

Features that tell where the named things are make keypoints (arXiv:1504.00702) that actions can be read off.
With 45,000 samples of reach, push and lift, success rises from 63 to 91 %
(experiments/results/quickstart.md).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.geometry import OUTSIDE
from vla.interface import ModelSpecs
from vla.model.interface import AuxiliaryTarget, AxisLabels, AxisNames, Backbone, Prefix, Tensors
from vla.registry import Range


class Keypoints(AuxiliaryTarget):
    """A distribution over the cells of a frame's feature maps for each point.

    Points that are covered count, those outside the picture do not.

    Raises:
        ValueError: the backbone gives no image features, or no point is named.
    """

    learns = ("points",)

    def __init__(
        self,
        *,
        specs: ModelSpecs,
        backbone: Backbone,
        points: Annotated[Sequence[str], "names of the recorded points"] = ("hand", "object", "goal"),
        weight: Annotated[float, Range(0, 1000), "of this loss next to that of the actions"] = 0.3,
    ) -> None:
        super().__init__()
        if backbone.feature_map is None:
            raise ValueError(
                f"keypoints are read off image features, and {type(backbone).__name__} gives none; take "
                "keypoints out of model.auxiliaries, or choose model/backbone=small"
            )
        if not points:
            raise ValueError("keypoints of points=[] are none; name some")
        channels, self.rows, self.columns = backbone.feature_map
        self.points, self.weight = tuple(points), weight
        self.read = nn.Linear(channels, len(points), bias=False)

    def axis_labels(self, names: AxisNames) -> AxisLabels:
        """Return which point each row is of."""
        return {"read.weight": (self.points, None)}

    def requests(self) -> Mapping[str, Any]:
        """Ask where these points are."""
        return {"points": self.points}

    def logits(self, prefix: Prefix) -> Float[Tensor, "batch images point cells"]:
        """Return the logits of the cells for each point, row by row."""
        assert prefix.features is not None, "the constructor has seen to that"
        logits = self.read(rearrange(prefix.features, "b k d h w -> b k (h w) d"))
        return rearrange(logits, "b k n p -> b k p n")

    def loss(self, prefix: Prefix, batch: Tensors) -> Float[Tensor, ""]:
        """Return the mean divergence [nats] over points in the picture.

        `points` is [batch images point 3], frames oldest first: column and row as shares of the picture, and
        visibility. What lies between the middles of cells is shared by them.
        """
        points = batch["points"]
        columns = _shares(points[..., 0], self.columns)
        rows = _shares(points[..., 1], self.rows)
        wanted = rearrange(rows[..., :, None] * columns[..., None, :], "b k p h w -> b k p (h w)")
        log_probabilities = self.logits(prefix).float().log_softmax(dim=-1)
        divergence = (torch.xlogy(wanted, wanted) - wanted * log_probabilities).sum(dim=-1)
        counts = self._counts(batch)
        return (divergence * counts).sum() / counts.sum().clamp(min=1)

    def num_terms(self, batch: Tensors) -> Float[Tensor, ""]:
        """Return how many points there are in pictures."""
        return self._counts(batch).sum().float()

    def _counts(self, batch: Tensors) -> Bool[Tensor, "batch images point"]:
        return batch["points"][..., 2] != OUTSIDE


def _shares(places: Float[Tensor, "*terms"], size: int) -> Float[Tensor, "*terms size"]:
    """Return how a place along one side of a map is shared by the two cells whose middles are nearest.

    >>> _shares(torch.tensor([0.125, 0.5, 1.0]), 4).tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    numbers = torch.arange(size, dtype=places.dtype, device=places.device)
    middles = (places * size - 0.5).clamp(0, size - 1)
    return (1 - (middles[..., None] - numbers).abs()).clamp(min=0)
