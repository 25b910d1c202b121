"""What a simulator knows of a camera's view besides its colors: depth, and the pixels of named points.

It is recorded to learn from, and no policy ever sees it. Positions in a picture are shares of its width and
height, so that they hold at any size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt16

DEPTH_CELLS = 16  # of a depth picture, along each side
OUTSIDE, COVERED, VISIBLE = 0, 1, 2  # of a point: not in the picture, behind something, seen (as in COCO)
MOST_MM = 65_535  # that a cell holds; what is farther, such as the sky, counts as nothing


class GeometrySpec(NamedTuple):
    """What is recorded of each camera's view."""

    points: tuple[str, ...]  # names, in the order of the arrays
    cells: int = DEPTH_CELLS


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewGeometry:
    """The geometry of a camera's view at one moment, or at several.

    Attributes:
        depth: median distance from the camera's plane in each cell of the picture, row by row from its upper
            left corner [mm]; 0 where nothing is there.
        points: for each named point its column and row as shares of the picture's width and height, counted
            from the upper left corner, and whether it is `OUTSIDE` (column and row are then 0), `COVERED` or
            `VISIBLE`.
    """

    depth: UInt16[np.ndarray, "*time cells cells"]
    points: Float32[np.ndarray, "*time point 3"]


def stacked_views(views: Mapping[str, Sequence[ViewGeometry]]) -> dict[str, ViewGeometry]:
    """Return the moments of each camera as one geometry over time."""
    return {
        camera: ViewGeometry(
            depth=np.stack([view.depth for view in moments]),
            points=np.stack([view.points for view in moments]),
        )
        for camera, moments in views.items()
    }
