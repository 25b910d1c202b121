"""A table of bin centres per action dimension: the part that uniform and quantile tokenizers share.

A value belongs to the bin with the nearest centre, so the edges lie midway between centres, no bin has zero
width, and `encode(decode(bins)) == bins` for every id. Knows nothing of how the centres were chosen.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from vla.interface import DecodeError


class BinTable:
    """Centres float32[action bin], strictly increasing along the bins, and the edges between them."""

    def __init__(self, *, centres: Float[np.ndarray, "action bin"]) -> None:
        self.centres = np.asarray(centres, dtype=np.float32)
        if self.centres.shape[0] < 1 or self.centres.shape[1] < 2:
            raise ValueError(
                f"bin centres have shape {self.centres.shape}; at least 1 dimension and 2 bins are needed"
            )
        increasing = np.isfinite(self.centres).all(axis=1) & (np.diff(self.centres, axis=1) > 0).all(axis=1)
        if not increasing.all():
            dimension = int(np.flatnonzero(~increasing)[0])
            raise ValueError(
                f"the bin centres of action dimension {dimension} are not finite and increasing in float32"
            )
        wide = self.centres.astype(np.float64)
        self._edges: Float64[np.ndarray, "action bin-1"] = (wide[:, :-1] + wide[:, 1:]) / 2
        self._rows = np.arange(self.action_dim)
        self.centres.setflags(write=False)

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self.centres.shape[0]

    @property
    def num_bins(self) -> int:
        """Bins per action dimension."""
        return self.centres.shape[1]

    def encode(self, actions: Float[np.ndarray, "*batch action"]) -> Int64[np.ndarray, "*batch action"]:
        """Return the id of the nearest centre; a value midway between two gets the upper one.

        Raises:
            ValueError: the last axis is not `action_dim` long, or a value is NaN or infinite.
        """
        require_finite_actions(actions, action_dim=self.action_dim)
        bins = np.empty(actions.shape, dtype=np.int64)
        for dimension, edges in enumerate(self._edges):
            bins[..., dimension] = np.searchsorted(edges, actions[..., dimension], side="right")
        return bins

    def decode(self, bins: np.ndarray) -> Float32[np.ndarray, "*batch action"]:
        """Return the centres of integer ids [*batch action].

        Raises:
            DecodeError: wrong shape, a dtype that is no integer, or an id outside [0, num_bins).
        """
        if bins.ndim < 1 or bins.shape[-1] != self.action_dim:
            raise DecodeError(
                f"action ids have shape {bins.shape}; the last axis must hold {self.action_dim} dimensions"
            )
        if not np.issubdtype(bins.dtype, np.integer):
            raise DecodeError(f"action ids have dtype {bins.dtype}; they must be integers")
        illegal = (bins < 0) | (bins >= self.num_bins)
        if illegal.any():
            *position, dimension = first_true(illegal)
            raise DecodeError(
                f"action id {bins[(*position, dimension)]} at position {tuple(position)}, "
                f"dimension {dimension} is outside [0, {self.num_bins}); hold the last command"
            )
        return self.centres[self._rows, bins]


def require_finite_actions(actions: Float[np.ndarray, "..."], *, action_dim: int) -> None:
    """Check that the last axis has `action_dim` finite numbers.

    Raises:
        ValueError: it has not; the message names the position and the dimension.
    """
    if actions.ndim < 1 or actions.shape[-1] != action_dim:
        raise ValueError(
            f"actions have shape {actions.shape}; the last axis must hold {action_dim} dimensions"
        )
    if not np.isfinite(actions).all():
        *position, dimension = first_true(~np.isfinite(actions))
        raise ValueError(
            f"action at position {tuple(position)}, dimension {dimension} is "
            f"{actions[(*position, dimension)]}; actions must be finite"
        )


def require_range(low: Float64[np.ndarray, " action"], high: Float64[np.ndarray, " action"]) -> None:
    """Check that every action dimension has a finite range of positive width.

    Raises:
        ValueError: one has not; the message names the dimension.
    """
    if low.shape != high.shape or low.ndim != 1 or low.size == 0:
        raise ValueError(f"low has shape {low.shape} and high {high.shape}; both must be [action], not empty")
    usable = np.isfinite(low) & np.isfinite(high) & (low < high)
    if not usable.all():
        dimension = int(np.flatnonzero(~usable)[0])
        raise ValueError(
            f"action dimension {dimension} has the range [{low[dimension]:g}, {high[dimension]:g}]; "
            f"it must be finite with low < high, check the action limits of the robot spec"
        )


def require_keys(data: dict[str, Any], expected: Sequence[str], *, what: str) -> None:
    """Check that JSON data has exactly the expected keys.

    Raises:
        ValueError: it has not; the message names what is missing and what is unknown.
    """
    missing, unknown = sorted(set(expected) - set(data)), sorted(set(data) - set(expected))
    if missing or unknown:
        raise ValueError(f"{what} JSON lacks {missing} and has unknown keys {unknown}")


def first_true(mask: Bool[np.ndarray, "..."]) -> tuple[int, ...]:
    """Return the index of the first True."""
    return tuple(int(i) for i in np.argwhere(mask)[0])
