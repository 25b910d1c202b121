"""How fast the trainer trains, next to the rate of matrix products that the machine reaches.

The trainer runs as `experiments.train` runs it, for few steps, in a directory that is thrown away. Operations
are counted by torch as the step executes them; attention and convolutions count, elementwise work does not.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.limits import gemm_flops, limit_rows, memory_bandwidth
from experiments.benchmarks.measure import Row, best_cpu_s
from experiments.benchmarks.product_types import ProductTypes
from experiments.config.schema import TrainRun
from experiments.train import build_model, build_processor, open_data, trainer_settings
from vla.data.source import Source
from vla.model.vla import VLAModel
from vla.processing.processor import Processor
from vla.training.batches import BatchMaker, to_device
from vla.training.hardware import precision_name
from vla.training.settings import TrainerSettings, TrainingResult
from vla.training.trainer import Trainer

PHASES = ("data", "forward", "backward", "optimizer")  # of a step, in their order


class TrainedForAWhile(NamedTuple):
    """What a short training showed."""

    result: TrainingResult
    precision: torch.dtype
    num_threads: int
    types: dict[str, str]  # number types of the products, by phase
    flops: dict[str, float]  # operations of a step, by phase


def measure(run: TrainRun, *, repeats: int) -> list[Row]:
    """Return the table for the model and the trainer of a run, trained on `trainer.num_samples`."""
    settings = trainer_settings(run.trainer, seed=run.seed)
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
    trained = train_for_a_while(settings, model, processor, train, validation)
    torch.set_num_threads(trained.num_threads)
    fp32 = gemm_flops(torch.float32, repeats=repeats)
    bf16 = gemm_flops(torch.bfloat16, repeats=repeats) if trained.precision is torch.bfloat16 else None
    per_sample = (trained.flops["forward"] + trained.flops["backward"]) / settings.batch_size
    rate, peak = trained.result.samples_per_s, bf16 or fp32
    name = precision_name(trained.precision)
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
            note=f"median; batches of {settings.batch_size}; {name}; {trained.num_threads} threads",
        ),
        Row(
            name="training", value=rate * per_sample / 1e9, unit="GFLOP/s", limit=peak / 1e9, limit_name=name
        ),
        *(_phase_row(phase, trained, peak=peak) for phase in PHASES),
        Row(name="data path, share of one core", value=100 * rate * data_s, unit="%", note="in a thread"),
    ]


def _phase_row(phase: str, trained: TrainedForAWhile, *, peak: float) -> Row:
    """Return how long a phase of a step takes, and how long its products would take at the peak rate."""
    milliseconds = trained.result.phase_ms[phase]
    flops, whole = trained.flops.get(phase, 0.0), sum(trained.result.phase_ms.values())
    products = f", products in {trained.types[phase]}" if phase in trained.types else ", waiting for a batch"
    return Row(
        name=f"step, {phase}",
        value=milliseconds,
        unit="ms",
        limit=1e3 * flops / peak if flops else None,
        limit_name="its operations at the best rate" if flops else "",
        note=f"{100 * milliseconds / whole:.0f} % of the step{products}",
    )


def train_for_a_while(
    settings: TrainerSettings, model: VLAModel, processor: Processor, train: Source, validation: Source
) -> TrainedForAWhile:
    """Train within the budget of the settings, and leave nothing behind."""
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
        try:
            result = trainer.fit()
            types, flops = _look_into_a_step(trainer)
            return TrainedForAWhile(result, trainer.precision, trainer.threads.chosen, types, flops)
        finally:
            trainer.close()


def _look_into_a_step(trainer: Trainer) -> tuple[dict[str, str], dict[str, float]]:
    """Return number types of the products and operations of one more step, by phase."""
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
    return types, flops
