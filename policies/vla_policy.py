"""A torch model and its processor as a `Policy`. Owns devices and tensors; knows no files or simulators."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from policies.token_policy import TokenPolicy
from vla.model.generation import generate
from vla.model.vla import VLAModel
from vla.processing.processor import ModelInputs, Processor


class VLAPolicy(TokenPolicy):
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
        super().__init__(processor=processor)
        self.model = model.to(device).eval()
        self._device = torch.device(device)

    def choose_bins(self, inputs: ModelInputs) -> Int64[np.ndarray, "batch time action"]:
        """Run the model and return the chosen bin of every action, in [0, num_bins)."""
        images, text_ids, state, committed = (
            torch.from_numpy(array).to(self._device)
            for array in (inputs.images, inputs.text_ids, inputs.state, inputs.committed)
        )
        given = committed if self.processor.max_committed else None
        with torch.inference_mode():
            return generate(self.model, images, text_ids, state, given).cpu().numpy()


def _require_fitting(model: VLAModel, processor: Processor) -> None:
    sizes = model.sizes.to_json()
    given: dict[str, Any] = {
        "vocab_size": processor.vocabulary.size,
        "num_bins": processor.vocabulary.num_bins,
        "action_offset": processor.vocabulary.action_offset,
        "action_horizon": processor.action_horizon,
        "num_images": processor.num_images,
        "state_dim": len(processor.robot_spec.state),
        "max_text_tokens": processor.max_text_tokens,
        "max_committed": processor.max_committed,
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
