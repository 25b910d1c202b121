"""Turns a trained model into a bundle: one ONNX graph, published only if it is equal.

The graph (export_graph.py) answers id for id what the eager model answers, alone and in batches, or nothing
is written. Which observations become the bundle's golden samples is decided here, too.
"""

import copy
import dataclasses
import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from jaxtyping import Float32

from policies.bundle import GoldenSamples, write_bundle
from policies.conformance import PolicyComparison, compare_policies
from policies.export_graph import OPSET, export_graph
from policies.exported import BundlePolicy
from policies.vla_policy import VLAPolicy
from vla.files import publish_directory, staging_directory
from vla.interface import Arrays, Observation
from vla.model.vla import VLAModel
from vla.processing.processor import Processor

# fp32 logits differ by up to 4e-6 between runtimes (facts: deployment, 2.3). A golden token must win by more.
GOLDEN_MARGIN = 1e-4
GOLDEN_BATCH = 16
TIMED_ANSWERS = 3  # per golden observation


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
    chunk_ms: float  # median wall time of one observation at a time, on one thread
    bundle_id: str

    def table(self) -> str:
        """Return the report as lines of text, ready to print."""
        return (
            f"{self.comparison.table()}\n"
            f"too close to call     {self.num_ambiguous} observations left out of the golden samples\n"
            f"graph                 {self.graph_bytes / 1e6:.1f} MB, written in {self.graph_s:.0f} s\n"
            f"one chunk             {self.chunk_ms:.1f} ms for one observation, median, on one thread\n"
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
        ParityError: the graph chose another id, or an action differs by more than 1e-5 of its range.
        ObservationError: a golden observation does not fit the processor.
    """
    if out_dir.exists() and not replace:
        raise FileExistsError(f"{out_dir} exists; choose another out_dir or replace it")
    policy = VLAPolicy(model=copy.deepcopy(model).float(), processor=processor)
    golden, num_ambiguous = _golden_samples(policy, golden_observations)
    graph, graph_s = _timed_graph(policy, golden)
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
        chunk_ms=_chunk_ms(exported, golden.observations),
        bundle_id=exported.bundle_id,
    )


def _chunk_ms(policy: BundlePolicy, observations: Sequence[Observation]) -> float:
    """Return the median wall time of an answer to one observation, the first of each left out [ms]."""
    times = []
    for observation in observations:
        for repeat in range(TIMED_ANSWERS + 1):
            started = time.perf_counter()
            policy.predict([observation])
            if repeat:
                times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times))


def _timed_graph(policy: VLAPolicy, golden: GoldenSamples) -> tuple[bytes, float]:
    """Return the graph and how long writing it took [s]."""
    started = time.monotonic()
    two = policy.model_inputs([golden.observations[0]] * 2)
    return export_graph(policy.model, processor=policy.processor, inputs=two), time.monotonic() - started


def _golden_samples(policy: VLAPolicy, observations: Sequence[Observation]) -> tuple[GoldenSamples, int]:
    """Keep the observations whose choices are won clearly, with the policy's answers; and count the others.

    A near tie may fall either way on another machine, without anything being wrong.
    """
    if not observations:
        raise ValueError("no golden observations; give at least one, best some dozens from real episodes")
    plain = _with_committed(policy, observations)
    kept: list[Observation] = []
    answers: list[dict[str, np.ndarray]] = []
    for start in range(0, len(plain), GOLDEN_BATCH):
        batch = plain[start : start + GOLDEN_BATCH]
        inputs = policy.model_inputs(batch)
        outputs = policy.run_model(inputs)
        for i in np.flatnonzero(_margins(policy, inputs, outputs) > GOLDEN_MARGIN):
            kept.append(batch[i])
            answers.append({name: output[i] for name, output in outputs.items()})
    if not kept:
        raise ValueError(
            f"all {len(plain)} golden observations have tokens too close to call; give other ones"
        )
    outputs = {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}
    actions = policy.processor.decode(outputs)
    return GoldenSamples(observations=kept, outputs=outputs, actions=actions), len(plain) - len(kept)


def _with_committed(policy: VLAPolicy, observations: Sequence[Observation]) -> list[Observation]:
    """Return the observations, every second one with the first actions of its chunk committed, if it may."""
    nothing = np.zeros((0, len(policy.robot_spec.action)), dtype=np.float32)
    plain = [dataclasses.replace(observation, committed=nothing) for observation in observations]
    most = policy.processor.max_committed
    for i in range(1, len(plain), 2) if most else ():
        committed = policy.predict([plain[i]])[0, : 1 + i % most]
        plain[i] = dataclasses.replace(plain[i], committed=committed)
    return plain


def _margins(policy: VLAPolicy, inputs: Arrays, outputs: Arrays) -> Float32[np.ndarray, " batch"]:
    """Return by how much the closest of each answer's choices was won, in logits."""
    with torch.inference_mode():
        return policy.model.margins(_tensors(inputs), _tensors(outputs)).numpy()


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _versions() -> dict[str, Any]:
    return {"torch": torch.__version__, "onnx": onnx.__version__, "opset": OPSET}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
