"""How long a policy takes from frames to actions, one observation at a time on one thread.

Each head of a model, in every backend that is installed, next to a floor: the matrix products at the best
rate that this thread reaches plus reading the weights at its bandwidth. Weights are random, which costs the
same and makes tokens depend on everything.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.backends import BACKENDS, missing
from experiments.benchmarks.limits import (
    gemm_flops,
    limit_rows,
    memory_bandwidth,
    onnx_gemm_flops,
    read_bandwidth,
)
from experiments.benchmarks.measure import Row
from experiments.config.schema import BenchmarkRun
from experiments.training_parts import build_model, build_processor, open_data
from policies.conformance import PolicyComparison, compare_policies
from policies.export import export_bundle
from policies.model_policy import ModelPolicy
from policies.vla_policy import VLAPolicy
from vla.interface import NOTHING, DecodeError, Observation
from vla.model.heads.stepwise import StepwiseHead
from vla.model.transformer import Transformer
from vla.model.vla import VLAModel
from vla.processing.processor import Processor

_BYTES_A_WEIGHT = 4  # fp32
_NUM_OBSERVATIONS = 8
CODEC_OF = {"fast": "fast", "flow": "continuous"}  # heads that do not learn bins


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one chunk cannot do without."""

    operations: float  # of matrix products and convolutions
    weight_bytes: float  # read, those of each further token included
    bytes_at_a_time: int  # the part that is read again and again

    def floor_ms(self, *, flops: float, bandwidth: float) -> float:
        """Return the least time that it takes at these rates [FLOP/s, bytes/s]."""
        return 1e3 * (self.operations / flops + self.weight_bytes / bandwidth)


def measure(run: BenchmarkRun) -> list[Row]:
    """Return the table for the sizes of a run's model; observations are rendered in its environment.

    Raises:
        ValueError: a backend is unknown.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(run)
    finally:
        torch.set_num_threads(threads)


def _measure(run: BenchmarkRun) -> list[Row]:
    names = [name for name in run.backends if _is_there(name)]
    by_torch, by_onnx = gemm_flops(torch.float32, repeats=run.repeats), onnx_gemm_flops(repeats=run.repeats)
    rows = limit_rows(fp32=by_torch, bandwidth=memory_bandwidth(repeats=run.repeats))
    rows.append(Row(name="matrix product, onnxruntime", value=by_onnx / 1e9, unit="GFLOP/s", note="1 thread"))
    train, _ = open_data(run)
    chosen = np.random.default_rng(run.first_seed).integers(0, train.num_samples, size=_NUM_OBSERVATIONS)
    observations, processor = train.observations(chosen), build_processor(run, train)
    encoding = _times_ms({"": lambda one: processor.encode_observations([one])}, observations, run.repeats)[
        ""
    ]
    rows.append(Row(name="encoding an observation", value=float(np.median(encoding)), unit="ms"))
    for head in run.heads:
        codec = {"kind": CODEC_OF.get(head, run.codec["kind"])}
        is_same = codec["kind"] == run.codec["kind"]
        fitted = processor if is_same else build_processor(dataclasses.replace(run, codec=codec), train)
        model = build_model(dataclasses.replace(run.model, head={"kind": head}), fitted, seed=run.seed)
        fill_zeros(model, seed=run.seed)
        rows += _head_rows(model, fitted, observations, names, run.repeats, max(by_torch, by_onnx))
    return rows


def _is_there(name: str) -> bool:
    why = missing(name)
    if why is not None:
        print(why)
    return why is None


def _head_rows(
    model: VLAModel,
    processor: Processor,
    observations: Sequence[Observation],
    names: Sequence[str],
    repeats: int,
    flops: float,
) -> list[Row]:
    """Measure one head in every backend, in turns, so that a slow minute of the machine hits all."""
    reference = VLAPolicy(model=model, processor=processor)
    work = work_of(reference, observations[0])
    bandwidth = read_bandwidth(work.bytes_at_a_time, repeats=repeats)
    floor_ms, title = work.floor_ms(flops=flops, bandwidth=bandwidth), model.config.head["kind"]
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "bundle"
        export_bundle(
            model=model,
            processor=processor,
            provenance={"command": "benchmark"},
            out_dir=bundle,
            golden_observations=observations,
        )
        policies = {name: BACKENDS[name](model, processor, bundle) for name in names}
        found = {name: _compared(reference, policy, observations) for name, policy in policies.items()}
        asked = {name: _asker(policies[name]) for name, one in found.items() if one is not None}
        times = _times_ms(asked, observations, repeats)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    what = f"{work.operations / 1e6:.0f} MFLOP and {work.weight_bytes / 1e6:.0f} MB of weights"
    size = f"{work.bytes_at_a_time / 1e6:.1f} MB again and again"
    rows = [Row(name=f"reading weights, {title}", value=bandwidth / 1e9, unit="GB/s", note=size)]
    for name, median in medians.items():
        comparison = found[name]
        assert comparison is not None, "the others were not timed"
        spread = f"smallest {times[name].min():.2f}, 99th percentile {np.quantile(times[name], 0.99):.2f} ms"
        rows.append(
            Row(
                name=f"{title}, {name}, median",
                value=median,
                unit="ms",
                limit=floor_ms,
                limit_name=what,
                note=f"{spread}; {_told(comparison)}",
            )
        )
    equal = {name: median for name, median in medians.items() if (one := found[name]) and one.passed}
    if not equal:
        raise ValueError(
            f"none of {[*found]} answers as torch does; add one to backends, such as onnxruntime"
        )
    best = min(equal, key=equal.__getitem__)
    useless = [f"; {name} answers with no actions" for name, one in found.items() if one is None]
    rows.append(
        Row(
            name=f"{title}, best that equals torch, against its floor",
            value=medians[best] / floor_ms,
            unit="x",
            note=f"{best}; aim: at most 1.5{''.join(useless)}",
        )
    )
    return rows


def work_of(policy: VLAPolicy, observation: Observation) -> Work:
    """Count what a chunk of a policy needs. Attention counts as operations alone; caches are no weights."""
    model = policy.model
    with FlopCounterMode(display=False) as counter:
        policy.predict([observation])
    looked_up = _BYTES_A_WEIGHT * sum(
        module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding)
    )  # a few rows of it are read
    once = _BYTES_A_WEIGHT * (model.num_parameters() - _size(model.auxiliaries)) - looked_up
    if not isinstance(model.head, StepwiseHead):
        return Work(operations=counter.get_total_flops(), weight_bytes=once, bytes_at_a_time=once)
    trunk = [module for module in model.backbone.children() if isinstance(module, Transformer)]
    each = _BYTES_A_WEIGHT * _size(*trunk, model.head)
    answers = policy.answer([observation])[model.head.output]
    further = int((answers != NOTHING).sum()) - 1
    return Work(
        operations=counter.get_total_flops(), weight_bytes=once + further * each, bytes_at_a_time=each
    )


def _size(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def fill_zeros(model: VLAModel, *, seed: int) -> None:
    """Give random numbers to matrices that start as zeros, so that no part of the model is without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)


def _compared(
    reference: ModelPolicy, policy: ModelPolicy, observations: Sequence[Observation]
) -> PolicyComparison | None:
    """Return how far a policy agrees with torch, one observation at a time; None if it makes no actions."""
    try:
        return compare_policies(reference, policy, observations, batch_size=1)
    except DecodeError:
        return None


def _told(comparison: PolicyComparison) -> str:
    equal = comparison.num_tokens - comparison.num_different_tokens
    return (
        f"{equal} of {comparison.num_tokens} tokens as torch, actions within "
        f"{comparison.max_action_difference:.1e} of their range"
    )


def _asker(policy: ModelPolicy) -> Callable[[Observation], object]:
    return lambda observation: policy.predict([observation])


def _times_ms(
    works: Mapping[str, Callable[[Observation], object]], observations: Sequence[Observation], repeats: int
) -> dict[str, np.ndarray]:
    """Return wall times of single calls of each work, the first round left out [ms]."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats + 1):
        for name, work in works.items():
            for observation in observations:
                started = time.perf_counter()
                work(observation)
                if number:
                    times[name].append(1e3 * (time.perf_counter() - started))
    return {name: np.array(values) for name, values in times.items()}
