"""What a training source is: samples by number, encoded by the very processor that serves the policy."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from vla.interface import Arrays, Observation
from vla.processing.moments import Demonstrations
from vla.processing.processor import Processor


@runtime_checkable  # so that tests can check annotations
class Source(Protocol):
    """A set of training samples, numbered from 0.

    Besides what stands here, a source has a class method ``open(*, dataset, action_horizon, frame_offsets,
    robot_spec, ...)`` that returns one for training and one that is held out; its further arguments,
    annotated with `Annotated`, are its settings. What is held out must not depend on the seed of a run, or
    runs with different seeds could not be compared.
    """

    @property
    def num_samples(self) -> int:
        """How many samples there are."""
        ...

    @property
    def groups(self) -> Int64[np.ndarray, " samples"] | None:
        """For each sample the number of its group, if groups are to have equal shares of an epoch."""
        ...

    def describe(self) -> str:
        """Return in a few words what it holds."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return what of its settings shapes what is learned; a resumed run must not change it unasked."""
        ...

    def fingerprints(self) -> list[str]:
        """Return short hashes of the episodes that its samples come from, if they come from any."""
        ...

    def demonstrations(self) -> Demonstrations:
        """Return what a processor is fitted to."""
        ...

    def batch(
        self,
        indices: Int64[np.ndarray, " batch"],
        *,
        processor: Processor,
        requests: Mapping[str, Any],
        seed: Sequence[int] | None,
    ) -> Arrays:
        """Return samples as inputs (through `Processor.encode`) and targets.

        Args:
            indices: which samples.
            processor: encodes inputs and targets.
            requests: further targets by name, as the auxiliary targets ask for them.
            seed: of everything random (augmentation, how many actions are committed); None for nothing
                random, as in validation.

        Returns:
            Inputs, targets of the codec, `valid` [batch time], and what was requested.

        Raises:
            ValueError: something is requested that this source does not have.
        """
        ...

    def observations(self, indices: Int64[np.ndarray, " batch"]) -> list[Observation]:
        """Return samples as a policy would have met them, with their true history."""
        ...
