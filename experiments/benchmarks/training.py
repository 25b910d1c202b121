"""How fast the trainer trains, beside the rate of matrix products that the machine reaches.

The trainer runs as `experiments.train` runs it, for few steps, in a directory that is thrown away. Operations
are counted by torch as the step executes them; attention and convolutions count, elementwise work does not.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.limits import gemm_flops, limit_rows, memory_bandwidth
from experiments.benchmarks.measure import Row, best_cpu_s
from experiments.schema import TrainRun
from experiments.train import build_model, build_processor, open_data, trainer_settings
from vla.data.windows import Windows
from vla.model.vla import VLAModel
from vla.tokenizers.processor import Processor
from vla.training.batches import Batch, BatchMaker
from vla.training.hardware import choose_compile, choose_precision
from vla.training.losses import bin_targets
from vla.training.settings import TrainerSettings, TrainingResult
from vla.training.step import TrainStep
from vla.training.trainer import Trainer


def measure(run: TrainRun, *, repeats: int) -> list[Row]:
    """Return the table for the model and the trainer of a run; `trainer.num_steps` steps are done."""
    if run.trainer.num_threads is not None:
        torch.set_num_threads(run.trainer.num_threads)
    settings = trainer_settings(run.trainer, seed=run.seed)
    precision, why = choose_precision(settings.precision, torch.device("cpu"))
    fp32 = gemm_flops(torch.float32, repeats=repeats)
    bf16 = gemm_flops(torch.bfloat16, repeats=repeats) if precision is torch.bfloat16 else None
    train, validation = open_data(run)
    processor = build_processor(run, train)
    model = build_model(run.model, processor, num_future_states=len(run.data.future_offsets), seed=run.seed)
    maker = BatchMaker(windows=train, processor=processor, augmentation=settings.augmentation, seed=run.seed)
    chosen = np.random.default_rng(run.seed).integers(0, train.num_windows, size=settings.batch_size)
    data_s = best_cpu_s(lambda: maker.make(chosen, number=0), repeats=repeats) / len(chosen)
    operations = _operations(model, maker.make(chosen[:8], number=0), settings) / 8
    result = _train(settings, model, processor, train, validation)
    rate = result.samples_per_s
    peak = bf16 or fp32
    compiled = choose_compile(settings.compile)[1]
    return [
        *limit_rows(fp32=fp32, bf16=bf16, bandwidth=memory_bandwidth(repeats=repeats)),
        Row(name="parameters", value=model.num_parameters() / 1e6, unit="million"),
        Row(name="operations a sample, forward and backward", value=operations / 1e9, unit="GFLOP"),
        Row(
            name="training",
            value=rate,
            unit="samples/s",
            limit=peak / operations,
            limit_name="all operations at the rate of the best matrix product",
            note=f"median; batches of {settings.batch_size}; {why}; {compiled}",
        ),
        Row(name="training", value=rate * operations / 1e9, unit="GFLOP/s", limit=peak / 1e9, limit_name=why),
        Row(name="data path, share of one core", value=100 * rate * data_s, unit="%", note="in a thread"),
    ]


def _train(
    settings: TrainerSettings, model: VLAModel, processor: Processor, train: Windows, validation: Windows
) -> TrainingResult:
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
            return trainer.fit()
        finally:
            trainer.close()


def _operations(model: VLAModel, batch: Batch, settings: TrainerSettings) -> float:
    """Return the floating point operations of forward and backward pass of a batch."""
    targets = bin_targets(
        bins_per_dim=model.sizes.bins_per_dim,
        num_bins=model.sizes.num_bins,
        smoothing_bins=settings.smoothing_bins,
    )
    step = TrainStep(
        model=model,
        targets=targets,
        future_weight=settings.future_weight,
        precision=torch.float32,
        device=torch.device("cpu"),
    )
    with FlopCounterMode(display=False) as counter:
        loss, _ = step(*batch.arguments())
        loss.backward()
    model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())
