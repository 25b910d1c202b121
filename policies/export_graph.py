"""Writes a model with its decoding as one ONNX graph, in fp32, with a dynamic batch axis.

Parallel decoding is one pass and exported as it is; autoregressive decoding becomes a loop (export_loop.py).
Both are exported from modules that make few nodes (graph_modules.py). Compares nothing and writes no files:
export.py does.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jaxtyping
import onnx
import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from policies.export_loop import export_loop
from policies.graph_modules import graph_friendly
from vla.interface import Observation
from vla.model.generation import generate
from vla.model.vla import VLAModel
from vla.processing.processor import Processor

OPSET = 20
INPUT_NAMES = ("images", "text_ids", "state", "committed")  # the last only where the policy takes it
MAX_BATCH = 1024


def export_graph(model: VLAModel, *, processor: Processor, observations: Sequence[Observation]) -> bytes:
    """Return the fp32 model with its decoding as a serialized ONNX graph, batch axis dynamic.

    `observations` only give the shapes. The model is copied.
    """
    inputs = processor.encode(
        [observations[0], observations[0]]
    )  # a batch of 1 would be taken for a constant
    arrays = [inputs.images, inputs.text_ids, inputs.state]
    if processor.max_committed:
        arrays.append(inputs.committed)
    example, names = tuple(map(torch.from_numpy, arrays)), INPUT_NAMES[: len(arrays)]
    model = graph_friendly(model)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    if model.decoding == "autoregressive":
        proto = export_loop(model, example, names=names, batch=batch, convert=_convert)
    else:
        shapes = tuple({0: batch} for _ in example)
        proto = _convert(Generation(model), example, inputs=[*names], outputs=["bins"], dynamic_shapes=shapes)
    onnx.helper.set_model_props(
        proto,
        {
            "robot_spec": json.dumps(processor.robot_spec.to_json()),
            "action_horizon": str(processor.action_horizon),
            "frame_offsets": json.dumps(list(processor.frame_offsets)),
        },
    )
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def _convert(
    module: nn.Module,
    arguments: tuple[Any, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: tuple[Any, ...],
) -> onnx.ModelProto:
    """Return a module as an ONNX model, without the exporter's notes."""
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            arguments,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto.graph)
    return proto


class Generation(nn.Module):
    """`generate` as a module: parallel decoding is one pass already."""

    def __init__(self, model: VLAModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        images: UInt8[Tensor, "batch images h w 3"],
        text_ids: Int[Tensor, "batch text"],
        state: Tensor,
        committed: Int[Tensor, "batch time action"] | None = None,
    ) -> Int[Tensor, "batch time action"]:
        """Return the chosen bin of every action."""
        return generate(self.model, images, text_ids, state, committed)


def _strip(graph: onnx.GraphProto) -> None:
    """Remove the exporter's notes (source lines, paths of this machine), in loop bodies too."""
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)
    for value in (*graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]
    del graph.metadata_props[:]


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide what torch's exporter says about itself and nobody can act on; all other warnings pass.

    Shape checks, where a test switched them on, are off meanwhile: the exporter cannot trace the checker.
    """
    checks_off = jaxtyping.config.jaxtyping_disable
    registry = logging.getLogger(
        "torch.onnx._internal.exporter._registration"
    )  # "torchvision is not installed"
    level = registry.level
    registry.setLevel(logging.ERROR)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            warnings.filterwarnings("ignore", r"# The axis name: \w+ will not be used", UserWarning)
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", checks_off)
        registry.setLevel(level)
