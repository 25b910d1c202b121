"""A torch model and its processor as a `Policy`. Owns devices and tensors; knows no files or simulators."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from policies.interface import Observation
from policies.spec import RobotSpec
from vla.model.generation import generate
from vla.model.vla import VLAModel
from vla.tokenizers.processor import Processor


class VLAPolicy:
    """Greedy chunks from a `VLAModel`, in its own precision, on one device.

    The model is moved to `device` and put into evaluation mode in place.

    Raises:
        ValueError: the model and the processor were not made for each other, or a weight is not finite.
    """

    def __init__(self, *, model: VLAModel, processor: Processor, device: str = "cpu") -> None:
        _require_fitting(model, processor)
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise ValueError(f"weight {name!r} holds NaN or infinity; use an earlier checkpoint")
        self.processor = processor
        self.model = model.to(device).eval()
        self._device = torch.device(device)

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
        inputs = self.processor.encode(observations)
        images, text_ids, state = (
            torch.from_numpy(array).to(self._device)
            for array in (inputs.images, inputs.text_ids, inputs.state)
        )
        with torch.inference_mode():
            return generate(self.model, images, text_ids, state).cpu().numpy()

    def decode_bins(
        self, bins: Int64[np.ndarray, "batch time action"]
    ) -> Float32[np.ndarray, "batch time action"]:
        """Return the actions of `bins`, in the units of `RobotSpec.action`.

        Raises:
            DecodeError: a bin is out of range; hold the last command.
        """
        return self.processor.decode(bins)


def _require_fitting(model: VLAModel, processor: Processor) -> None:
    sizes = model.hyperparameters()
    given: dict[str, Any] = {
        "vocab_size": processor.vocabulary.size,
        "num_bins": processor.vocabulary.num_bins,
        "action_offset": processor.vocabulary.action_offset,
        "action_horizon": processor.action_horizon,
        "num_images": processor.num_images,
        "state_dim": len(processor.robot_spec.state),
        "max_text_tokens": processor.max_text_tokens,
    }
    faults = [f"{key}: {sizes[key]} against {given[key]}" for key in given if sizes[key] != given[key]]
    if len(sizes["bins_per_dim"]) != len(processor.robot_spec.action):
        actions = len(processor.robot_spec.action)
        faults.append(f"action dimensions: {len(sizes['bins_per_dim'])} against {actions}")
    if processor.image_size != (sizes["image_size"], sizes["image_size"]):
        faults.append(f"image size in pixels: {sizes['image_size']} against {processor.image_size}")
    if faults:
        listing = "\n  ".join(faults)
        raise ValueError(f"the model does not fit the processor (model against processor):\n  {listing}")
