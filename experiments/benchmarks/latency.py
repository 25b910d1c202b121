"""How long a policy takes from frames to actions, one observation at a time on one thread.

torch runs the model eagerly, onnxruntime its exported bundle; weights are random, which costs the same. The
floor is what the matrix products and reading every weight once would take. Knows nothing of robots.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.limits import gemm_flops, limit_rows, memory_bandwidth
from experiments.benchmarks.measure import Row
from experiments.schema import TrainRun
from experiments.simulation import sample_observations
from experiments.train import build_model, build_processor, open_data
from policies.export import export_bundle
from policies.exported import BundlePolicy
from policies.interface import Observation, Policy
from policies.vla_policy import VLAPolicy

_BYTES_A_WEIGHT = 4  # fp32


def measure(run: TrainRun, *, repeats: int, first_seed: int) -> list[Row]:
    """Return the table for the model of a training run; observations are rendered in its environment."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(run, repeats=repeats, first_seed=first_seed)
    finally:
        torch.set_num_threads(threads)


def _measure(run: TrainRun, *, repeats: int, first_seed: int) -> list[Row]:
    flops, bandwidth = gemm_flops(torch.float32, repeats=repeats), memory_bandwidth(repeats=repeats)
    train, _ = open_data(run)
    processor = build_processor(run, train)
    model = build_model(run.model, processor, num_future_states=len(run.data.future_offsets), seed=run.seed)
    observations = sample_observations(
        run.env,
        run.tasks[:1],
        num_per_task=8,
        first_seed=first_seed,
        num_frames=len(processor.frame_offsets),
    )
    policy = VLAPolicy(model=model, processor=processor)
    with FlopCounterMode(display=False) as counter:
        policy.predict(observations[:1])
    operations = float(counter.get_total_flops())
    weight_bytes = _BYTES_A_WEIGHT * model.num_parameters()
    floor_ms = 1e3 * max(operations / flops, weight_bytes / bandwidth)
    floor = f"{operations / 1e6:.0f} MFLOP and {weight_bytes / 1e6:.0f} MB of weights"
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "bundle"
        export_bundle(
            model=model,
            processor=processor,
            provenance={"command": "benchmark"},
            out_dir=bundle,
            golden_observations=observations,
        )
        exported = BundlePolicy.load(bundle, num_threads=1, verify=False)
        inputs = _times_ms(lambda one: processor.encode([one]), observations, repeats)
        runs = {
            "torch, eager": _policy_times_ms(policy, observations, repeats),
            "onnxruntime, bundle": _policy_times_ms(exported, observations, repeats),
        }
    rows = limit_rows(fp32=flops, bandwidth=bandwidth)
    rows.append(Row(name="encoding an observation", value=float(np.median(inputs)), unit="ms"))
    for name, times in runs.items():
        note = f"smallest {times.min():.2f}, 99th percentile {np.quantile(times, 0.99):.2f} ms"
        rows.append(
            Row(
                name=f"{name}, frame to actions, median",
                value=float(np.median(times)),
                unit="ms",
                limit=floor_ms,
                limit_name=floor,
                note=note,
            )
        )
    return rows


def _policy_times_ms(policy: Policy, observations: Sequence[Observation], repeats: int) -> np.ndarray:
    return _times_ms(lambda one: policy.predict([one]), observations, repeats)


def _times_ms(
    work: Callable[[Observation], object], observations: Sequence[Observation], repeats: int
) -> np.ndarray:
    """Return wall times of single calls, the first round left out [ms]."""
    times = []
    for number in range(repeats + 1):
        for observation in observations:
            started = time.perf_counter()
            work(observation)
            if number:
                times.append(1e3 * (time.perf_counter() - started))
    return np.array(times)
