"""Autoregressive decoding as one ONNX graph: a prefix, and a `Loop` whose caches grow by a token a turn.

torch exports no loop that carries tensors of growing size, so that the prefix and one step are exported by
themselves and joined here. Caches of fixed length, which torch can loop over, were copied and masked as a
whole for each token: 1.2 times slower. The graph's size does not grow with the chunk; weights that both parts
use are stored once. Knows the model and ONNX, no files.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from jaxtyping import Float, Int, UInt8
from onnx import TensorProto, helper, numpy_helper
from onnx.compose import add_prefix_graph
from torch import Tensor, nn
from torch.nn import functional as F

from policies.graph_modules import GraphHead
from vla.model.generation import keep_committed, most_likely_bins
from vla.model.vla import VLAModel

Convert = Callable[..., onnx.ModelProto]  # torch's exporter, set up in export_graph.py
MAX_LENGTH = 1 << 16  # tokens that a cache may hold, for the exporter's proofs
STEP = "step."  # before each name of the step, as the prefix's names are in sight inside the loop


class Beginning(nn.Module):
    """Everything before the first action token."""

    def __init__(self, model: VLAModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        images: UInt8[Tensor, "batch images h w 3"],
        text_ids: Int[Tensor, "batch text"],
        state: Tensor,
        committed: Int[Tensor, "batch time action"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return what is added to each token, a token before the first, caches, and committed bins if any."""
        prefix = self.model.read_prefix(images, text_ids, state)
        places = self.model.suffix_position + prefix.situation
        token = places.new_zeros(images.shape[0], 1, places.shape[2])
        caches = [tensor for pair in prefix.cache for tensor in pair]
        caches.append(prefix.bias.transpose(2, 3))  # grows with the caches, along the same axis
        forced = [] if committed is None else [committed.reshape(-1, places.shape[1])]
        return (places, token, *caches, *forced)


class Step(nn.Module):
    """One action token."""

    def __init__(self, model: VLAModel) -> None:
        super().__init__()
        assert isinstance(model.action_head, GraphHead), "take the model from graph_friendly"
        self.model, self.head = model, model.action_head
        self.has_illegal_bins = bool(model.illegal_bias.any())
        first, last = model.action_offset, model.action_offset + model.num_bins
        self.embedding = nn.Parameter(model.token_embedding.weight[first:last].detach())

    def forward(
        self,
        position: Int[Tensor, ""],
        places: Float[Tensor, "batch token width"],
        token: Float[Tensor, "batch 1 width"],
        caches: list[Tensor],
        forced: Int[Tensor, "batch token"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the bin at `position` and what the next step takes: its token and the longer caches."""
        model, index = self.model, position.reshape(1)
        suffix = token + places.index_select(1, index)
        *caches, hidden = caches
        past = list(zip(caches[0::2], caches[1::2], strict=True))
        hidden = torch.cat((hidden, hidden.new_zeros(hidden.shape[0], 1, 1, 1)), dim=2)
        tokens, grown = model.trunk.write(suffix, past, bias=hidden.transpose(2, 3))
        logits = self.head.of_token(tokens.reshape(-1, tokens.shape[2]))
        if self.has_illegal_bins:
            logits = logits + model.illegal_bias.index_select(0, index % model.action_dim)
        bins = most_likely_bins(logits)
        if forced is not None:
            bins = keep_committed(forced.index_select(1, index)[:, 0], bins)
        embedded = F.embedding(bins[:, None], self.embedding)
        return (bins, embedded, *(tensor for pair in grown for tensor in pair), hidden)


def export_loop(
    model: VLAModel, example: tuple[Tensor, ...], *, names: Sequence[str], batch: Any, convert: Convert
) -> onnx.ModelProto:
    """Return the whole of autoregressive decoding as one ONNX model with the output `bins`.

    Args:
        model: from `graph_friendly`, in fp32.
        example: inputs that give the shapes, a batch of two or more.
        names: of those inputs.
        batch: the exporter's symbol for the batch axis, the first of each input.
        convert: ``convert(module, arguments, inputs=, outputs=, dynamic_shapes=)``.
    """
    beginning = Beginning(model)
    with torch.no_grad():
        places, token, *rest = beginning(*example)
    num_caches = 2 * len(model.trunk.blocks) + 1  # keys and values, and which of them padding hides
    caches, forced = rest[:num_caches], rest[num_caches:]
    cache_names = [f"cache_{i}" for i in range(num_caches)]
    forced_names = ["forced"] * len(forced)
    prefix = convert(
        beginning,
        example,
        inputs=[*names],
        outputs=["places", "token", *cache_names, *forced_names],
        dynamic_shapes=tuple({0: batch} for _ in example),
    )
    past = torch.export.Dim("past", min=2, max=MAX_LENGTH)
    first = {0: batch}
    step = convert(
        Step(model),
        (torch.tensor(0), places, token, caches, *forced),
        inputs=["position", "places", "token", *cache_names, *forced_names],
        outputs=["bin", "next_token", *(f"next_{name}" for name in cache_names)],
        dynamic_shapes=(None, first, first, [{0: batch, 2: past} for _ in caches], *(first for _ in forced)),
    )
    body = _as_body(step.graph, prefix.graph, carried=["token", *cache_names])
    _append_loop(prefix.graph, body, carried=["token", *cache_names], model=model)
    return prefix


def _as_body(step: onnx.GraphProto, outer: onnx.GraphProto, *, carried: Sequence[str]) -> onnx.GraphProto:
    """Return the step as the body of a `Loop` in the graph `outer`, whose weights and values it uses."""
    add_prefix_graph(step, STEP, inplace=True)
    known = {_content(weight): weight.name for weight in outer.initializer}
    renamed = {weight.name: known.get(_content(weight), weight.name) for weight in step.initializer}
    own = [weight for weight in step.initializer if renamed[weight.name] == weight.name]
    inputs = {value.name.removeprefix(STEP): value for value in step.input}
    captured = [name for name in inputs if name not in ("position", *carried)]
    renamed |= {STEP + name: name for name in captured}
    for node in step.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    outputs = {value.name.removeprefix(STEP): value for value in step.output}
    condition = [helper.make_tensor_value_info(STEP + end, TensorProto.BOOL, []) for end in ("go", "go_on")]
    in_and_out = [(inputs[name], outputs[f"next_{name}"]) for name in carried]
    for value in (value for pair in in_and_out for value in pair):
        if len(value.type.tensor_type.shape.dim) == 4:
            value.type.tensor_type.shape.dim[2].Clear()  # it grows; a named length would be a constant one
    return helper.make_graph(
        [*step.node, helper.make_node("Identity", [STEP + "go"], [STEP + "go_on"])],
        "step",
        [inputs["position"], condition[0], *(value for value, _ in in_and_out)],
        [condition[1], *(value for _, value in in_and_out), outputs["bin"]],
        initializer=own,
    )


def _append_loop(
    graph: onnx.GraphProto, body: onnx.GraphProto, *, carried: Sequence[str], model: VLAModel
) -> None:
    """Run `body` for every action token and let `graph` answer with the bins alone."""
    horizon, dims = model.action_horizon, model.action_dim
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in (("num_tokens", horizon * dims), ("chunk_shape", (-1, horizon, dims)))
    )
    last = [f"last_{name}" for name in carried]
    graph.node.extend(
        [
            helper.make_node("Loop", ["num_tokens", "", *carried], [*last, "by_token"], body=body),
            helper.make_node("Transpose", ["by_token"], ["by_sample"], perm=[1, 0]),
            helper.make_node("Reshape", ["by_sample", "chunk_shape"], ["bins"]),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("bins", TensorProto.INT64, ["batch", horizon, dims]))


def _content(tensor: TensorProto) -> bytes:
    """Return all of a tensor but its name."""
    nameless = TensorProto()
    nameless.CopyFrom(tensor)
    nameless.ClearField("name")
    nameless.ClearField("doc_string")
    return nameless.SerializeToString(deterministic=True)
