"""How long a policy takes from frames to actions, one observation at a time on one thread.

Both decodings of a model, in every backend that is installed, beside a floor: the matrix products at the best
rate that this thread reaches plus reading the weights at its bandwidth. Weights are random, which costs the
same and makes tokens depend on everything. Knows no robots.
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
from experiments.config.simulation import sample_observations
from experiments.train import build_model, build_processor, open_data
from policies.conformance import PolicyComparison, compare_policies
from policies.export import export_bundle
from policies.token_policy import TokenPolicy
from policies.vla_policy import VLAPolicy
from vla.interface import DecodeError, Observation
from vla.model.sizes import DECODINGS
from vla.model.vla import VLAModel
from vla.processing.processor import Processor

_BYTES_A_WEIGHT = 4  # fp32
_NUM_OBSERVATIONS = 8


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
    processor = build_processor(run, train)
    observations = sample_observations(
        run.env,
        run.tasks[:1],
        num_per_task=_NUM_OBSERVATIONS,
        first_seed=run.first_seed,
        num_frames=len(processor.frame_offsets),
    )
    encoding = _times_ms({"": lambda one: processor.encode([one])}, observations, run.repeats)[""]
    rows.append(Row(name="encoding an observation", value=float(np.median(encoding)), unit="ms"))
    for decoding in DECODINGS:
        config = dataclasses.replace(run.model, decoding=decoding)
        model = build_model(config, processor, num_future_states=len(run.data.future_offsets), seed=run.seed)
        fill_zeros(model, seed=run.seed)
        rows += _decoding_rows(model, processor, observations, names, run.repeats, max(by_torch, by_onnx))
    return rows


def _is_there(name: str) -> bool:
    why = missing(name)
    if why is not None:
        print(why)
    return why is None


def _decoding_rows(
    model: VLAModel,
    processor: Processor,
    observations: Sequence[Observation],
    names: Sequence[str],
    repeats: int,
    flops: float,
) -> list[Row]:
    """Measure one decoding in every backend, in turns, so that a slow minute of the machine hits all."""
    reference = VLAPolicy(model=model, processor=processor)
    work = work_of(reference, observations[0])
    bandwidth = read_bandwidth(work.bytes_at_a_time, repeats=repeats)
    floor_ms, title = work.floor_ms(flops=flops, bandwidth=bandwidth), model.decoding
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
    looked_up = model.token_embedding.weight.numel()  # a few rows of it are read
    training_only = _size(model.future_norm, model.future_head) if model.num_future_states else 0
    once = _BYTES_A_WEIGHT * (model.num_parameters() - looked_up - training_only)
    if model.decoding == "parallel":
        return Work(operations=counter.get_total_flops(), weight_bytes=once, bytes_at_a_time=once)
    each = _BYTES_A_WEIGHT * _size(model.trunk, model.action_head)
    further = model.action_horizon * model.action_dim - 1
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
    reference: TokenPolicy, policy: TokenPolicy, observations: Sequence[Observation]
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


def _asker(policy: TokenPolicy) -> Callable[[Observation], object]:
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
