"""Heads that choose id after id as one ONNX graph: a prefix, and a `Loop` whose caches grow by a token.

torch exports no loop that carries tensors of growing size, so that the prefix and one step are exported by
themselves and joined here. Caches of fixed length, which torch can loop over, were copied and masked as a
whole for each token: 1.2 times slower. The graph's size does not grow with the chunk; weights that both parts
use are stored once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.compose import add_prefix_graph
from torch import Tensor, nn

from vla.interface import NOTHING
from vla.model.heads.stepwise import Decoding, StepwiseHead
from vla.model.interface import Prefix
from vla.model.vla import VLAModel

Convert = Callable[..., onnx.ModelProto]  # torch's exporter, set up in export_graph.py
MAX_LENGTH = 1 << 16  # tokens that a cache may hold, for the exporter's proofs
STEP = "step."  # before each name of the step, as the prefix's names are in sight inside the loop
GO, GO_ON = STEP + "go", STEP + "go_on"  # whether to do this turn, and the next


class Carried:
    """Flattens a `Decoding` to the tensors that the loop carries, and back.

    token, which cached tokens are valid, what the head keeps count of, then the caches; what grows with each
    token is the second axis of `valid` and the third of the caches.
    """

    def __init__(self, decoding: Decoding) -> None:
        self.context = decoding.prefix.context  # no step reads it
        self.num_state, self.num_caches = len(decoding.state), 2 * len(decoding.prefix.cache)
        state = [f"state_{i}" for i in range(self.num_state)]
        self.names = ["token", "valid", *state, *(f"cache_{i}" for i in range(self.num_caches))]

    def flatten(self, decoding: Decoding) -> tuple[Tensor, ...]:
        """Return the tensors in the order of `names`."""
        caches = [tensor for pair in decoding.prefix.cache for tensor in pair]
        return (decoding.token, decoding.prefix.valid, *decoding.state, *caches)

    def unflatten(self, tensors: Sequence[Tensor]) -> Decoding:
        """Return the decoding of such tensors."""
        token, valid, *rest = tensors
        state, caches = rest[: self.num_state], rest[self.num_state :]
        cache = list(zip(caches[0::2], caches[1::2], strict=True))
        prefix = Prefix(cache=cache, valid=valid, context=self.context)
        return Decoding(token=token, prefix=prefix, state=tuple(state))

    def growing_axes(self) -> list[int | None]:
        """Return for each tensor the axis that grows with each token, None if none does."""
        return [None, 1, *[None] * self.num_state, *[2] * self.num_caches]


class Beginning(nn.Module):
    """Everything before the first id: what all steps look up, then what the first one is handed."""

    def __init__(self, model: VLAModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return `given` and the flattened decoding."""
        given, decoding = self.decode(*tensors)
        return (*given, *Carried(decoding).flatten(decoding))

    def decode(self, *tensors: Tensor) -> tuple[tuple[Tensor, ...], Decoding]:
        """Return what the head's `begin` returns."""
        inputs, backbone = dict(zip(self.names, tensors, strict=True)), self.model.backbone
        return stepwise(self.model).begin(backbone, backbone.prefill(inputs), inputs)


class Step(nn.Module):
    """One id."""

    def __init__(self, model: VLAModel, carried: Carried) -> None:
        super().__init__()
        self.model, self.carried = model, carried

    def forward(self, position: Tensor, given: list[Tensor], carried: list[Tensor]) -> tuple[Tensor, ...]:
        """Return the ids at `position`, what the next step is handed, and whether there may be one."""
        head, last = stepwise(self.model), self.carried.unflatten(carried)
        ids, last = head.step(self.model.backbone, position.reshape(1), tuple(given), last)
        over = (torch.logical_not(head.is_over(last)),) if head.may_end_early else ()
        return (ids, *self.carried.flatten(last), *over)


def stepwise(model: VLAModel) -> StepwiseHead:
    """Return the head of a model that chooses id after id."""
    assert isinstance(model.head, StepwiseHead)
    return model.head


def export_loop(
    model: VLAModel, example: tuple[Tensor, ...], *, names: Sequence[str], batch: Any, convert: Convert
) -> onnx.ModelProto:
    """Return the whole of such a model as one ONNX model.

    Args:
        model: from `graph_friendly`, in fp32.
        example: inputs that give the shapes, a batch of two or more.
        names: of those inputs.
        batch: the exporter's symbol for the batch axis, the first of each input.
        convert: ``convert(module, arguments, inputs=, outputs=, dynamic_shapes=)``.
    """
    head, beginning = stepwise(model), Beginning(model, names)
    with torch.no_grad():
        given, decoding = beginning.decode(*example)
    carried = Carried(decoding)
    given_names = [f"given_{i}" for i in range(len(given))]
    prefix = convert(
        beginning,
        example,
        inputs=[*names],
        outputs=[*given_names, *carried.names],
        dynamic_shapes=(tuple({0: batch} for _ in example),),
    )
    past = torch.export.Dim("past", min=2, max=MAX_LENGTH)
    axes = carried.growing_axes()
    step = convert(
        Step(model, carried),
        (torch.tensor(0), [*given], [*carried.flatten(decoding)]),
        inputs=["position", *given_names, *carried.names],
        outputs=[
            "ids",
            *(f"next_{name}" for name in carried.names),
            *(["more"] if head.may_end_early else []),
        ],
        dynamic_shapes=(
            None,
            [{0: batch} for _ in given],
            [{0: batch} if axis is None else {0: batch, axis: past} for axis in axes],
        ),
    )
    body = _as_body(step.graph, prefix.graph, carried=carried)
    _append_loop(prefix.graph, body, carried=carried.names, head=head)
    return prefix


def _as_body(step: onnx.GraphProto, outer: onnx.GraphProto, *, carried: Carried) -> onnx.GraphProto:
    """Return the step as the body of a `Loop` in the graph `outer`, whose weights and values it uses."""
    add_prefix_graph(step, STEP, inplace=True)
    known = {_content(weight): weight.name for weight in outer.initializer}
    renamed = {weight.name: known.get(_content(weight), weight.name) for weight in step.initializer}
    own = [weight for weight in step.initializer if renamed[weight.name] == weight.name]
    inputs = {value.name.removeprefix(STEP): value for value in step.input}
    captured = [name for name in inputs if name not in ("position", *carried.names)]
    renamed |= {STEP + name: name for name in captured}
    for node in step.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    outputs = {value.name.removeprefix(STEP): value for value in step.output}
    go, go_on = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in (GO, GO_ON))
    in_and_out = [(inputs[name], outputs[f"next_{name}"]) for name in carried.names]
    for pair, axis in zip(in_and_out, carried.growing_axes(), strict=True):
        if axis is None:
            continue
        for value in pair:
            value.type.tensor_type.shape.dim[axis].Clear()  # a named length would be a constant one
    more = STEP + "more" if "more" in outputs else GO
    return helper.make_graph(
        [*step.node, helper.make_node("Identity", [more], [GO_ON])],
        "step",
        [inputs["position"], go, *(value for value, _ in in_and_out)],
        [go_on, *(value for _, value in in_and_out), outputs["ids"]],
        initializer=own,
    )


def _append_loop(
    graph: onnx.GraphProto, body: onnx.GraphProto, *, carried: Sequence[str], head: StepwiseHead
) -> None:
    """Run `body` for every id and let `graph` answer with the ids alone, filled up to the full length."""
    constants = {
        "max_ids": np.array(head.max_ids, np.int64),
        "output_shape": np.array((-1, *head.output_shape), np.int64),
        "nothing": np.array(NOTHING, np.int64),
        "length_axis": np.array([1], np.int64),
        "no_padding": np.array([0, 0, 0], np.int64),
        "all_ids": np.array([head.max_ids], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    last = [f"last_{name}" for name in carried]
    graph.node.extend(
        [
            helper.make_node("Loop", ["max_ids", "", *carried], [*last, "by_position"], body=body),
            helper.make_node("Transpose", ["by_position"], ["by_sample"], perm=[1, 0]),
            *_filled_up("by_sample", "filled"),
            helper.make_node("Reshape", ["filled", "output_shape"], [head.output]),
        ]
    )
    del graph.output[:]
    form = ["batch", *head.output_shape]
    graph.output.append(helper.make_tensor_value_info(head.output, TensorProto.INT64, form))


def _filled_up(source: str, target: str) -> list[onnx.NodeProto]:
    """Return nodes that lengthen ids [batch n] to the full length."""
    return [
        helper.make_node("Shape", [source], ["shape"]),
        helper.make_node("Gather", ["shape", "length_axis"], ["num_ids"]),
        helper.make_node("Sub", ["all_ids", "num_ids"], ["num_missing"]),
        helper.make_node("Concat", ["no_padding", "num_missing"], ["padding"], axis=0),
        helper.make_node("Pad", [source, "padding", "nothing"], [target]),
    ]


def _content(tensor: TensorProto) -> bytes:
    """Return all of a tensor but its name."""
    nameless = TensorProto()
    nameless.CopyFrom(tensor)
    nameless.ClearField("name")
    nameless.ClearField("doc_string")
    return nameless.SerializeToString(deterministic=True)
