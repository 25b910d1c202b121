"""An auxiliary target: how far things are in each cell of each frame (QDepth-VLA, arXiv:2510.14836).

One camera does not show depth; features that have to tell it know where things are in space.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vla.interface import ModelSpecs
from vla.model.interface import AuxiliaryTarget, AxisLabels, AxisNames, Backbone, Prefix, Tensors
from vla.model.soft_bins import soft_bin_loss
from vla.model.transformer import RMSNorm
from vla.registry import Range


class Depth(AuxiliaryTarget):
    """A distribution over bins of depth for each cell, read off the image features there.

    What a cell shows on average is learned apart, by place, so that the features need to tell only what
    differs from it. Bins are equally wide in the logarithm of depth.

    Raises:
        ValueError: the backbone gives no image features, or the range of depth is empty.
    """

    learns = ("depth",)

    def __init__(
        self,
        *,
        specs: ModelSpecs,
        backbone: Backbone,
        cells: Annotated[int, Range(2, 256), "of a frame along each side, as recorded"] = 16,
        bins: Annotated[int, Range(2, 1024), "of depth"] = 64,
        near_m: Annotated[float, Range(0, 100, open_low=True), "middle of the first bin [m]"] = 0.2,
        far_m: Annotated[float, Range(0, 100, open_low=True), "middle of the last bin [m]"] = 5.0,
        weight: Annotated[float, Range(0, 1000), "of this loss next to that of the actions"] = 0.3,
    ) -> None:
        super().__init__()
        if backbone.feature_map is None:
            raise ValueError(
                f"depth is read off image features, and {type(backbone).__name__} gives none; take depth out "
                "of model.auxiliaries, or choose model/backbone=small"
            )
        if near_m >= far_m:
            raise ValueError(f"near_m={near_m:g} is not below far_m={far_m:g}; give a range of depth [m]")
        self.cells, self.bins, self.weight = cells, bins, weight
        self.near_m, self.far_m = near_m, far_m
        channels, rows, columns = backbone.feature_map
        num_images = specs.inputs["images"].shape[0]
        self.norm = RMSNorm(width=channels)
        self.read = nn.Linear(channels, bins, bias=False)
        self.usual = nn.Parameter(torch.zeros(num_images, cells * cells, bins))
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", _interpolation(rows, cells), persistent=False)
        self.register_buffer("columns", _interpolation(columns, cells), persistent=False)

    def axis_labels(self, names: AxisNames) -> AxisLabels:
        """Return which frame each of the usual depths is of."""
        return {"usual": (names["images"], None, None)}

    def requests(self) -> Mapping[str, Any]:
        """Ask for the depth of frames in as many cells."""
        return {"depth": self.cells}

    def logits(self, prefix: Prefix) -> Float[Tensor, "batch images cells bins"]:
        """Return the logits of each cell, row by row."""
        assert prefix.features is not None, "the constructor has seen to that"
        maps = torch.einsum("bkdhw,hi,wj->bkijd", prefix.features, self.rows, self.columns)
        read = self.read(self.norm(rearrange(maps, "b k i j d -> b (k i j) d")))
        return rearrange(read, "b (k n) c -> b k n c", k=maps.shape[1]) + self.usual

    def loss(self, prefix: Prefix, batch: Tensors) -> Float[Tensor, ""]:
        """Return the mean divergence [nats] over cells in which something is.

        `depth` is [batch images cells cells] [m], frames oldest first, and 0 where nothing is.
        """
        depth = rearrange(batch["depth"], "b k i j -> b k (i j)")
        return soft_bin_loss(self.logits(prefix), self.places(depth), depth > 0)

    def places(self, depth: Float[Tensor, "*terms"]) -> Float[Tensor, "*terms"]:
        """Return where depths [m] lie between the middles of the first and the last bin."""
        span = math.log(self.far_m / self.near_m)
        return (depth.clamp(min=self.near_m) / self.near_m).log() * ((self.bins - 1) / span)

    def num_terms(self, batch: Tensors) -> Float[Tensor, ""]:
        """Return in how many cells something is."""
        return (batch["depth"] > 0).sum().float()


def _interpolation(size: int, wanted: int) -> Float[Tensor, "size wanted"]:
    """Return the weights of linear interpolation along one side of a map."""
    return F.interpolate(torch.eye(size)[None], size=wanted, mode="linear", align_corners=False)[0]
