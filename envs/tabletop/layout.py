"""Draws what stands where: points that keep their distance, and objects that words can tell apart."""

import numpy as np
from jaxtyping import Float, Float64

from envs.tabletop.scene import COLORS, SHAPES

MIN_SPACING_M = 0.105  # between the middles of two objects; an open gripper fits between
_MAX_TRIES = 2000


def scatter(
    rng: np.random.Generator,
    *,
    count: int,
    low: tuple[float, float],
    high: tuple[float, float],
    spacing: float = MIN_SPACING_M,
    keep_off: tuple[Float[np.ndarray, "2"], ...] = (),
    keep_off_distance: float = 0.0,
) -> Float64[np.ndarray, "count 2"]:
    """Draw points in a rectangle, at least `spacing` apart and away from given points [m].

    Raises:
        RuntimeError: they do not fit. The areas that tasks use are wide enough, so this is a bug of ours.
    """
    chosen: list[np.ndarray] = []
    for attempt in range(_MAX_TRIES):
        if attempt % 60 == 59:
            chosen = []  # a bad start can block the rest
        point = rng.uniform(low, high)
        apart = all(np.linalg.norm(point - other) >= spacing for other in chosen)
        if apart and all(np.linalg.norm(point - other) >= keep_off_distance for other in keep_off):
            chosen.append(point)
        if len(chosen) == count:
            return np.array(chosen)
    raise RuntimeError(f"{count} objects {spacing} m apart do not fit between {low} and {high}")


def distance_to_segments(
    points: Float[np.ndarray, "*batch 2"],
    starts: Float[np.ndarray, "*batch 2"],
    ends: Float[np.ndarray, "*batch 2"],
) -> Float64[np.ndarray, "*batch"]:
    """Return how far points are from the straight ways between starts and ends [m]."""
    along = ends - starts
    share = ((points - starts) * along).sum(-1) / np.maximum((along * along).sum(-1), 1e-12)
    return np.linalg.norm(points - starts - np.clip(share, 0.0, 1.0)[..., None] * along, axis=-1)


def scatter_with_free_ways(
    rng: np.random.Generator,
    *,
    count: int,
    low: tuple[float, float],
    high: tuple[float, float],
    targets: Float[np.ndarray, "targets 2"],
    spacing: float,
    clearance: float,
) -> Float64[np.ndarray, "count 2"] | None:
    """Draw points of which each has a straight way to every target, free of the other points.

    Args:
        spacing: least distance between two points [m].
        clearance: least distance of a way from the other points [m].

    Returns:
        The points, or None when these targets admit none in a fair number of tries.
    """
    drawn = rng.uniform(low, high, (300, count, 2))
    # One point in each of `count` equal bands along x: most draws would fail on spacing otherwise.
    drawn[..., 0] = low[0] + (np.arange(count) * (high[0] - low[0]) + (drawn[..., 0] - low[0])) / count
    fine = np.ones(len(drawn), dtype=bool)
    for one in range(count):
        for other in range(count):
            if one == other:
                continue
            fine &= np.linalg.norm(drawn[:, one] - drawn[:, other], axis=-1) >= spacing
            for target in targets:
                ends = np.broadcast_to(target, drawn[:, one].shape)
                fine &= distance_to_segments(drawn[:, other], drawn[:, one], ends) >= clearance
    return drawn[int(np.argmax(fine))] if fine.any() else None


def draw_names(
    rng: np.random.Generator, *, count: int, same_color_share: float, colors: list[str] | None = None
) -> list[tuple[str, str]]:
    """Draw distinct (color, shape) pairs; about `same_color_share` of them take another's color."""
    palette = list(COLORS) if colors is None else colors
    names: list[tuple[str, str]] = []
    while len(names) < count:
        used = [color for color, _ in names]
        fresh = [color for color in palette if color not in used]
        takes_used = bool(used) and (rng.random() < same_color_share or not fresh)
        name = (str(rng.choice(used if takes_used else fresh)), str(rng.choice(list(SHAPES))))
        if name not in names:
            names.append(name)
    return names


def draw_count(rng: np.random.Generator) -> int:
    """Draw how many objects a scene has: 3 to 5."""
    return int(rng.choice([3, 4, 5], p=[0.4, 0.4, 0.2]))
