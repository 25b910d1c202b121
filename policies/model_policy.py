"""What all policies around a model share: a processor before and after. No torch, no files."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from vla.interface import Arrays, ArraySpec, Observation
from vla.processing.processor import Processor
from vla.spec import RobotSpec


class ModelPolicy(ABC):
    """A `Policy` around a processor; what runs the model is left to `run_model`.

    Args:
        processor: the one that the model was trained with.
        noise: arrays of standard normal noise that the model takes, by name. Every observation gets the same
            noise, so that an answer depends on its observation alone.
        noise_seed: of it.
    """

    def __init__(
        self, *, processor: Processor, noise: Mapping[str, ArraySpec] | None = None, noise_seed: int = 0
    ) -> None:
        self.processor = processor
        rng = np.random.default_rng(noise_seed)
        self._noise = {
            name: rng.standard_normal(spec.shape, dtype=np.float32) for name, spec in (noise or {}).items()
        }

    @abstractmethod
    def run_model(self, inputs: Arrays) -> Arrays:
        """Return what the codec decodes, for inputs and noise."""

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
            DecodeError: the model's answer is no action chunk. Hold the last command.
        """
        return self.processor.decode(self.answer(observations))

    def answer(self, observations: Sequence[Observation]) -> Arrays:
        """Return what the codec decodes, by the names of its specs.

        Raises:
            ObservationError: a camera or state dimension of the robot spec is missing or malformed.
        """
        return self.run_model(self.model_inputs(observations))

    def model_inputs(self, observations: Sequence[Observation]) -> Arrays:
        """Return all that the model takes for observations: inputs and noise.

        Raises:
            ObservationError: a camera or state dimension of the robot spec is missing or malformed.
        """
        noise = {name: np.stack([values] * len(observations)) for name, values in self._noise.items()}
        return {**self.processor.encode_observations(observations), **noise}
