"""What can run the model besides torch itself, each as a policy of one thread and one observation at a time.

All answer the same questions, so that each can be compared with torch, token by token.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.bundle import read_bundle
from policies.export_graph import Sampling
from policies.export_loop import Beginning, Carried, Step, stepwise
from policies.exported import BundlePolicy
from policies.graph_modules import graph_friendly
from policies.model_policy import ModelPolicy
from policies.vla_policy import VLAPolicy
from vla.interface import NOTHING, Arrays, ArraySpec
from vla.model.heads.stepwise import StepwiseHead
from vla.model.vla import VLAModel
from vla.processing.processor import Processor


class CompiledPolicy(ModelPolicy):
    """torch.compile: one pass, or prefix and step looped by Python for heads that choose id after id."""

    def __init__(self, *, model: VLAModel, processor: Processor) -> None:
        super().__init__(processor=processor, noise=model.noise_specs(training=False))
        self._model = graph_friendly(model)
        self._names = [*processor.specs().inputs, *model.noise_specs(training=False)]
        self._pass = self._step = None
        if isinstance(self._model.head, StepwiseHead):
            self._beginning = Beginning(self._model, self._names)
            self._first = _compiled(self._beginning)
        else:
            self._pass = _compiled(Sampling(self._model, self._names))

    def run_model(self, inputs: Arrays) -> Arrays:
        """Run the compiled model."""
        tensors = [torch.from_numpy(inputs[name]) for name in self._names]
        with torch.no_grad():
            if self._pass is None:
                return self._loop(*tensors)
            outputs = self._pass(*tensors)
        return dict(zip(self._model.specs.targets, (output.numpy() for output in outputs), strict=True))

    def _loop(self, *tensors: Tensor) -> Arrays:
        head = stepwise(self._model)
        if self._step is None:
            given, decoding = self._beginning.decode(*tensors)
            carried = Carried(decoding)
            self._num_given, self._num_carried = len(given), len(carried.names)
            self._step = _compiled(Step(self._model, carried), dynamic=True)
        first = self._first(*tensors)
        given, carried_now = [*first[: self._num_given]], [*first[self._num_given :]]
        chosen = np.full((len(tensors[0]), head.max_ids), NOTHING, dtype=np.int64)
        for position in range(head.max_ids):
            ids, *rest = self._step(torch.tensor(position), given, carried_now)
            chosen[:, position], carried_now = ids.numpy(), rest[: self._num_carried]
            if head.may_end_early and not bool(rest[-1]):
                break
        return {head.output: chosen.reshape(-1, *head.output_shape)}


def _compiled(module: nn.Module, *, dynamic: bool | None = None) -> Callable[..., Any]:
    return torch.compile(module.eval(), dynamic=dynamic)


class OpenVinoPolicy(ModelPolicy):
    """A bundle's graph run by OpenVINO in fp32; on many processors its own default is bf16."""

    def __init__(self, *, graph: Path, processor: Processor, noise: Mapping[str, ArraySpec]) -> None:
        import openvino  # pyright: ignore[reportMissingImports]  # an extra; BACKENDS tells when absent

        super().__init__(processor=processor, noise=noise)
        core = openvino.Core()
        model = core.read_model(graph)
        one = {each.any_name: [1, *list(each.partial_shape)[1:]] for each in model.inputs}
        model.reshape(one)  # loops of tensors whose batch is unknown answer with nothing (2026.4)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        self._compiled = core.compile_model(model, "CPU", settings)  # kept: requests do not keep it alive
        self._request = self._compiled.create_infer_request()

    def run_model(self, inputs: Arrays) -> Arrays:
        """Run the graph."""
        answers = self._request.infer(dict(inputs))
        arrays = {output.any_name: np.array(answers[output]) for output in self._compiled.outputs}
        return {
            name: array.astype(np.int64) if array.dtype.kind == "i" else array
            for name, array in arrays.items()
        }


def eager(model: VLAModel, processor: Processor, bundle: Path) -> ModelPolicy:
    """Return the model as it is."""
    return VLAPolicy(model=model, processor=processor)


def compiled(model: VLAModel, processor: Processor, bundle: Path) -> ModelPolicy:
    """Return the model behind torch.compile; the first call takes half a minute."""
    return CompiledPolicy(model=model, processor=processor)


def onnxruntime(model: VLAModel, processor: Processor, bundle: Path) -> ModelPolicy:
    """Return the bundle as robots run it."""
    return BundlePolicy.load(bundle, num_threads=1, verify=False)


def openvino(model: VLAModel, processor: Processor, bundle: Path) -> ModelPolicy:
    """Return the bundle's graph in OpenVINO."""
    return OpenVinoPolicy(
        graph=read_bundle(bundle).graph_path, processor=processor, noise=model.noise_specs(training=False)
    )


BACKENDS: dict[str, Callable[[VLAModel, Processor, Path], ModelPolicy]] = {
    "torch": eager,
    "torch.compile": compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}


def missing(name: str) -> str | None:
    """Return why a backend cannot be measured here, or None."""
    if name == "openvino" and importlib.util.find_spec("openvino") is None:
        return "openvino is not installed: pip install -e '.[openvino]'"
    return None
