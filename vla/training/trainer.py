"""The training loop: step, log, validate, save, resume. Behaviour cloning on action tokens.

It is handed a model, a processor and windows of demonstrations. It knows nothing of configs, simulators or
robots. A resumed run continues bit for bit: weights, moments, average, sampler position; augmentation is a
function of seed and batch number, and the model draws no random numbers.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from vla.data.windows import EpochSampler, Windows
from vla.model.vla import VLAModel
from vla.tokenizers.processor import Processor
from vla.training.batches import Batch, BatchMaker, Prefetcher
from vla.training.checkpoint import (
    checkpoint_directory,
    list_checkpoints,
    load_averaged,
    load_training,
    load_weights,
    pack_training,
    prune_checkpoints,
    require_same_parts,
    save_checkpoint,
    unpack_training,
)
from vla.training.distributed import join_ranks, leave_ranks, local_device, mean_over_ranks, wrap
from vla.training.hardware import choose_compile, choose_precision
from vla.training.interrupt import interruptible
from vla.training.losses import bin_targets
from vla.training.metrics import JsonLinesSink, MetricSink
from vla.training.optimizer import WeightAverage, learning_rate_factor, make_optimizers
from vla.training.settings import NonFiniteLossError, TrainerSettings, TrainingResult
from vla.training.step import TrainStep
from vla.training.validation import validate


class Trainer:
    """One training run in `run_dir`, fresh or resumed from its newest checkpoint.

    Use it once: `Trainer(...)` prepares or resumes, `fit` trains, `close` ends it.

    Raises:
        CheckpointError: `run_dir` holds a checkpoint of another model or processor.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        model: VLAModel,
        processor: Processor,
        train: Windows,
        validation: Windows,
        run_dir: Path,
        sinks: Sequence[MetricSink] = (),
        provenance: Mapping[str, Any],
    ) -> None:
        self.settings, self.model, self.processor, self.run_dir = settings, model, processor, run_dir
        self.provenance = dict(provenance)
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)
        self.device = local_device(settings.device)
        self.ranks = join_ranks(self.device)
        self.precision, why = choose_precision(settings.precision, self.device)
        use_compile, compile_why = choose_compile(settings.compile)
        self._say(f"{model.num_parameters() / 1e6:.2f} M parameters on {self.device}; {why}; {compile_why}")
        model.to(self.device)
        self.targets = bin_targets(
            bins_per_dim=model.sizes.bins_per_dim,
            num_bins=model.sizes.num_bins,
            smoothing_bins=settings.smoothing_bins,
        ).to(self.device)
        self.train_step = self._make_step(use_compile=use_compile)
        self.optimizers = make_optimizers(
            model, kind=settings.optimizer, weight_decay=settings.weight_decay, betas=settings.betas
        )
        self.average = WeightAverage(model, decay=settings.ema_decay)
        sampler = EpochSampler(
            num_windows=train.num_windows,
            groups=train.task_index if settings.balance_tasks else None,
            batch_size=settings.batch_size,
            seed=settings.seed,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
        )
        self.sampler_state = sampler.state()
        self.step, self.elapsed_s = 0, 0.0
        self.metrics: dict[str, float] = {}
        self._resume()
        sampler.load_state(self.sampler_state)
        self.sinks: list[MetricSink] = list(sinks)
        if self.ranks.is_main:
            self.sinks.append(JsonLinesSink(run_dir / "metrics.jsonl", resume_step=self.step))
        maker = BatchMaker(
            windows=train, processor=processor, augmentation=settings.augmentation, seed=settings.seed
        )
        first = self.step * settings.accumulate
        self.prefetcher = Prefetcher(maker=maker, sampler=sampler, first_number=first)
        self.validation_set = self._validation_set(validation)
        self.rates: list[float] = []

    def _make_step(self, *, use_compile: bool) -> nn.Module:
        """Return forward pass and loss, distributed over the ranks and compiled if asked for."""
        step = TrainStep(
            model=self.model,
            targets=self.targets,
            future_weight=self.settings.future_weight,
            precision=self.precision,
            device=self.device,
        )
        wrapped = wrap(step, self.ranks)
        return cast(nn.Module, torch.compile(wrapped)) if use_compile else wrapped

    def fit(self, *, max_steps_now: int | None = None) -> TrainingResult:
        """Train until done, out of time, interrupted, or for `max_steps_now` more steps; then save.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite. The last good checkpoint is kept.
        """
        last = self.settings.num_steps
        if max_steps_now is not None:
            last = min(last, self.step + max_steps_now)
        batches = iter(self.prefetcher)
        saved_at = time.monotonic()
        with interruptible() as interrupted, self._bar() as bar:
            mark = (time.monotonic(), self.step)
            while self.step < last and not self._out_of_time() and not interrupted.is_set():
                started = time.monotonic()
                values = self._train_one(batches)
                self.step += 1
                self.elapsed_s += time.monotonic() - started
                if self.step % self.settings.log_every_steps == 0 or self.step == last:
                    self._log(bar, values, mark)
                    mark = (time.monotonic(), self.step)
                if self.step % self.settings.validate_every_steps == 0:
                    self._validate()
                    mark = (time.monotonic(), self.step)
                if time.monotonic() - saved_at > 60 * self.settings.save_every_minutes:
                    self._save()
                    saved_at = time.monotonic()
                    mark = (saved_at, self.step)
        self._validate()
        path = self._save()
        if interrupted.is_set():
            self._say(f"interrupted at step {self.step}; the same command resumes from {path}")
        return TrainingResult(
            checkpoint=path,
            step=self.step,
            elapsed_s=self.elapsed_s,
            samples_per_s=float(np.median(self.rates)) if self.rates else float("nan"),
            finished=self.step >= self.settings.num_steps or self._out_of_time(),
            metrics=self.metrics,
        )

    def close(self) -> None:
        """Stop the batch thread, close the sinks, leave the process group."""
        self.prefetcher.close()
        for sink in self.sinks:
            sink.close()
        leave_ranks(self.ranks)

    def _train_one(self, batches: Iterator[tuple[Batch, dict[str, Any]]]) -> dict[str, float]:
        """Do one optimiser step and return its loss, token accuracy, gradient norm and learning rate."""
        settings = self.settings
        rate = settings.learning_rate * learning_rate_factor(self._progress(), warmup=settings.warmup_share)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss_sum = torch.zeros((), device=self.device)
        accuracy_sum = torch.zeros((), device=self.device)
        for _ in range(settings.accumulate):
            batch, self.sampler_state = next(batches)
            batch = batch.to(self.device)
            loss, accuracy = self.train_step(*batch.arguments())
            (loss / settings.accumulate).backward()
            loss_sum += loss.detach() / settings.accumulate
            accuracy_sum += accuracy.detach() / settings.accumulate
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        values = {
            "loss": float(mean_over_ranks(loss_sum, self.ranks)),
            "token_accuracy": float(mean_over_ranks(accuracy_sum, self.ranks)),
            "gradient_norm": float(norm),
            "learning_rate": rate,
        }
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            kept = list_checkpoints(self.run_dir)
            raise NonFiniteLossError(
                f"loss {values['loss']}, gradient norm {values['gradient_norm']} after step {self.step}; "
                f"the last good checkpoint is {kept[-1] if kept else 'none yet'}. "
                "Lower trainer.learning_rate or trainer.max_grad_norm, or try trainer.precision=fp32"
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model)
        return values

    def _progress(self) -> float:
        """Return how much of the run is done, in [0, 1], by steps or by time, whichever is further."""
        by_steps = self.step / self.settings.num_steps
        if self.settings.time_budget_minutes is None:
            return by_steps
        return min(1.0, max(by_steps, self.elapsed_s / (60 * self.settings.time_budget_minutes)))

    def _out_of_time(self) -> bool:
        budget = self.settings.time_budget_minutes
        return budget is not None and self.elapsed_s >= 60 * budget

    def _bar(self) -> tqdm:
        return tqdm(
            total=100,
            initial=round(100 * self._progress(), 1),  # of a resumed run; the time left counts from there
            desc="train",
            disable=not self.ranks.is_main,
            bar_format="{desc} {n:3.0f}%|{bar:20}| {elapsed}<{remaining} {postfix}",
        )

    def _log(self, bar: tqdm, values: Mapping[str, float], mark: tuple[float, int]) -> None:
        """Write the numbers of one interval, which began at `mark`, to the sinks and the live line."""
        now, (since, step) = time.monotonic(), mark
        per_step = self.settings.batch_size * self.settings.accumulate * self.ranks.world_size
        rate = (self.step - step) * per_step / (now - since)
        self.rates.append(rate)
        bar.n = round(100 * self._progress(), 1)
        bar.set_postfix_str(
            f"step {self.step} loss {values['loss']:.3f} token acc {values['token_accuracy']:.3f} "
            f"{rate:.0f} samples/s"
        )
        for sink in self.sinks:
            sink.log(self.step, {**values, "samples_per_s": rate, "elapsed_s": self.elapsed_s})

    def _validation_set(self, validation: Windows) -> list[Batch]:
        """Draw the fixed batches that every validation uses."""
        if validation.num_windows == 0:
            raise ValueError(
                "the validation set is empty; raise data.validation_share or record more episodes"
            )
        rng = np.random.default_rng(self.settings.seed)
        count = min(self.settings.validation_batches * self.settings.batch_size, validation.num_windows)
        chosen = rng.permutation(validation.num_windows)[:count].astype(np.int64)
        maker = BatchMaker(windows=validation, processor=self.processor, augmentation=None, seed=0)
        parts = np.array_split(chosen, max(1, count // self.settings.batch_size))
        return [maker.make(part, number=0) for part in parts]

    def _validate(self) -> None:
        """Measure the averaged weights on held-out episodes."""
        with self._averaged_weights():
            self.metrics = validate(
                self.model,
                self.processor,
                self.validation_set,
                targets=self.targets,
                precision=self.precision,
                device=self.device,
            )
        self._say(
            f"step {self.step}: held-out loss {self.metrics['validation/loss']:.3f}, "
            f"token accuracy {self.metrics['validation/token_accuracy']:.3f}"
        )
        for sink in self.sinks:
            sink.log(self.step, self.metrics)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the model for the duration of the block."""
        raw = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        load_weights(self.model, self.average.weights(), source=self.run_dir)
        try:
            yield
        finally:
            load_weights(self.model, raw, source=self.run_dir)

    def _save(self) -> Path:
        """Write a checkpoint of this step from the main process and return its directory."""
        directory = checkpoint_directory(self.run_dir, self.step)
        if not self.ranks.is_main:
            return directory
        state = {
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "sampler": self.sampler_state,
            "average_updates": self.average.num_updates,
            "metrics": self.metrics,
        }
        save_checkpoint(
            directory,
            model=self.model,
            processor=self.processor,
            averaged=self.average.weights(),
            training=pack_training(self.model, self.optimizers),
            state=state,
            provenance={**self.provenance, "step": self.step, "elapsed_s": self.elapsed_s},
        )
        prune_checkpoints(self.run_dir, keep=self.settings.keep_checkpoints)
        return directory

    def _resume(self) -> None:
        """Continue from the newest checkpoint of the run directory, if there is one."""
        found = list_checkpoints(self.run_dir)
        if not found:
            return
        require_same_parts(found[-1], model=self.model, processor=self.processor)
        tensors, state = load_training(found[-1])
        unpack_training(tensors, self.model, self.optimizers, source=found[-1])
        self.average.load(load_averaged(found[-1]), num_updates=state["average_updates"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.sampler_state, self.metrics = state["sampler"], state["metrics"]
        self._say(f"resuming from {found[-1]}")

    def _say(self, text: str) -> None:
        """Tell the person at the terminal, from the main process only."""
        if self.ranks.is_main:
            tqdm.write(text, file=sys.stderr)
