"""What can run the model besides torch itself, each as a policy of one thread and one observation at a time.

All answer the same questions, so that each can be compared with torch, token by token. Knows no clock.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from policies.bundle import read_bundle
from policies.export_graph import Generation
from policies.export_loop import Beginning, Step
from policies.exported import BundlePolicy
from policies.graph_modules import graph_friendly
from policies.token_policy import TokenPolicy
from policies.vla_policy import VLAPolicy
from vla.model.vla import VLAModel
from vla.processing.processor import ModelInputs, Processor


class CompiledPolicy(TokenPolicy):
    """torch.compile: one pass for parallel decoding; prefix and step for autoregressive, looped by Python."""

    def __init__(self, *, model: VLAModel, processor: Processor) -> None:
        super().__init__(processor=processor)
        self._model = graph_friendly(model)
        self._num_caches = 2 * len(self._model.trunk.blocks) + 1
        is_parallel = model.decoding == "parallel"
        self._first = _compiled(Generation(self._model) if is_parallel else Beginning(self._model))
        self._step = None if is_parallel else _compiled(Step(self._model), dynamic=True)

    def choose_bins(self, inputs: ModelInputs) -> Int64[np.ndarray, "batch time action"]:
        """Run the model and return the chosen bin of every action, in [0, num_bins)."""
        arrays = [inputs.images, inputs.text_ids, inputs.state]
        if self.processor.max_committed:
            arrays.append(inputs.committed)
        with torch.no_grad():
            first = self._first(*map(torch.from_numpy, arrays))
            return (first if self._step is None else self._loop(self._step, first)).numpy()

    def _loop(self, step: Callable[..., tuple[Tensor, ...]], first: tuple[Tensor, ...]) -> Tensor:
        places, token, *rest = first
        caches, forced = rest[: self._num_caches], rest[self._num_caches :]
        chosen = []
        for position in range(places.shape[1]):
            bins, token, *caches = step(torch.tensor(position), places, token, caches, *forced)
            chosen.append(bins)
        return torch.stack(chosen, dim=1).unflatten(1, (-1, self._model.action_dim))


def _compiled(module: nn.Module, *, dynamic: bool | None = None) -> Callable[..., Any]:
    return torch.compile(module.eval(), dynamic=dynamic)


class OpenVinoPolicy(TokenPolicy):
    """A bundle's graph run by OpenVINO in fp32; on many processors its own default is bf16."""

    def __init__(self, *, graph: Path, processor: Processor) -> None:
        import openvino  # pyright: ignore[reportMissingImports]  # an extra; BACKENDS tells when absent

        super().__init__(processor=processor)
        core = openvino.Core()
        model = core.read_model(graph)
        one = {each.any_name: [1, *list(each.partial_shape)[1:]] for each in model.inputs}
        model.reshape(one)  # loops of tensors whose batch is unknown answer with nothing (2026.4)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        self._compiled = core.compile_model(model, "CPU", settings)  # kept: requests do not keep it alive
        self._request = self._compiled.create_infer_request()

    def choose_bins(self, inputs: ModelInputs) -> Int64[np.ndarray, "batch time action"]:
        """Run the model and return the chosen bin of every action, in [0, num_bins)."""
        feed = {"images": inputs.images, "text_ids": inputs.text_ids, "state": inputs.state}
        if self.processor.max_committed:
            feed["committed"] = inputs.committed
        return np.array(self._request.infer(feed)[0], np.int64)


def eager(model: VLAModel, processor: Processor, bundle: Path) -> TokenPolicy:
    """Return the model as it is."""
    return VLAPolicy(model=model, processor=processor)


def compiled(model: VLAModel, processor: Processor, bundle: Path) -> TokenPolicy:
    """Return the model behind torch.compile; the first call takes half a minute."""
    return CompiledPolicy(model=model, processor=processor)


def onnxruntime(model: VLAModel, processor: Processor, bundle: Path) -> TokenPolicy:
    """Return the bundle as robots run it."""
    return BundlePolicy.load(bundle, num_threads=1, verify=False)


def openvino(model: VLAModel, processor: Processor, bundle: Path) -> TokenPolicy:
    """Return the bundle's graph in OpenVINO."""
    return OpenVinoPolicy(graph=read_bundle(bundle).graph_path, processor=processor)


BACKENDS: dict[str, Callable[[VLAModel, Processor, Path], TokenPolicy]] = {
    "torch": eager,
    "torch.compile": compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}


def missing(name: str) -> str | None:
    """Return why a backend cannot be measured here, or None.

    Raises:
        ValueError: there is no backend of that name.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is unknown; choose from {tuple(BACKENDS)}")
    if name == "openvino" and importlib.util.find_spec("openvino") is None:
        return "openvino is not installed: pip install -e '.[openvino]'"
    return None
