"""A tiny model of each head with random weights, and inputs for it."""

import numpy as np
import torch
from torch import Tensor

from vla.interface import NOTHING, ArraySpec, ModelSpecs
from vla.model.vla import ModelConfig, VLAModel

HORIZON, DIMS, NUM_BINS = 4, 3, 16
BACKBONE = {"kind": "scene", "width": 32, "depth": 2, "num_heads": 2, "stem_channels": [8, 16]}
LATER = {"later": {"kind": "later_states", "offsets": [5]}}


def tiny_specs(*, committed: bool = False, image_size: int = 32) -> ModelSpecs:
    inputs = {
        "images": ArraySpec("uint8", (2, image_size, image_size, 3)),
        "text_ids": ArraySpec("int64", (6,), 44),
        "state": ArraySpec("float32", (5,)),
    }
    if committed:
        inputs["committed"] = ArraySpec("int64", (HORIZON, DIMS))
    targets = {"bins": ArraySpec("int64", (HORIZON, DIMS), NUM_BINS)}
    return ModelSpecs(inputs=inputs, targets=targets, constants={})


def tiny_model(
    head: str = "parallel", *, specs: ModelSpecs | None = None, auxiliaries=None, **sizes
) -> VLAModel:
    torch.manual_seed(0)
    config = ModelConfig.complete(
        backbone={**BACKBONE, **sizes}, head={"kind": head}, auxiliaries=auxiliaries
    )
    model = VLAModel(specs=specs or tiny_specs(), config=config)
    for parameter in model.parameters():  # zero-initialized branches would hide faults
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def inputs(batch: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randint(0, 256, (batch, 2, 32, 32, 3), dtype=torch.uint8, generator=generator),
        "text_ids": torch.randint(0, 44, (batch, 6), generator=generator),
        "state": torch.randn(batch, 5, generator=generator),
    }


def some_bins(batch: int = 3) -> Tensor:
    return torch.randint(0, 2, (batch, HORIZON, DIMS), generator=torch.Generator().manual_seed(2))


def committed_first(bins: Tensor, counts: list[int]) -> Tensor:
    given = torch.arange(HORIZON) < torch.tensor(counts)[:, None]
    return torch.where(given[..., None], bins, NOTHING)


def logits(model: VLAModel, given: dict[str, Tensor], bins: Tensor) -> Tensor:
    """Return the logits of a model over bins, teacher-forced where it sees bins."""
    prefix = model.backbone.prefill(given)
    last = given.get("committed") if model.config.head["kind"] == "parallel" else bins
    return model.head.logits(model.backbone, prefix, last)


def as_numpy(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
