"""What every action tokenizer offers, and how one is chosen by name. Also the errors of this package.

A new action tokenizer is a class that fits the protocol below plus one line in `registry.py`. Nothing here
knows a concrete tokenizer.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int64

from vla.interface import ObservationError


class InstructionTooLong(ObservationError):
    """An instruction has more tokens than the model reads; the message names both numbers."""


@runtime_checkable  # for the shape checker of the tests
class ActionTokenizer(Protocol):
    """Turns each number of an action into one of `num_bins` ids and back.

    Every id in [0, num_bins) is legal in every action dimension, so a decoder that chooses among
    `num_bins` logits cannot produce a malformed action.
    """

    @property
    def num_bins(self) -> int:
        """Ids per action dimension."""
        ...

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        ...

    @classmethod
    def fit(
        cls,
        actions: Float[np.ndarray, "demonstration action"],
        *,
        low: Float[np.ndarray, " action"],
        high: Float[np.ndarray, " action"],
        num_bins: int,
    ) -> "ActionTokenizer":
        """Make a tokenizer for actions in [low, high], given those of the demonstrations."""
        ...

    def encode(self, actions: Float[np.ndarray, "*batch action"]) -> Int64[np.ndarray, "*batch action"]:
        """Return ids in [0, num_bins); actions outside [low, high] get the first or last id.

        Raises:
            ValueError: wrong number of dimensions, NaN or infinity; the message says where.
        """
        ...

    def decode(self, bins: np.ndarray) -> Float32[np.ndarray, "*batch action"]:
        """Return the actions that the ids stand for, all in [low, high].

        Raises:
            DecodeError: `bins` is not an integer array [*batch action] of ids in [0, num_bins).
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data, with the tokenizer's name under `kind`."""
        ...

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ActionTokenizer":
        """Rebuild from `to_json`, exactly."""
        ...
