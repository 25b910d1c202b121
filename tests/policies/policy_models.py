"""Tiny models for the tests that export one or compare with one."""

import torch
from torch import nn

from vla.model.vla import ModelConfig, VLAModel
from vla.processing.processor import Processor


def tiny_model(processor: Processor, *, head="parallel") -> VLAModel:
    """Random weights, the same each time, large enough that tokens depend on the input and on one another."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return _random_model(processor, head=head)


def _random_model(processor, *, head):
    backbone = {
        "kind": "scene",
        "width": 32,
        "depth": 1 if head == "parallel" else 2,
        "num_heads": 2,
        "stem_channels": [8, 16],
    }
    config = ModelConfig.complete(backbone=backbone, head={"kind": head})
    model = VLAModel(specs=processor.specs(), config=config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1 if head == "flow" else 0.3)  # a flow amplifies differences
    backbone = model.backbone
    nn.init.normal_(backbone.context_tokenizer[2].weight, std=0.02)  # added to every token: would drown them
    if head in ("parallel", "autoregressive"):
        nn.init.normal_(model.head.bin_logits.residual.weight, std=2.0)  # more than the Gaussian beside it
    nn.init.normal_(backbone.token_embedding.weight, std=1.0 if head == "autoregressive" else 0.3)
    return model
