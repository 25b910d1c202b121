"""Action bins of equal demonstration mass: fine where demonstrations are dense, coarse where they are rare.

Ties are the rule in robot data (a gripper that is only 0 or 1, an axis that never turns), so centers are
placed in four steps, each leaving alone what is there already (see `equal_mass_centers`). The result has
exactly `num_bins` distinct centers in every dimension, always with the limits and zero among them.
"""

import bisect
import heapq
import itertools
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Float64

from vla.processing.bins import BinCodec, require_finite_actions, require_range
from vla.processing.checks import require_keys
from vla.registry import Range

# No center is placed by data closer to another than this part of a uniform bin: finer would be noise.
FINEST_PART_OF_A_UNIFORM_BIN = 1 / 8


def equal_mass_centers(
    values: Float64[np.ndarray, " demonstration"], *, low: float, high: float, num_bins: int
) -> Float64[np.ndarray, " bin"]:
    """Return `num_bins` increasing centers in [low, high] for the demonstrated values of one dimension.

    1. The limits, and zero if it lies between: the whole legal range stays expressible.
    2. Atoms: values that make up at least a 1 / num_bins share of the demonstrations, most frequent first.
       Then the least and the greatest demonstrated value, so that no tail is rounded out to a limit.
    3. Quantile midpoints of all other values: bins of (nearly) equal mass.
    4. Bins that are still free, because there were ties, halve the widest gaps.

    >>> opening = np.array([0.0] * 70 + [1.0] * 30)
    >>> equal_mass_centers(opening, low=0.0, high=1.0, num_bins=5).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    finest = (high - low) / num_bins * FINEST_PART_OF_A_UNIFORM_BIN
    values = np.clip(values, low, high)
    centers: list[float] = []
    anchors = [low, high, 0.0] if low < 0 < high else [low, high]
    _place(centers, anchors, finest=0.0, limit=num_bins)

    distinct, counts = np.unique(values, return_counts=True)
    frequent = counts >= values.size / num_bins
    atoms = distinct[frequent][np.argsort(-counts[frequent], kind="stable")]
    extremes = [float(distinct[0]), float(distinct[-1])]
    _place(centers, [*atoms.tolist(), *extremes], finest=finest, limit=num_bins)

    taken = np.asarray(centers)
    nearest = np.clip(np.searchsorted(taken, values), 1, taken.size - 1)
    distance = np.minimum(np.abs(values - taken[nearest - 1]), np.abs(values - taken[nearest]))
    rest, num_free = values[distance >= finest], num_bins - taken.size
    if rest.size and num_free:
        midpoints = np.quantile(rest, (np.arange(num_free) + 0.5) / num_free)
        _place(centers, midpoints.tolist(), finest=finest, limit=num_bins)
    return _halve_widest_gaps(centers, num_bins=num_bins)


def _place(centers: list[float], candidates: Iterable[float], *, finest: float, limit: int) -> None:
    """Insert each candidate into the sorted `centers` unless one nearer than `finest` (or equal) is there."""
    for candidate in candidates:
        if len(centers) == limit:
            return
        i = bisect.bisect_left(centers, candidate)
        neighbors = centers[max(i - 1, 0) : i + 1]
        if all(abs(candidate - other) > 0 and abs(candidate - other) >= finest for other in neighbors):
            centers.insert(i, candidate)


def _halve_widest_gaps(centers: list[float], *, num_bins: int) -> Float64[np.ndarray, " bin"]:
    """Add midpoints of the widest gaps, lowest first among equals, until there are `num_bins` centers."""
    gaps = [(a - b, a, b) for a, b in itertools.pairwise(centers)]
    heapq.heapify(gaps)
    for _ in range(num_bins - len(centers)):
        _, a, b = heapq.heappop(gaps)
        middle = (a + b) / 2
        heapq.heappush(gaps, (a - middle, a, middle))
        heapq.heappush(gaps, (middle - b, middle, b))
    return np.array(sorted({end for _, a, b in gaps for end in (a, b)}))


class QuantileBinCodec(BinCodec):
    """Gives each action dimension `num_bins` centers that follow the density of the demonstrations.

    Frequent values, the limits and zero are reconstructed exactly (two frequent values nearer than an eighth
    of a uniform bin share one center); others within half the distance between their neighboring centers.
    """

    @classmethod
    def fit(
        cls,
        actions: Float[np.ndarray, "demonstration action"],
        chunks: Float[np.ndarray, "sample time action"],
        *,
        low: Float[np.ndarray, " action"],
        high: Float[np.ndarray, " action"],
        num_bins: Annotated[int, Range(2, 65536), "bins per action dimension"] = 256,
    ) -> "QuantileBinCodec":
        """Place the centers by the demonstrated actions; those outside [low, high] count as the limit.

        Raises:
            ValueError: there is no demonstration, an action is NaN or infinite, or a range has no width.
        """
        low, high = low.astype(np.float64), high.astype(np.float64)
        require_range(low, high)
        if num_bins < 2:
            raise ValueError(f"num_bins is {num_bins}; at least 2 are needed")
        if len(actions) == 0:
            raise ValueError(
                "there are no demonstrations to fit quantile bins to; record some or use uniform bins"
            )
        require_finite_actions(actions, action_dim=low.size)
        columns = actions.astype(np.float64).T
        rows = [
            equal_mass_centers(column, low=float(a), high=float(b), num_bins=num_bins)
            for column, a, b in zip(columns, low, high, strict=True)
        ]
        return cls(centers=np.stack(rows), action_horizon=chunks.shape[1])

    def to_json(self) -> dict[str, Any]:
        """Return the centers; float32 values survive JSON exactly."""
        return {
            "kind": "quantile",
            "action_horizon": self.action_horizon,
            "centers": self.centers.tolist(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "QuantileBinCodec":
        """Rebuild from `to_json`, exactly."""
        require_keys(data, ("kind", "action_horizon", "centers"), what="quantile action codec")
        centers = np.asarray(data["centers"], dtype=np.float32)
        return cls(centers=centers, action_horizon=data["action_horizon"])
