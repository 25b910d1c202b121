"""The robot's state as the model takes it: each channel scaled to about [-1, 1].

The constants are taken from the demonstrations and travel with the processor, hence with every checkpoint and
bundle, never with a config.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Float32, Float64

from vla.interface import Arrays, ArraySpec, Moments, ObservationError
from vla.processing.checks import first_true, require_keys
from vla.processing.moments import Demonstrations
from vla.processing.ranges import typical_range
from vla.spec import RobotSpec

CLIP = 1.5  # times the distance from the middle to the ends of the typical range


class Normalizer:
    """Maps x to clip((x - offset) / scale, -clip, clip), channel by channel.

    A channel in `constant_dims` had one value in all demonstrations; it becomes 0 whatever it reads.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        offset: Float[np.ndarray, " channel"],
        scale: Float[np.ndarray, " channel"],
        clip: float = CLIP,
        constant_dims: Sequence[str] = (),
    ) -> None:
        self.names, self.constant_dims, self.clip = tuple(names), tuple(constant_dims), float(clip)
        self.offset, self.scale = np.asarray(offset, dtype=np.float64), np.asarray(scale, dtype=np.float64)
        _require_known(self.constant_dims, self.names)
        if self.offset.shape != (len(self.names),) or self.scale.shape != (len(self.names),):
            raise ValueError(
                f"offset has shape {self.offset.shape} and scale {self.scale.shape}; "
                f"both must be ({len(self.names)},)"
            )
        if not (np.isfinite(self.clip) and self.clip > 0):
            raise ValueError(f"clip is {clip}; it must be positive and finite")
        usable = np.isfinite(self.offset) & np.isfinite(self.scale) & (self.scale > 0)
        if not usable.all():
            i = int(np.flatnonzero(~usable)[0])
            raise ValueError(
                f"channel {self.names[i]!r} has offset {self.offset[i]} and scale {self.scale[i]}; "
                f"both must be finite and the scale positive"
            )
        self._moves = np.array([name not in self.constant_dims for name in self.names], dtype=np.bool_)

    @classmethod
    def fit(
        cls,
        batches: Iterable[Float[np.ndarray, "_ channel"]],
        *,
        names: Sequence[str],
        low: Float[np.ndarray, " limits"],
        high: Float[np.ndarray, " limits"],
        constant_dims: Sequence[str] = (),
    ) -> "Normalizer":
        """Take the constants from batches of rows, read once in any number of pieces.

        The ends of the `typical_range`, as a rule the 1 % and 99 % quantiles, become -1 and 1. Exact
        quantiles need all rows: 40 bytes each, so they are kept.

        Args:
            batches: of rows, in the units of the channels.
            names: of the channels.
            low: declared limits of the channels; rows may lie outside.
            high: declared limits of the channels.
            constant_dims: channels that have one value; they become 0.

        Raises:
            ValueError: no rows, a wrong number of channels, NaN or infinity, or a channel of zero width that
                is not in `constant_dims`; the message names the channel.
        """
        names = tuple(names)
        _require_known(constant_dims, names)
        checked = [_finite(np.asarray(batch, dtype=np.float64), names=names) for batch in batches]
        rows = np.concatenate(checked) if checked else np.empty((0, len(names)))
        if len(rows) == 0:
            raise ValueError("there are no rows to fit the normalizer to; the data set is empty")
        least, greatest = typical_range(rows, low=low.astype(np.float64), high=high.astype(np.float64))
        offset, scale = (least + greatest) / 2, (greatest - least) / 2
        width = rows.max(axis=0) - rows.min(axis=0)
        narrowest = 8 * np.finfo(np.float32).eps * np.abs(offset)  # what float32 cannot tell from zero width
        constant = np.array([name in constant_dims for name in names], dtype=np.bool_)
        flat = (width <= narrowest) & ~constant
        if flat.any():
            i = int(np.flatnonzero(flat)[0])
            raise ValueError(
                f"channel {names[i]!r} has zero width: all {len(rows)} rows read {offset[i]:g}. "
                f"Record demonstrations in which it moves, or list it in constant_dims (in a recipe: "
                f"processor.inputs.state.constant_dims) to encode it as 0"
            )
        return cls(
            names=names,
            offset=offset,
            scale=np.where(constant, 1.0, scale),
            constant_dims=constant_dims,
        )

    def normalize(self, values: Float[np.ndarray, "*batch channel"]) -> Float32[np.ndarray, "*batch channel"]:
        """Return the scaled values in [-clip, clip].

        Raises:
            ValueError: a wrong number of channels, NaN or infinity; the message names the channel.
        """
        unit = (_finite(values.astype(np.float64), names=self.names) - self.offset) / self.scale
        return np.where(self._moves, np.clip(unit, -self.clip, self.clip), 0.0).astype(np.float32)

    def denormalize(self, unit: Float[np.ndarray, "*batch channel"]) -> Float32[np.ndarray, "*batch channel"]:
        """Undo `normalize` for values that it did not clip; a constant channel gets its one value."""
        moving = np.where(self._moves, _finite(unit.astype(np.float64), names=self.names), 0.0)
        return (moving * self.scale + self.offset).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return the constants; float64 values survive JSON exactly."""
        return {
            "names": list(self.names),
            "offset": self.offset.tolist(),
            "scale": self.scale.tolist(),
            "clip": self.clip,
            "constant_dims": list(self.constant_dims),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Normalizer":
        """Rebuild from `to_json`, exactly."""
        require_keys(data, ("names", "offset", "scale", "clip", "constant_dims"), what="normalizer")
        return cls(
            names=data["names"],
            offset=np.asarray(data["offset"], dtype=np.float64),
            scale=np.asarray(data["scale"], dtype=np.float64),
            clip=data["clip"],
            constant_dims=data["constant_dims"],
        )


class StateInput:
    """Makes `state`, float32 [batch state], normalized and clipped.

    Raises:
        ValueError: the normalizer is for other channels than those of the robot spec.
    """

    def __init__(self, *, robot_spec: RobotSpec, normalizer: Normalizer) -> None:
        if normalizer.names != robot_spec.state_names:
            raise ValueError(
                f"the state normalizer is for {normalizer.names}, robot spec {robot_spec.name!r} has "
                f"{robot_spec.state_names}"
            )
        self.normalizer = normalizer

    @classmethod
    def fit(
        cls,
        demonstrations: Demonstrations,
        *,
        frame_offsets: Sequence[int],
        constant_dims: Annotated[Sequence[str], "channels that never move; encoded as 0"] = (),
    ) -> "StateInput":
        """Take the constants from the demonstrated states.

        Raises:
            ValueError: as in `Normalizer.fit`.
        """
        spec = demonstrations.robot_spec
        normalizer = Normalizer.fit(
            [demonstrations.states],
            names=spec.state_names,
            low=np.array([channel.low for channel in spec.state]),
            high=np.array([channel.high for channel in spec.state]),
            constant_dims=constant_dims,
        )
        return cls(robot_spec=spec, normalizer=normalizer)

    def specs(self) -> Mapping[str, ArraySpec]:
        """Return the form of `state`."""
        return {"state": ArraySpec("float32", (len(self.normalizer.names),))}

    def encode(self, moments: Moments) -> Arrays:
        """Return normalized states, in about [-1, 1], clipped.

        Raises:
            ObservationError: a wrong number of channels, NaN or infinity; the message names the channel.
        """
        return {"state": self.normalize(moments.state)}

    def normalize(self, states: Float32[np.ndarray, "*batch state"]) -> Float32[np.ndarray, "*batch state"]:
        """Return states in about [-1, 1], clipped.

        Raises:
            ObservationError: a wrong number of channels, NaN or infinity; the message names the channel.
        """
        try:
            return self.normalizer.normalize(states)
        except ValueError as error:
            raise ObservationError(f"state: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Return the constants."""
        return {"kind": "state", "normalizer": self.normalizer.to_json()}

    @classmethod
    def from_json(
        cls, data: dict[str, Any], *, robot_spec: RobotSpec, frame_offsets: Sequence[int]
    ) -> "StateInput":
        """Rebuild from `to_json`, exactly."""
        require_keys(data, ("kind", "normalizer"), what="state input")
        return cls(robot_spec=robot_spec, normalizer=Normalizer.from_json(data["normalizer"]))


def _require_known(constant_dims: Sequence[str], names: Sequence[str]) -> None:
    unknown = sorted(set(constant_dims) - set(names))
    if unknown:
        raise ValueError(f"constant_dims names {unknown}, which do not exist; the channels are {list(names)}")


def _finite(
    values: Float64[np.ndarray, "*batch channel"], *, names: Sequence[str]
) -> Float64[np.ndarray, "*batch channel"]:
    if values.ndim < 1 or values.shape[-1] != len(names):
        raise ValueError(f"values have shape {values.shape}; the last axis must hold {list(names)}")
    if not np.isfinite(values).all():
        *position, i = first_true(~np.isfinite(values))
        raise ValueError(
            f"channel {names[i]!r} is {values[(*position, i)]} at position {tuple(position)}; "
            f"it must be finite"
        )
    return values
