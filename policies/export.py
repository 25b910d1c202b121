"""Turns a trained model into a bundle: one ONNX graph for either decoding, published only if it is equal.

torch's dynamo exporter writes the graph in fp32 with a dynamic batch axis. Parallel decoding is one pass;
autoregressive decoding becomes an ONNX `Loop` over a cache of fixed length, so that its size does not grow
with the chunk. Both answer token for token what the eager model answers, or nothing is written.
"""

import contextlib
import copy
import dataclasses
import datetime
import json
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import onnx
import torch
from jaxtyping import Bool, Float32, Int, Int64, UInt8
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop  # the one private name; pinned with torch

from policies.bundle import GoldenSamples, write_bundle
from policies.conformance import PolicyComparison, compare_policies
from policies.exported import BundlePolicy
from policies.interface import Observation
from policies.vla_policy import VLAPolicy
from vla.files import publish_directory, staging_directory
from vla.model.generation import generate, keep_committed, most_likely_bins
from vla.model.vla import VLAModel
from vla.tokenizers.processor import Processor

OPSET = 20
INPUT_NAMES = ("images", "text_ids", "state", "committed")  # the last only where the policy takes it
MAX_BATCH = 1024
# fp32 logits differ by up to 4e-6 between runtimes (facts: deployment, 2.3). A golden token must win by more.
GOLDEN_MARGIN = 1e-4
GOLDEN_BATCH = 16


class ParityError(RuntimeError):
    """The exported graph does not answer what the model answers; nothing was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What an export measured. `num_ambiguous` observations, too close to call, are not golden."""

    directory: Path
    comparison: PolicyComparison
    num_ambiguous: int
    graph_bytes: int
    graph_s: float  # wall time of writing the graph
    bundle_id: str

    def table(self) -> str:
        """Return the report as lines of text, ready to print."""
        return (
            f"{self.comparison.table()}\n"
            f"too close to call     {self.num_ambiguous} observations left out of the golden samples\n"
            f"graph                 {self.graph_bytes / 1e6:.1f} MB, written in {self.graph_s:.0f} s\n"
            f"bundle                {self.directory}"
        )


def export_bundle(
    *,
    model: VLAModel,
    processor: Processor,
    provenance: Mapping[str, Any],
    out_dir: Path,
    golden_observations: Sequence[Observation],
    replace: bool = False,
) -> ExportReport:
    """Export a model to a new bundle directory, if the graph answers golden observations as the model does.

    Args:
        model: any precision; it is copied and exported in fp32.
        processor: the one the model was trained with.
        provenance: JSON-ready origin, such as ``{"checkpoint_id": ..., "git_revision": ...}``; exporter
            versions and date are added.
        out_dir: the bundle directory to make.
        golden_observations: real ones, at least one; their `committed` actions are replaced, by the first of
            the policy's own chunk in every second one where it takes them, else by none.
        replace: put the bundle in the place of an existing directory.

    Raises:
        FileExistsError: `out_dir` exists and `replace` is false.
        ParityError: the graph chose another token, or an action differs by more than 1e-5 of its range.
        ObservationError: a golden observation does not fit the processor.
    """
    if out_dir.exists() and not replace:
        raise FileExistsError(f"{out_dir} exists; choose another out_dir or replace it")
    policy = VLAPolicy(model=copy.deepcopy(model).float(), processor=processor)
    golden, num_ambiguous = _golden_samples(policy, golden_observations)
    started = time.monotonic()
    graph = export_graph(policy.model, processor=processor, observations=golden.observations)
    graph_s = time.monotonic() - started
    with staging_directory(out_dir) as staging:
        write_bundle(
            staging,
            graph=graph,
            processor=processor,
            golden=golden,
            provenance={**provenance, "exporter": _versions(), "created": _now()},
        )
        exported = BundlePolicy.load(staging, verify=False)
        comparisons = [  # alone and in batches: the batch axis must be dynamic
            compare_policies(policy, exported, golden.observations, batch_size=size)
            for size in (1, GOLDEN_BATCH)
        ]
        worst = max(comparisons, key=lambda comparison: comparison.num_different_tokens)
        if not all(comparison.passed for comparison in comparisons):
            raise ParityError(
                f"the graph differs from the model, {out_dir} was not written:\n{worst.table()}"
            )
        publish_directory(staging, out_dir, replace=replace)
    return ExportReport(
        directory=out_dir,
        comparison=worst,
        num_ambiguous=num_ambiguous,
        graph_bytes=len(graph),
        graph_s=graph_s,
        bundle_id=exported.bundle_id,
    )


def export_graph(model: VLAModel, *, processor: Processor, observations: Sequence[Observation]) -> bytes:
    """Return the fp32 model with its decoding as a serialized ONNX graph, batch axis dynamic.

    `observations` only give the shapes.
    """
    inputs = processor.encode(
        [observations[0], observations[0]]
    )  # a batch of 1 would be taken for a constant
    arrays = [inputs.images, inputs.text_ids, inputs.state]
    if processor.max_committed:
        arrays.append(inputs.committed)
    example, names = tuple(map(torch.from_numpy, arrays)), INPUT_NAMES[: len(arrays)]
    graph_class = _LoopedGeneration if model.decoding == "autoregressive" else _Generation
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            graph_class(model).eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=names,
            output_names=("bins",),
            dynamic_shapes={name: {0: batch} for name in names},
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto.graph)
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


class _Generation(nn.Module):
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
        return generate(self.model, images, text_ids, state, committed)


class _LoopedGeneration(nn.Module):
    """`generate` for autoregressive decoding with one loop node instead of time x action unrolled steps.

    The caches keep their full length; slots that are not written yet get -inf, and the newest token sits
    behind them until it is copied into its slot:

        prefix 0 .. P-1 | written P .. P+i-1 | empty P+i .. P+N-1 | token i
    """

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
        model, batch = self.model, images.shape[0]
        forced = None if committed is None else committed.reshape(batch, -1)
        prefix = model.read_prefix(images, text_ids, state)
        num_prefix, num_tokens = prefix.cache[0][0].shape[2], model.action_horizon * model.action_dim
        slots, positions = torch.arange(num_prefix + num_tokens + 1), torch.arange(num_tokens)
        cache: list[Tensor] = []
        for entry in (tensor for pair in prefix.cache for tensor in pair):
            empty = entry.new_zeros(batch, entry.shape[1], num_tokens, entry.shape[3])
            cache.append(torch.cat((entry, empty), dim=2))

        def unfinished(position: Tensor, chosen: Tensor, token: Tensor, *cache: Tensor) -> Bool[Tensor, ""]:
            return position < num_tokens

        def step(position: Tensor, chosen: Tensor, token: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
            seen = (slots < num_prefix + position) | (slots == num_prefix + num_tokens)
            suffix = token + model.suffix_position.index_select(0, position.reshape(1)) + prefix.situation
            past = list(zip(cache[0::2], cache[1::2], strict=True))
            tokens, grown = model.trunk.write(suffix, past, bias=torch.where(seen, 0.0, float("-inf"))[None])
            illegal = model.illegal_bias.index_select(0, (position % model.action_dim).reshape(1))
            bins = most_likely_bins(model.action_head(tokens)[:, 0, 0] + illegal)
            if forced is not None:
                bins = keep_committed(forced.index_select(1, position.reshape(1))[:, 0], bins)
            here = (slots[:-1] == num_prefix + position)[None, None, :, None]
            cache = tuple(
                torch.where(here, entry[:, :, -1:], entry[:, :, :-1]) for pair in grown for entry in pair
            )
            chosen = torch.where(positions == position, bins[:, None], chosen)
            return (position + 1, chosen, model.token_embedding(bins[:, None] + model.action_offset), *cache)

        start = torch.zeros((), dtype=torch.int64)
        chosen = torch.zeros(batch, num_tokens, dtype=torch.int64)
        token = model.suffix_position.new_zeros(batch, 1, model.suffix_position.shape[1])
        _, chosen, *_ = while_loop(unfinished, step, (start, chosen, token, *cache))
        return chosen.reshape(batch, model.action_horizon, model.action_dim)


def _golden_samples(policy: VLAPolicy, observations: Sequence[Observation]) -> tuple[GoldenSamples, int]:
    """Keep the observations whose tokens win clearly, with the policy's answers; and count the others.

    A near tie may fall either way on another machine, without anything being wrong.
    """
    if not observations:
        raise ValueError("no golden observations; give at least one, best some dozens from real episodes")
    plain = _with_committed(policy, observations)
    kept, bins = [], []
    for start in range(0, len(plain), GOLDEN_BATCH):
        batch = plain[start : start + GOLDEN_BATCH]
        chosen = policy.predict_bins(batch)
        for i in np.flatnonzero(_margins(policy, batch, chosen) > GOLDEN_MARGIN):
            kept.append(batch[i])
            bins.append(chosen[i])
    if not kept:
        raise ValueError(
            f"all {len(plain)} golden observations have tokens too close to call; give other ones"
        )
    golden_bins = np.stack(bins)
    golden = GoldenSamples(observations=kept, bins=golden_bins, actions=policy.decode_bins(golden_bins))
    return golden, len(plain) - len(kept)


def _with_committed(policy: VLAPolicy, observations: Sequence[Observation]) -> list[Observation]:
    """Return the observations, every second one with the first actions of its chunk committed, if it may."""
    nothing = np.zeros((0, len(policy.robot_spec.action)), dtype=np.float32)
    plain = [dataclasses.replace(observation, committed=nothing) for observation in observations]
    most = policy.processor.max_committed
    for i in range(1, len(plain), 2) if most else ():
        committed = policy.predict([plain[i]])[0, : 1 + i % most]
        plain[i] = dataclasses.replace(plain[i], committed=committed)
    return plain


def _margins(
    policy: VLAPolicy, observations: Sequence[Observation], chosen: Int64[np.ndarray, "batch time action"]
) -> Float32[np.ndarray, " batch"]:
    """Return by how much the closest of each observation's choices was won, in logits."""
    inputs = policy.processor.encode(observations)
    given = torch.from_numpy(inputs.committed) >= 0
    arrays = (inputs.images, inputs.text_ids, inputs.state, chosen)
    with torch.inference_mode():
        logits, _ = policy.model.forward_with_future(
            *(torch.from_numpy(array) for array in arrays), num_committed=given[..., 0].sum(dim=1)
        )
    best = logits.topk(2, dim=-1).values
    margins = (best[..., 0] - best[..., 1]).masked_fill(given, float("inf"))
    return margins.flatten(1).amin(dim=1).numpy()


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
            warnings.filterwarnings("ignore", r"# The axis name: batch will not be used", UserWarning)
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", checks_off)
        registry.setLevel(level)


def _versions() -> dict[str, Any]:
    return {"torch": torch.__version__, "onnx": onnx.__version__, "opset": OPSET}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
