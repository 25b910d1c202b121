"""Writes a model with its sampling as one ONNX graph, in fp32, with a dynamic batch axis.

What samples in one pass is exported as it is; heads that choose id after id become a loop (export_loop.py).
Both are exported from modules that make few nodes (graph_modules.py).
"""

import contextlib
import io
import json
import logging
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jaxtyping
import onnx
import torch
from torch import Tensor, nn

from policies.export_loop import export_loop
from policies.graph_modules import graph_friendly
from vla.errors import VLAError
from vla.interface import Arrays
from vla.model.heads.stepwise import StepwiseHead
from vla.model.vla import VLAModel
from vla.processing.processor import Processor

OPSET = 20
MAX_BATCH = 1024


class NotExportable(VLAError):
    """A head samples in a way that no graph has; the message names the line."""


def export_graph(model: VLAModel, *, processor: Processor, inputs: Arrays) -> bytes:
    """Return the fp32 model with its sampling as a serialized ONNX graph, batch axis dynamic.

    `inputs`, noise included, only give the names and shapes; a batch of two, as one would be taken for a
    constant. The model is copied.

    Raises:
        NotExportable: what the head does cannot be written as a graph.
    """
    names, example = list(inputs), tuple(torch.from_numpy(array) for array in inputs.values())
    model = graph_friendly(model)
    try:
        proto = _graph_of(model, example, names)
    except torch.onnx.OnnxExporterError as error:
        raise _not_exportable(error, head=model.config.head["kind"]) from error
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


def _graph_of(model: VLAModel, example: tuple[Tensor, ...], names: list[str]) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    if isinstance(model.head, StepwiseHead):
        return export_loop(model, example, names=names, batch=batch, convert=_convert)
    return _convert(
        Sampling(model, names),
        example,
        inputs=names,
        outputs=list(model.specs.targets),
        dynamic_shapes=(tuple({0: batch} for _ in example),),
    )


def _not_exportable(error: BaseException, *, head: str) -> NotExportable:
    """Return the error for what torch could not write as a graph: the reason, and the line that led to it."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    torch_lies = str(Path(torch.__file__).parent)
    frames = [one for one in traceback.extract_tb(cause.__traceback__) if torch_lies not in one.filename]
    place = f" (`{frames[-1].line}` at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return NotExportable(
        f"head {head!r} cannot become a graph: {str(cause).splitlines()[0]}{place}. Its sample may not ask "
        "what is in a tensor (if, while, .item()): use torch.where, and loop a fixed number of times, or "
        "derive the head from StepwiseHead if it chooses id after id. Nothing was written; the checkpoint "
        "can be evaluated all the same"
    )


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


class Sampling(nn.Module):
    """`VLAModel.sample` with its inputs in a fixed order."""

    def __init__(self, model: VLAModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs in the order of the specs."""
        outputs = self.model.sample(dict(zip(self.names, tensors, strict=True)))
        return tuple(outputs[name] for name in self.model.specs.targets)


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
    shapes = logging.getLogger("torch.fx.experimental.symbolic_shapes")  # what a failure says in full
    levels = {logger: logger.level for logger in (registry, shapes)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            warnings.filterwarnings("ignore", r"# The axis name: \w+ will not be used", UserWarning)
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", checks_off)
        for logger, level in levels.items():
            logger.setLevel(level)
