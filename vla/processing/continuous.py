"""Action chunks as real numbers, about [-1, 1] in every dimension: what a flow-matching head learns.

`NormalizedActions` holds what every codec of normalized actions shares: the constants, the committed actions
as inputs of the model, and the way back to the units and limits of the robot.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from vla.interface import Arrays, ArraySpec, DecodeError
from vla.processing.bins import require_finite_actions, require_range
from vla.processing.checks import first_true, require_keys
from vla.processing.ranges import typical_range

SHARED_KEYS = ("kind", "action_horizon", "low", "high", "offset", "half_width")


class NormalizedActions:
    """Scales each action dimension to about [-1, 1] by constants taken from the demonstrations.

    Attributes:
        action_horizon: control periods in a chunk.
        low, high: float32 [action], the limits of the robot, in its units; nothing outside is ever decoded.
        offset: float64 [action], in the units of the robot; normalized to 0.
        half_width: float64 [action], in the units of the robot; `offset` plus this is normalized to 1.
            Where it is 0, all demonstrations have the value `offset`: the dimension is encoded as 0 and
            decoded to `offset`, whatever a model generates.
    """

    def __init__(
        self,
        *,
        action_horizon: int,
        low: Float[np.ndarray, " action"],
        high: Float[np.ndarray, " action"],
        offset: Float[np.ndarray, " action"],
        half_width: Float[np.ndarray, " action"],
    ) -> None:
        self.action_horizon = action_horizon
        self.low, self.high = np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)
        self.offset = np.asarray(offset, dtype=np.float64)
        self.half_width = np.asarray(half_width, dtype=np.float64)
        require_range(self.low.astype(np.float64), self.high.astype(np.float64))
        if action_horizon < 1:
            raise ValueError(f"action_horizon is {action_horizon}; it must be positive")
        usable = np.isfinite(self.offset) & np.isfinite(self.half_width) & (self.half_width >= 0)
        if not usable.all():
            i = int(np.flatnonzero(~usable)[0])
            raise ValueError(
                f"action dimension {i} has offset {self.offset[i]} and half_width {self.half_width[i]}; both "
                f"must be finite and half_width not negative"
            )

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self.low.size

    def normalize(self, actions: Float[np.ndarray, "*batch action"]) -> Float32[np.ndarray, "*batch action"]:
        """Return actions, given in the units of the robot and clipped to its limits, in about [-1, 1]."""
        moves = self.half_width > 0
        executable = np.clip(actions.astype(np.float64), self.low, self.high)
        unit = (executable - self.offset) / np.where(moves, self.half_width, 1.0)
        return np.where(moves, unit, 0.0).astype(np.float32)

    def denormalize(self, unit: Float[np.ndarray, "*batch action"]) -> Float32[np.ndarray, "*batch action"]:
        """Undo `normalize` for finite numbers and clip to [low, high]."""
        actions = self.offset + self.half_width * unit.astype(np.float64)
        return np.clip(actions, self.low, self.high).astype(np.float32)

    def committed_specs(self) -> Mapping[str, ArraySpec]:
        """Return what `encode_committed` makes, by name."""
        return {
            "committed": ArraySpec(dtype="float32", shape=(self.action_horizon, self.action_dim)),
            "num_committed": ArraySpec(dtype="int64", shape=()),
        }

    def encode_committed(
        self,
        actions: Float32[np.ndarray, "batch time action"],
        num_committed: Int64[np.ndarray, " batch"],
    ) -> Arrays:
        """Return the first `num_committed` actions of each chunk, normalized, and 0 from there on.

        Args:
            actions: [batch action_horizon action], in the units of the robot; what is not committed is
                not read and may be NaN.
            num_committed: int [batch], in [0, action_horizon].

        Raises:
            ValueError: a wrong shape, a number outside the range, or NaN or infinity among those that are
                committed.
        """
        self._require_chunks(actions)
        illegal = (num_committed < 0) | (num_committed > self.action_horizon)
        if num_committed.shape != actions.shape[:1] or illegal.any():
            raise ValueError(
                f"num_committed is {num_committed.tolist()}; it must be one number per chunk, "
                f"{len(actions)}, each in [0, {self.action_horizon}]"
            )
        is_committed = (np.arange(self.action_horizon) < num_committed[:, None])[:, :, None]
        known = np.where(is_committed, actions, self.offset)
        require_finite_actions(known, action_dim=self.action_dim)
        return {
            "committed": np.where(is_committed, self.normalize(known), np.float32(0.0)),
            "num_committed": num_committed.astype(np.int64),
        }

    def _require_chunks(self, actions: np.ndarray) -> None:
        expected = (self.action_horizon, self.action_dim)
        if actions.ndim != 3 or actions.shape[1:] != expected:
            raise ValueError(
                f"action chunks have shape {actions.shape}; (batch, {expected[0]}, {expected[1]}) is needed"
            )

    def _require_finite_chunks(self, actions: np.ndarray, valid: np.ndarray) -> None:
        self._require_chunks(actions)
        require_finite_actions(actions, action_dim=self.action_dim)
        if valid.shape != actions.shape[:2] or valid.dtype != np.bool_:
            raise ValueError(
                f"valid is {valid.dtype}{list(valid.shape)}; bool{list(actions.shape[:2])} is needed, "
                f"one for each step of the chunks"
            )

    def _shared_json(self, *, kind: str) -> dict[str, Any]:
        return {
            "kind": kind,
            "action_horizon": self.action_horizon,
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "offset": self.offset.tolist(),
            "half_width": self.half_width.tolist(),
        }


class ContinuousCodec(NormalizedActions):
    """Gives a head whole chunks of normalized numbers; what it samples is scaled back and clipped.

    An action within the limits is reconstructed up to float32 rounding.
    """

    @classmethod
    def fit(
        cls,
        actions: Float32[np.ndarray, "demonstration action"],
        chunks: Float32[np.ndarray, "sample time action"],
        *,
        low: Float[np.ndarray, " action"],
        high: Float[np.ndarray, " action"],
    ) -> "ContinuousCodec":
        """Take the constants from all demonstrated actions, the length of a chunk from `chunks`.

        Raises:
            ValueError: no data, NaN or infinity, or shapes that do not agree; the message says where.
        """
        require_demonstrations(actions, chunks, action_dim=low.size)
        offset, half_width = quantile_range(actions, low=low, high=high)
        return cls(action_horizon=chunks.shape[1], low=low, high=high, offset=offset, half_width=half_width)

    def specs(self) -> Mapping[str, ArraySpec]:
        """Return what `encode` makes and `decode` takes, by name."""
        return {"actions": ArraySpec(dtype="float32", shape=(self.action_horizon, self.action_dim))}

    def constants(self) -> Arrays:
        """Return no tables: a head needs none."""
        return {}

    def encode(
        self,
        actions: Float32[np.ndarray, "batch time action"],
        valid: Bool[np.ndarray, "batch time"],
    ) -> Arrays:
        """Return the normalized actions; the loss of a head leaves out the steps that are not valid.

        Args:
            actions: [batch action_horizon action], in the units of the robot; clipped to its limits.
            valid: False behind the end of an episode.

        Raises:
            ValueError: a wrong shape, NaN or infinity; the message says where.
        """
        self._require_finite_chunks(actions, valid)
        return {"actions": self.normalize(actions)}

    def decode(self, outputs: Arrays) -> Float32[np.ndarray, "batch time action"]:
        """Return actions in the units of the robot, clipped to its limits.

        Raises:
            DecodeError: ``actions`` is missing, of a wrong shape or type, NaN or infinite.
        """
        expected = (self.action_horizon, self.action_dim)
        unit = require_output(outputs, "actions", shape=expected, kind=np.floating)
        if not np.isfinite(unit).all():
            *position, dimension = first_true(~np.isfinite(unit))
            raise DecodeError(
                f"the sampled action at position {tuple(position)}, dimension {dimension} is "
                f"{unit[(*position, dimension)]}; hold the last command"
            )
        return self.denormalize(unit)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data; float32 and float64 numbers survive JSON exactly."""
        return self._shared_json(kind="continuous")

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ContinuousCodec":
        """Rebuild from `to_json`, exactly.

        Raises:
            ValueError: missing or unknown keys, or numbers that are no constants of a codec.
        """
        require_keys(data, SHARED_KEYS, what="continuous action codec")
        return cls(**shared_arguments(data))


def quantile_range(
    actions: Float[np.ndarray, "demonstration action"],
    *,
    low: Float[np.ndarray, " action"],
    high: Float[np.ndarray, " action"],
) -> tuple[Float64[np.ndarray, " action"], Float64[np.ndarray, " action"]]:
    """Return middle and half width of the `typical_range` of each dimension.

    Actions are clipped to [low, high] first; the half width is exactly 0 if float32 cannot tell the values
    from one another next to these limits.
    """
    low, high = low.astype(np.float64), high.astype(np.float64)
    clipped = np.clip(actions.astype(np.float64), low, high)
    narrowest = 4 * np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high))
    least, greatest = typical_range(clipped, low=low, high=high)
    flat = clipped.max(axis=0) - clipped.min(axis=0) <= narrowest
    return (least + greatest) / 2, np.where(flat, 0.0, (greatest - least) / 2)


def require_demonstrations(
    actions: Float[np.ndarray, "demonstration action"],
    chunks: Float[np.ndarray, "sample time action"],
    *,
    action_dim: int,
) -> None:
    """Check what a codec is fitted to.

    Raises:
        ValueError: no data, NaN or infinity, or shapes that do not agree; the message says which.
    """
    if actions.ndim != 2 or chunks.ndim != 3 or actions.size == 0 or chunks.size == 0:
        raise ValueError(
            f"the demonstrated actions have shape {actions.shape} and the chunks {chunks.shape}; "
            f"[demonstration action] and [sample time action] are needed, neither of them empty"
        )
    require_finite_actions(actions, action_dim=action_dim)
    require_finite_actions(chunks, action_dim=action_dim)


def require_output(
    outputs: Arrays, name: str, *, shape: tuple[int, ...], kind: type[np.number]
) -> np.ndarray:
    """Return the named array [batch, *shape] of what a head answered.

    Raises:
        DecodeError: it is missing, of another shape, or its numbers are not of that kind.
    """
    if name not in outputs:
        raise DecodeError(f"the head answered {sorted(outputs)}; {name!r} is needed")
    values = outputs[name]
    if values.shape[1:] != shape or values.ndim != 1 + len(shape):
        expected = ", ".join(str(length) for length in ("batch", *shape))
        raise DecodeError(f"{name!r} has shape {values.shape}; ({expected}) is needed")
    if not np.issubdtype(values.dtype, kind):
        raise DecodeError(f"{name!r} has dtype {values.dtype}; {kind.__name__} numbers are needed")
    return values


def shared_arguments(data: dict[str, Any]) -> dict[str, Any]:
    """Return from JSON the arguments that every codec of normalized actions takes.

    Raises:
        ValueError: limits and constants do not hold one number per action dimension.
    """
    limits = {name: np.asarray(data[name], dtype=np.float32) for name in ("low", "high")}
    constants = {name: np.asarray(data[name], dtype=np.float64) for name in ("offset", "half_width")}
    shapes = {name: array.shape for name, array in (limits | constants).items()}
    if len(set(shapes.values())) != 1 or limits["low"].ndim != 1:
        raise ValueError(f"the shapes {shapes} differ; each must hold one number per action dimension")
    return {"action_horizon": data["action_horizon"], **limits, **constants}
