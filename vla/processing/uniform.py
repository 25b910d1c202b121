"""Evenly spaced action bins over the legal range, as in RT-1 (arXiv:2212.06817) and RT-2 (arXiv:2307.15818).

Unlike RT-1, the outermost bins are centered on the limits themselves, and zero, where it lies between them,
is a center too: a delta of zero decodes to exactly zero (an idle axis does not creep), a gripper command of
0 or 1 to exactly 0 or 1. See `evenly_spaced_centers` for the price, which is under one per cent of a bin.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Float32, Float64

from vla.processing.bins import BinCodec, require_finite_actions, require_range
from vla.processing.checks import require_keys
from vla.registry import Range


def evenly_spaced_centers(*, low: float, high: float, num_bins: int) -> Float64[np.ndarray, " bin"]:
    """Return `num_bins` centers from `low` to `high`, both included, and zero when it lies between.

    The spacing is (high - low) / (num_bins - 1), except that zero takes the place of the nearest inner
    center, and the two sides are then spaced evenly each for itself. With two bins there is no room for zero.

    >>> evenly_spaced_centers(low=-1.0, high=1.0, num_bins=6).round(3).tolist()
    [-1.0, -0.667, -0.333, 0.0, 0.5, 1.0]
    >>> evenly_spaced_centers(low=0.0, high=1.0, num_bins=5).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if not low < 0 < high or num_bins < 3:
        return np.linspace(low, high, num_bins)
    share_below = 0.5 if low == -high else -low / (high - low)
    num_below = min(max(math.floor(share_below * num_bins), 1), num_bins - 2)
    below = np.linspace(low, 0.0, num_below, endpoint=False)
    return np.concatenate([below, np.linspace(0.0, high, num_bins - num_below)])


class UniformBinCodec(BinCodec):
    """Gives each action dimension `num_bins` evenly spaced centers over [low, high].

    An in-range action is reconstructed within `half_bin`; the limits and zero exactly.

    >>> codec = UniformBinCodec(low=[-0.025, 0.0], high=[0.025, 1.0], num_bins=256, action_horizon=3)
    >>> bins = codec.nearest_bins(np.array([[-0.025, 0.0], [0.0, 0.4], [0.025, 1.0]]))
    >>> bins.tolist()
    [[0, 0], [128, 102], [255, 255]]
    >>> codec.decode({"bins": bins[None]})[0, 1].tolist()
    [0.0, 0.4000000059604645]
    """

    def __init__(
        self, *, low: Sequence[float], high: Sequence[float], num_bins: int, action_horizon: int
    ) -> None:
        self.low, self.high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        require_range(self.low, self.high)
        if num_bins < 2:
            raise ValueError(f"num_bins is {num_bins}; at least 2 are needed")
        rows = [
            evenly_spaced_centers(low=float(a), high=float(b), num_bins=num_bins)
            for a, b in zip(self.low, self.high, strict=True)
        ]
        super().__init__(centers=np.stack(rows), action_horizon=action_horizon)

    @property
    def half_bin(self) -> Float32[np.ndarray, " action"]:
        """Largest reconstruction error of an in-range action, in each dimension's unit."""
        return np.diff(self.centers, axis=1).max(axis=1) / 2

    @classmethod
    def fit(
        cls,
        actions: Float[np.ndarray, "demonstration action"],
        chunks: Float[np.ndarray, "sample time action"],
        *,
        low: Float[np.ndarray, " action"],
        high: Float[np.ndarray, " action"],
        num_bins: Annotated[int, Range(2, 65536), "bins per action dimension"] = 256,
    ) -> "UniformBinCodec":
        """Make a tokenizer from the limits; the demonstrations are only checked.

        Raises:
            ValueError: an action is NaN or infinite, the dimensions differ, or a range has no width.
        """
        require_finite_actions(actions, action_dim=low.size)
        return cls(low=low.tolist(), high=high.tolist(), num_bins=num_bins, action_horizon=chunks.shape[1])

    def to_json(self) -> dict[str, Any]:
        """Return the limits and the number of bins."""
        return {
            "kind": "uniform",
            "action_horizon": self.action_horizon,
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "num_bins": self.num_bins,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "UniformBinCodec":
        """Rebuild from `to_json`, exactly."""
        keys = ("kind", "action_horizon", "low", "high", "num_bins")
        require_keys(data, keys, what="uniform action codec")
        return cls(
            low=data["low"],
            high=data["high"],
            num_bins=data["num_bins"],
            action_horizon=data["action_horizon"],
        )
