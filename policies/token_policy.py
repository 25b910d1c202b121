"""What all policies that choose bins share: a processor before and after. Knows no torch and no files."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from vla.interface import Observation
from vla.processing.processor import ModelInputs, Processor
from vla.spec import RobotSpec


class TokenPolicy(ABC):
    """A `Policy` around a processor; what runs the model is left to `choose_bins`."""

    def __init__(self, *, processor: Processor) -> None:
        self.processor = processor

    @abstractmethod
    def choose_bins(self, inputs: ModelInputs) -> Int64[np.ndarray, "batch time action"]:
        """Run the model and return the chosen bin of every action, in [0, num_bins)."""

    @property
    def robot_spec(self) -> RobotSpec:
        """The robot that the policy was trained for."""
        return self.processor.robot_spec

    @property
    def frame_offsets(self) -> tuple[int, ...]:
        """Which frames the policy looks at, in control periods before now, oldest first."""
        return self.processor.frame_offsets

    @property
    def action_horizon(self) -> int:
        """Number of control periods in a predicted chunk."""
        return self.processor.action_horizon

    def predict(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "batch time action"]:
        """Return chunks in the units of `RobotSpec.action`, the first action for the period that starts now.

        Raises:
            ObservationError: a camera or state dimension of the robot spec is missing or malformed.
            DecodeError: the generated tokens are no action chunk. Hold the last command.
        """
        return self.decode_bins(self.predict_bins(observations))

    def predict_bins(self, observations: Sequence[Observation]) -> Int64[np.ndarray, "batch time action"]:
        """Return the chosen bin of every action, in [0, num_bins).

        Raises:
            ObservationError: a camera or state dimension of the robot spec is missing or malformed.
        """
        return self.choose_bins(self.processor.encode(observations))

    def decode_bins(
        self, bins: Int64[np.ndarray, "batch time action"]
    ) -> Float32[np.ndarray, "batch time action"]:
        """Return the actions of `bins`, in the units of `RobotSpec.action`.

        Raises:
            DecodeError: a bin is out of range; hold the last command.
        """
        return self.processor.decode(bins)
