"""A table of bin centers per action dimension: the part that the uniform and the quantile codec share.

A value belongs to the bin with the nearest center, so the edges lie midway between centers, no bin has zero
width, and decoding and encoding again gives the same bin for every id.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from vla.interface import NOTHING, Arrays, ArraySpec, DecodeError
from vla.processing.checks import first_true


class BinCodec:
    """One bin per action of a chunk: `bins`, int64 [batch time action] with ids in [0, num_bins).

    Attributes:
        centers: float32 [action bin], strictly increasing along the bins, in the units of the actions.
        action_horizon: control periods in a chunk.
    """

    def __init__(self, *, centers: Float[np.ndarray, "action bin"], action_horizon: int) -> None:
        if action_horizon < 1:
            raise ValueError(f"action_horizon is {action_horizon}; a chunk has at least one action")
        self.action_horizon = action_horizon
        self.centers = np.asarray(centers, dtype=np.float32)
        if self.centers.shape[0] < 1 or self.centers.shape[1] < 2:
            raise ValueError(
                f"bin centers have shape {self.centers.shape}; at least 1 dimension and 2 bins are needed"
            )
        increasing = np.isfinite(self.centers).all(axis=1) & (np.diff(self.centers, axis=1) > 0).all(axis=1)
        if not increasing.all():
            dimension = int(np.flatnonzero(~increasing)[0])
            raise ValueError(
                f"the bin centers of action dimension {dimension} are not finite and increasing in float32"
            )
        wide = self.centers.astype(np.float64)
        self._edges: Float64[np.ndarray, "action bin-1"] = (wide[:, :-1] + wide[:, 1:]) / 2
        self._rows = np.arange(self.action_dim)
        self.centers.setflags(write=False)

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self.centers.shape[0]

    @property
    def num_bins(self) -> int:
        """Bins per action dimension."""
        return self.centers.shape[1]

    def specs(self) -> Mapping[str, ArraySpec]:
        """Return the form of `bins`."""
        return {"bins": ArraySpec("int64", (self.action_horizon, self.action_dim), num_ids=self.num_bins)}

    def constants(self) -> Arrays:
        """Return no tables: the specs say all."""
        return {}

    def encode(
        self, actions: Float[np.ndarray, "batch time action"], valid: Bool[np.ndarray, "batch time"]
    ) -> Arrays:
        """Return the bins of actions; those outside the limits get the first or last bin.

        Raises:
            ValueError: the last axis is not `action_dim` long, or a value is NaN or infinite.
        """
        return {"bins": self.nearest_bins(actions)}

    def nearest_bins(self, actions: Float[np.ndarray, "*batch action"]) -> Int64[np.ndarray, "*batch action"]:
        """Return the id of the nearest center; a value midway between two gets the upper one.

        Raises:
            ValueError: the last axis is not `action_dim` long, or a value is NaN or infinite.
        """
        require_finite_actions(actions, action_dim=self.action_dim)
        bins = np.empty(actions.shape, dtype=np.int64)
        for dimension, edges in enumerate(self._edges):
            bins[..., dimension] = np.searchsorted(edges, actions[..., dimension], side="right")
        return bins

    def decode(self, outputs: Arrays) -> Float32[np.ndarray, "batch time action"]:
        """Return the centers of `bins`.

        Raises:
            DecodeError: no `bins`, a wrong shape, a dtype that is no integer, or an id outside [0, num_bins).
        """
        if "bins" not in outputs:
            raise DecodeError(f"the model answered {sorted(outputs)}, but no 'bins'; hold the last command")
        bins = outputs["bins"]
        expected = (self.action_horizon, self.action_dim)
        if bins.ndim != 3 or bins.shape[1:] != expected:
            raise DecodeError(
                f"action bins have shape {bins.shape}; expected (batch, {expected[0]}, {expected[1]})"
            )
        return self.actions_of(bins)

    def actions_of(self, bins: np.ndarray) -> Float32[np.ndarray, "*batch action"]:
        """Return the centers of integer ids [*batch action].

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
        return self.centers[self._rows, bins]

    def committed_specs(self) -> Mapping[str, ArraySpec]:
        """Return the form of `committed`: bins, `NOTHING` from the first step on that is not committed."""
        return {"committed": ArraySpec("int64", (self.action_horizon, self.action_dim))}

    def encode_committed(
        self,
        actions: Float[np.ndarray, "batch time action"],
        num_committed: Int64[np.ndarray, " batch"],
    ) -> Arrays:
        """Return the bins of the first `num_committed` actions of each chunk, `NOTHING` behind them.

        Raises:
            ValueError: one of them is NaN or infinite.
        """
        given = np.arange(actions.shape[1]) < num_committed[:, None]
        bins = self.nearest_bins(np.where(given[..., None], actions, self.centers[:, 0]))
        return {"committed": np.where(given[..., None], bins, NOTHING)}


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
