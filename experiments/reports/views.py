"""Pictures of recorded geometry, for people: points marked in a frame, and depth in gray below it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image, ImageDraw

from vla.geometry import OUTSIDE, VISIBLE, ViewGeometry

MARK_COLORS = ("#ff2d2d", "#22d3ee", "#facc15", "#a855f7", "#34d399")
_MARK_PIXELS = 5  # from the middle of a mark to its edge


def legend(names: Sequence[str]) -> str:
    """Return in words which color marks which point."""
    words = ("red", "cyan", "yellow", "purple", "green")
    marks = ", ".join(f"{name} {words[i % len(words)]}" for i, name in enumerate(names))
    return f"{marks}; a ring where something covers the point; depth: near is light, nothing is blue"


def marked(
    frame: UInt8[np.ndarray, "h w 3"], points: Float32[np.ndarray, "point 3"], *, size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Return a square frame at a size [pixels], a disk at each visible point, a ring at covered ones."""
    picture = Image.fromarray(frame).resize((size, size))
    draw = ImageDraw.Draw(picture)
    for i, (column, row, visibility) in enumerate(points.tolist()):
        if visibility == OUTSIDE:
            continue
        x, y, color = column * size, row * size, MARK_COLORS[i % len(MARK_COLORS)]
        box = (x - _MARK_PIXELS, y - _MARK_PIXELS, x + _MARK_PIXELS, y + _MARK_PIXELS)
        if visibility == VISIBLE:
            draw.ellipse(box, fill=color, outline="black")
        else:
            draw.ellipse(box, outline=color, width=2)
    return np.asarray(picture)


def shaded(depth: UInt16[np.ndarray, "cells cells"], *, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Return depth in gray, near light, spread evenly over what occurs; nothing is blue."""
    seen = depth > 0
    ranks = np.searchsorted(np.unique(depth[seen]), depth) / max(len(np.unique(depth[seen])), 1)
    gray = np.rint(235 * (1 - ranks) + 10)[..., None].repeat(3, axis=-1)
    gray[~seen] = (40, 60, 160)
    return np.asarray(Image.fromarray(gray.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST))


def view_pictures(
    frames: Sequence[UInt8[np.ndarray, "h w 3"]], views: ViewGeometry, *, size: int
) -> list[np.ndarray]:
    """Return for each moment the marked frame with its depth below, `size` wide [pixels]."""
    return [
        np.concatenate([marked(frame, points, size=size), shaded(depth, size=size)])
        for frame, points, depth in zip(frames, views.points, views.depth, strict=True)
    ]
