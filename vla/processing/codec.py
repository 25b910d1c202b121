"""The contract of an action codec: between action chunks and the arrays that a head learns and answers.

A codec knows the length of a chunk and the limits of the robot; it knows no model. What it encodes is what a
head is trained on, what it decodes is what that head samples; the names of `specs` tie the two together.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64

from vla.interface import Arrays, ArraySpec


@runtime_checkable  # so that tests can check annotations
class ActionCodec(Protocol):
    """Turns chunks of actions into named arrays and back; every answer of its head decodes, or raises.

    Besides what stands here, a codec has a class method ``fit(actions, chunks, *, low, high, ...)`` whose
    further arguments are its settings: `actions` float32 [demonstration action] are all demonstrated ones,
    `chunks` float32 [sample time action] a sample of whole chunks, `low` and `high` the limits of the robot.
    """

    @property
    def action_horizon(self) -> int:
        """Control periods in a chunk."""
        ...

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        ...

    def specs(self) -> Mapping[str, ArraySpec]:
        """Return what `encode` makes and `decode` takes, by name."""
        ...

    def constants(self) -> Arrays:
        """Return tables that a head needs besides the specs, by name; without a batch axis, often none."""
        ...

    def encode(
        self,
        actions: Float32[np.ndarray, "batch time action"],
        valid: Bool[np.ndarray, "batch time"],
    ) -> Arrays:
        """Return what a head learns; steps that are not `valid` lie behind the end of an episode.

        Raises:
            ValueError: a wrong shape, NaN or infinity; the message says where.
        """
        ...

    def decode(self, outputs: Arrays) -> Float32[np.ndarray, "batch time action"]:
        """Return actions, all within the limits.

        Raises:
            DecodeError: an array is missing, of a wrong shape or type, or holds what stands for no action.
        """
        ...

    def committed_specs(self) -> Mapping[str, ArraySpec]:
        """Return what `encode_committed` makes, by name."""
        ...

    def encode_committed(
        self,
        actions: Float32[np.ndarray, "batch time action"],
        num_committed: Int64[np.ndarray, " batch"],
    ) -> Arrays:
        """Return the first `num_committed` actions of each chunk as inputs of the model; the rest counts not.

        Raises:
            ValueError: NaN or infinity among those that are committed.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data, with the codec's name under `kind`."""
        ...

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ActionCodec":
        """Rebuild from `to_json`, exactly."""
        ...
