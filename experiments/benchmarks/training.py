"""How fast the trainer trains, next to the rate of matrix products that the machine reaches.

The trainer runs as `experiments.train` runs it, for few steps, in a directory that is thrown away. Operations
are counted by torch as the step executes them; attention and convolutions count, elementwise work does not.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.limits import gemm_flops, limit_rows, memory_bandwidth
from experiments.benchmarks.measure import Row, best_cpu_s
from experiments.benchmarks.product_types import ProductTypes
from experiments.config.schema import TrainRun
from experiments.training_parts import build_model, build_processor, open_data
from vla.data.source import Source
from vla.model.vla import VLAModel
from vla.processing.processor import Processor
from vla.training.batches import BatchMaker, to_device
from vla.training.hardware import precision_name
from vla.training.settings import TrainerSettings, TrainingResult
from vla.training.trainer import Trainer

PHASES = ("data", "forward", "backward", "optimizer")  # of a step, in their order


class StepProducts(NamedTuple):
    """The matrix products of one step, by phase."""

    types: dict[str, str]  # their number types
    flops: dict[str, float]  # their operations


def measure(run: TrainRun, *, repeats: int) -> list[Row]:
    """Return the table for the model and the trainer of a run, trained on `trainer.num_samples`."""
    settings = dataclasses.replace(run.trainer, seed=run.seed)
    train, validation = open_data(run)
    processor = build_processor(run, train)
    model = build_model(run.model, processor, seed=run.seed)
    maker = BatchMaker(
        train,
        processor=processor,
        requests=model.requests(),
        noise=model.noise_specs(training=True),
        seed=run.seed,
    )
    chosen = np.random.default_rng(run.seed).integers(0, train.num_samples, size=settings.batch_size)
    data_s = best_cpu_s(lambda: maker.make(chosen, number=0), repeats=repeats) / len(chosen)
    with trained_for_a_while(settings, model, processor, train, validation) as (trainer, result):
        products = _look_into_a_step(trainer)
    precision, num_threads = trainer.precision, trainer.threads.chosen
    torch.set_num_threads(num_threads)
    fp32 = gemm_flops(torch.float32, repeats=repeats)
    bf16 = gemm_flops(torch.bfloat16, repeats=repeats) if precision is torch.bfloat16 else None
    per_sample = (products.flops["forward"] + products.flops["backward"]) / settings.batch_size
    rate, peak, name = result.samples_per_s, bf16 or fp32, precision_name(precision)
    return [
        *limit_rows(fp32=fp32, bf16=bf16, bandwidth=memory_bandwidth(repeats=repeats)),
        Row(name="parameters", value=model.num_parameters() / 1e6, unit="million"),
        Row(name="operations a sample, forward and backward", value=per_sample / 1e9, unit="GFLOP"),
        Row(
            name="training",
            value=rate,
            unit="samples/s",
            limit=peak / per_sample,
            limit_name="all operations at the rate of the best matrix product",
            note=f"median; batches of {settings.batch_size}; {name}; {num_threads} threads",
        ),
        Row(
            name="training", value=rate * per_sample / 1e9, unit="GFLOP/s", limit=peak / 1e9, limit_name=name
        ),
        *(_phase_row(phase, result.phase_ms, products, peak=peak) for phase in PHASES),
        Row(name="data path, share of one core", value=100 * rate * data_s, unit="%", note="in a thread"),
    ]


def _phase_row(phase: str, phase_ms: Mapping[str, float], products: StepProducts, *, peak: float) -> Row:
    """Return how long a phase of a step takes, and how long its products would take at the peak rate."""
    milliseconds, whole = phase_ms[phase], sum(phase_ms.values())
    flops = products.flops.get(phase, 0.0)
    work = f", products in {products.types[phase]}" if phase in products.types else ", waiting for a batch"
    return Row(
        name=f"step, {phase}",
        value=milliseconds,
        unit="ms",
        limit=1e3 * flops / peak if flops else None,
        limit_name="its operations at the best rate" if flops else "",
        note=f"{100 * milliseconds / whole:.0f} % of the step{work}",
    )


@contextlib.contextmanager
def trained_for_a_while(
    settings: TrainerSettings, model: VLAModel, processor: Processor, train: Source, validation: Source
) -> Iterator[tuple[Trainer, TrainingResult]]:
    """Train within the budget of the settings; yield trainer and result, and leave nothing behind."""
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            settings,
            model=model,
            processor=processor,
            train=train,
            validation=validation,
            run_dir=Path(directory),
            provenance={"command": "benchmark"},
        )
        with contextlib.closing(trainer):
            yield trainer, trainer.fit()


def _look_into_a_step(trainer: Trainer) -> StepProducts:
    """Do one more step and return its matrix products."""
    batch, _ = next(iter(trainer.prefetcher))
    types: dict[str, str] = {}
    flops: dict[str, float] = {}

    def forward() -> None:
        losses.append(trainer.train_step(to_device(batch, trainer.device))["loss"])

    def backward() -> None:
        losses[0].backward()

    def optimize() -> None:
        for optimizer in trainer.optimizers:
            optimizer.step()

    losses: list[torch.Tensor] = []
    for phase, work in (("forward", forward), ("backward", backward), ("optimizer", optimize)):
        with FlopCounterMode(display=False) as counter, ProductTypes() as recorded:
            work()
        types[phase], flops[phase] = recorded.names(), float(counter.get_total_flops())
    return StepProducts(types, flops)
