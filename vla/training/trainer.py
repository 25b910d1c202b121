"""The training loop: step, log, validate, save, resume. Behavior cloning on action tokens.

It is handed a model, a processor and sources of samples. A resumed run continues bit for bit: weights,
moments, average, sampler position, the number type and the number of threads; augmentation is a function of
seed and batch number, and the model draws no random numbers.
"""

import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vla.data.sampler import EpochSampler
from vla.data.source import Source
from vla.model.attention import fuse_attention
from vla.model.checkpoint import (
    best_directory,
    list_checkpoints,
    load_averaged,
    load_weights,
)
from vla.model.vla import VLAModel
from vla.processing.processor import Processor
from vla.training.batches import Batch, BatchMaker, Prefetcher, to_device
from vla.training.best import DEVELOPMENT_SUCCESS, SUCCESS_HIGH, SUCCESS_LOW, BestSoFar, RollOut
from vla.training.checkpoint import (
    checkpoint_directory,
    load_training,
    newest_state,
    pack_training,
    prune_checkpoints,
    require_same_parts,
    save_checkpoint,
    settle_checkpoints,
    unpack_training,
)
from vla.training.distributed import (
    adding_up,
    join_ranks,
    largest_over_ranks,
    leave_ranks,
    local_device,
    mean_over_ranks,
    wait_for_ranks,
    wrap,
)
from vla.training.hardware import (
    ProductRates,
    choose_compile,
    choose_precision,
    keep_freed_memory,
    measure_product_rates,
    precision_name,
)
from vla.training.interrupt import Interruption, interruptible
from vla.training.metrics import JsonLinesSink, MetricSink
from vla.training.optimizer import WeightAverage, learning_rate_factor, make_optimizers, set_learning_rate
from vla.training.settings import (
    FINISHED,
    INTERRUPTED,
    MAY_CHANGE,
    OUT_OF_TIME,
    NonFiniteLossError,
    TrainerSettings,
    TrainingResult,
    out_of_time_message,
)
from vla.training.step import TrainStep, shares_of_terms
from vla.training.threads import ThreadChooser
from vla.training.validation import golden_moments, validate, validation_batches
from vla.training.warm_start import Start, begin

_STEPS_BEFORE_FORECAST = 20


class Trainer:
    """One training run in `run_dir`, fresh or resumed from its newest checkpoint.

    Use it once: `Trainer(...)` prepares or resumes, `fit` trains, `close` ends it.

    Raises:
        BudgetSpent: the checkpoint in `run_dir` was trained for longer than the budget allows.
        CheckpointError: `run_dir` holds a checkpoint of another model or processor.
        ManifestError: all checkpoints in `run_dir` are damaged; of some the newest whole one is taken.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        model: VLAModel,
        processor: Processor,
        train: Source,
        validation: Source,
        run_dir: Path,
        sinks: Sequence[MetricSink] = (),
        roll_out: RollOut | None = None,
        start: Start | None = None,
        provenance: Mapping[str, Any],
    ) -> None:
        self.settings, self.model, self.processor, self.run_dir = settings, model, processor, run_dir
        self.provenance, self.source_settings, self.start = dict(provenance), train.to_json(), start
        self.device = local_device(settings.device)
        self.ranks = join_ranks(self.device)
        self.samples_per_step = settings.batch_size * settings.accumulate * self.ranks.world_size
        self.num_steps = math.ceil(settings.num_samples / self.samples_per_step)
        scales = begin(model, processor, settings, start=start, report=self._say)
        model.to(self.device)
        keep_freed_memory()
        if self.ranks.is_main:
            settle_checkpoints(run_dir, report=self._say)
        wait_for_ranks(self.ranks)
        resumed = self._newest_state()
        self.precision, use_compile = self._choose_arithmetic(resumed)
        self.threads = self._thread_chooser(resumed, use_compile=use_compile)
        self.train_step = self._make_step(use_compile=use_compile)
        self.optimizers = make_optimizers(
            model,
            kind=settings.optimizer,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
            product_dtype=self.precision,
            scales=scales,
        )
        self.average = WeightAverage(model, decay=settings.ema_decay)
        self.step, self.elapsed_s = 0, 0.0
        self.sampler_state: dict[str, Any] | None = None  # at the first sample
        self.metrics: dict[str, float] = {}
        self.validated_step: int | None = None  # at which `metrics` were measured
        self.best = BestSoFar(
            settings, roll_out=roll_out, num_steps=self.num_steps, samples_per_step=self.samples_per_step
        )
        self._resume()
        self.log = (
            JsonLinesSink(run_dir / "metrics.jsonl", resume_step=self.step) if self.ranks.is_main else None
        )
        self.sinks: list[MetricSink] = [*sinks, *([] if self.log is None else [self.log])]
        self.prefetcher = self._open_prefetcher(train)
        self.validation_set = self._validation_set(validation)
        self.golden = golden_moments(validation if validation.num_samples else train)
        self.rates: list[float] = []
        self._step_s: list[float] = []  # of the steps since the last log
        self._phase_s: defaultdict[str, float] = defaultdict(float)  # in all of them
        self._phase_ms: defaultdict[str, list[float]] = defaultdict(list)

    def _choose_arithmetic(self, resumed: Mapping[str, Any]) -> tuple[torch.dtype, bool]:
        """Return the type of matrix products and whether to compile, and print why."""
        settings, begun_with = self.settings, resumed.get("precision")
        precision, why = choose_precision(
            settings.precision, rates=self._product_rates(), begun_with=begun_with
        )
        use_compile, compile_why = choose_compile(settings.compile, self.device)
        size, attention = self.model.num_parameters() / 1e6, fuse_attention(self.model, self.device)
        self._say(f"{size:.2f} M parameters on {self.device}; {why}; {compile_why}; {attention}")
        return precision, use_compile

    def _product_rates(self) -> ProductRates:
        """Return the rates of matrix products here, the same for all ranks, so that all choose alike."""
        rates = measure_product_rates(self.model, self.device)
        mean = mean_over_ranks(torch.tensor(rates, device=self.device), self.ranks)
        return ProductRates(*mean.tolist())

    def _open_prefetcher(self, train: Source) -> Prefetcher:
        """Return what prepares the batches of this process, from where training stands."""
        settings = self.settings
        sampler = EpochSampler(
            num_windows=train.num_samples,
            groups=train.groups,
            batch_size=settings.batch_size,
            seed=settings.seed,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
        )
        if self.sampler_state is not None:
            sampler.load_state(self.sampler_state)
        self.sampler_state = sampler.state()
        maker = BatchMaker(
            train,
            processor=self.processor,
            requests=self.model.requests(),
            noise=self.model.noise_specs(training=True),
            seed=settings.seed,
        )
        return Prefetcher(maker=maker, sampler=sampler, first_number=self.step * settings.accumulate)

    @property
    def num_samples(self) -> int:
        """Samples trained on, over all resumptions."""
        return self.step * self.samples_per_step

    def _thread_chooser(self, resumed: Mapping[str, Any], *, use_compile: bool) -> ThreadChooser:
        """Return what chooses the number of threads: nothing to choose if it is fixed or compiled in."""
        fixed, available = self.settings.num_threads, torch.get_num_threads()
        if fixed is not None or use_compile or self.device.type != "cpu" or self.ranks.world_size > 1:
            return ThreadChooser(choices=[fixed or available], report=self._say)
        return ThreadChooser(
            choices=[1, available],
            chosen=resumed.get("num_threads"),
            usual_s=resumed.get("usual_step_s"),
            report=self._say,
        )

    def _make_step(self, *, use_compile: bool) -> nn.Module:
        """Return forward pass and loss, distributed over the ranks and compiled if asked for."""
        step = TrainStep(model=self.model, precision=self.precision, device=self.device)
        return wrap(cast(nn.Module, torch.compile(step)) if use_compile else step, self.ranks)

    def fit(self, *, max_steps_now: int | None = None) -> TrainingResult:
        """Train until done, out of time, interrupted, or for `max_steps_now` more steps; then save.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite. The last good checkpoint is kept.
        """
        last = self.num_steps
        if max_steps_now is not None:
            last = min(last, self.step + max_steps_now)
        first = self.step
        batches = iter(self.prefetcher)
        saved_at = time.monotonic()
        with interruptible() as interruption, self._bar() as bar:
            mark = (time.monotonic(), self.step)
            while self.step < last and not self._must_stop(interruption):
                values = self._timed_step(batches)
                if self.step == first + _STEPS_BEFORE_FORECAST:
                    self._forecast()
                if self.step % self.settings.log_every_steps == 0 or self.step == last:
                    self._log(bar, values, mark)
                    mark = (time.monotonic(), self.step)
                if self.step % self.settings.validate_every_steps == 0:
                    self._validate()
                    mark = (time.monotonic(), self.step)
                if self.best.is_due(self.step):
                    self._measure_success(interruption)
                    mark = (time.monotonic(), self.step)
                if time.monotonic() - saved_at > 60 * self.settings.save_every_minutes:
                    self._save_newest()
                    saved_at = time.monotonic()
                    mark = (saved_at, self.step)
            if self.best.lacks_last(self.step):
                self._measure_success(interruption)
        if self.validated_step != self.step:
            self._validate()
        path = self._save_newest()
        return TrainingResult(
            checkpoint=path,
            step=self.step,
            num_samples=self.num_samples,
            elapsed_s=self.elapsed_s,
            samples_per_s=float(np.median(self.rates)) if self.rates else float("nan"),
            phase_ms={name: float(np.median(values)) for name, values in self._phase_ms.items()},
            end=self._report_end(path),
            signal=interruption.signal,
            metrics=self.metrics,
        )

    def _must_stop(self, interruption: Interruption) -> bool:
        """Decide together with the other processes whether time is up or one of them was interrupted."""
        self.elapsed_s = largest_over_ranks(self.elapsed_s, self.ranks, self.device)
        signaled = largest_over_ranks(float(interruption.signal or 0), self.ranks, self.device)
        if signaled:  # never set to None: a signal may have arrived meanwhile
            interruption.signal = int(signaled)
        return self._is_out_of_time() or bool(signaled)

    def _report_end(self, checkpoint: Path) -> str:
        """Return how the run ended; anything but the end of its budget is also printed."""
        if self.step >= self.num_steps and not self.best.lacks_last(self.step):
            return FINISHED
        if self._is_out_of_time():
            self._say(out_of_time_message(self.num_samples, budget=self.settings.num_samples))
            return OUT_OF_TIME
        done = f"{self.num_samples:,} of {self.settings.num_samples:,} samples"
        self._say(f"interrupted after {done}; the same command resumes from {checkpoint}")
        return INTERRUPTED

    def close(self) -> None:
        """Stop the batch thread, close the log, leave the process group; sinks are their makers' to close."""
        self.prefetcher.close()
        if self.log is not None:
            self.log.close()
        leave_ranks(self.ranks)

    def _timed_step(self, batches: Iterator[tuple[Batch, dict[str, Any]]]) -> dict[str, float]:
        """Do one step on as many threads as are fast now."""
        torch.set_num_threads(self.threads.next_count())
        started = time.monotonic()
        values = self._train_one(batches)
        seconds = time.monotonic() - started
        self.step += 1
        self.elapsed_s += seconds
        self._step_s.append(seconds)
        self.threads.record(seconds)
        return values

    def _train_one(self, batches: Iterator[tuple[Batch, dict[str, Any]]]) -> dict[str, float]:
        """Do one optimizer step and return its losses, gradient norm and learning rate."""
        settings = self.settings
        rate = settings.learning_rate * learning_rate_factor(
            self._progress_after_step(), warmup=settings.warmup_share
        )
        set_learning_rate(self.optimizers, rate)
        sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        with self._timing("data"):
            drawn, shares = self._draw(batches)
        for number, (batch, share) in enumerate(zip(drawn, shares, strict=True), start=1):
            with self._timing("data"):
                batch = to_device(batch, self.device)
            with adding_up(self.train_step, is_last=number == settings.accumulate):
                with self._timing("forward"):
                    losses = self.train_step(batch, share)
                with self._timing("backward"):
                    losses["loss"].backward()
            for name, value in losses.items():
                sums[name] += value.detach()
        with self._timing("optimizer"):
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
            values = {
                **{name: float(mean_over_ranks(value, self.ranks)) for name, value in sums.items()},
                "gradient_norm": float(norm),
                "learning_rate": rate,
            }
            self._require_finite(values)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.average.update(self.model)
        return values

    def _draw(
        self, batches: Iterator[tuple[Batch, dict[str, Any]]]
    ) -> tuple[list[Batch], list[dict[str, Tensor]]]:
        """Return the batches of one step, and what share each has in the step's losses.

        Gradients and values become means over the processes, so the shares of each process sum to 1 where
        all have equally many terms.
        """
        drawn: list[Batch] = []
        for _ in range(self.settings.accumulate):
            batch, self.sampler_state = next(batches)
            drawn.append(batch)
        return drawn, shares_of_terms(self.model, drawn, ranks=self.ranks, device=self.device)

    def _require_finite(self, values: Mapping[str, float]) -> None:
        if math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"]):
            return
        kept = list_checkpoints(self.run_dir)
        raise NonFiniteLossError(
            f"loss {values['loss']}, gradient norm {values['gradient_norm']} after step {self.step}; "
            f"the last good checkpoint is {kept[-1] if kept else 'none yet'}. "
            "Continue from it with a lower trainer.learning_rate or trainer.max_grad_norm and "
            "trainer.resume=override, or with trainer.precision=fp32"
        )

    @contextmanager
    def _timing(self, phase: str) -> Iterator[None]:
        """Add the time that the block takes to a phase of the step; on a GPU that of the host."""
        started = time.perf_counter()
        yield
        self._phase_s[phase] += time.perf_counter() - started

    def _progress_after_step(self) -> float:
        """Return the share of the budget that will be spent after the present step, in (0, 1].

        The only step of a run counts as the end of the warm-up, or it would hardly move the random weights.
        """
        if self.num_steps == 1:
            return self.settings.warmup_share
        return min(1.0, (self.step + 1) * self.samples_per_step / self.settings.num_samples)

    def _is_out_of_time(self) -> bool:
        cap = self.settings.max_minutes
        return cap is not None and self.step < self.num_steps and self.elapsed_s >= 60 * cap

    def _forecast(self) -> None:
        """Print how long the rest takes if it goes on as it does now."""
        seconds, left = float(np.median(self._step_s)), self.num_steps - self.step
        phases = ", ".join(f"{name} {value / 1e3:.2f}" for name, value in self._phases().items())
        self._say(
            f"about {left * seconds / 60:.0f} min of training left: {left} steps at "
            f"{self.samples_per_step / seconds:.0f} samples/s; seconds per step: {phases}"
        )

    def _phases(self) -> dict[str, float]:
        """Return the mean milliseconds of each phase of a step since the last log."""
        return {name: 1e3 * seconds / len(self._step_s) for name, seconds in self._phase_s.items()}

    def _bar(self) -> tqdm:
        return tqdm(
            total=self.num_steps * self.samples_per_step,
            initial=self.num_samples,  # of a resumed run; the time left counts from there
            desc="train",
            disable=not self.ranks.is_main,
            unit_scale=True,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} samples "
            "{elapsed}<{remaining} {postfix}",
        )

    def _log(self, bar: tqdm, values: Mapping[str, float], mark: tuple[float, int]) -> None:
        """Write the numbers of one interval, which began at `mark`, to the sinks and the live line."""
        now, (since, step) = time.monotonic(), mark
        rate = (self.step - step) * self.samples_per_step / (now - since)
        self.rates.append(rate)
        phases = self._phases()
        self._phase_s.clear()
        self._step_s.clear()
        for name, milliseconds in phases.items():
            self._phase_ms[name].append(milliseconds)
        bar.n = self.num_samples
        bar.set_postfix_str(f"loss {values['loss']:.3f} {rate:.0f} samples/s")
        numbers = {
            **values,
            "num_samples": self.num_samples,
            "samples_per_s": rate,
            "elapsed_s": self.elapsed_s,
            "num_threads": self.threads.chosen,
            **{f"ms_per_step/{name}": milliseconds for name, milliseconds in phases.items()},
        }
        for sink in self.sinks:
            sink.log(self.step, numbers)

    def _validation_set(self, validation: Source) -> list[Batch]:
        """Draw the fixed batches that every validation uses, none where nothing is held out."""
        if validation.num_samples == 0:
            self._say(
                "no episode is held out, so there will be no held-out losses; data.validation_share sets the "
                "share, and a task needs two episodes for it"
            )
            return []
        return validation_batches(
            self.model,
            self.processor,
            validation,
            batch_size=self.settings.batch_size,
            most=self.settings.validation_batches,
        )

    def _validate(self) -> None:
        """Measure the averaged weights on held-out episodes, if there are any."""
        self.validated_step = self.step
        if not self.validation_set:
            return
        with self._averaged_weights():
            self.metrics = validate(
                self.model,
                self.processor,
                self.validation_set,
                precision=self.precision,
                device=self.device,
            )
        shown = ", ".join(
            f"{name.removeprefix('validation/').replace('_', ' ')} {value:.3f}"
            for name, value in self.metrics.items()
            if "error/" not in name
        )
        self._say(f"step {self.step}: held-out {shown}")
        for sink in self.sinks:
            sink.log(self.step, self.metrics)
        self._keep_if_best(self.metrics)

    def _measure_success(self, interruption: Interruption) -> None:
        """Roll the averaged weights out on development seeds, in the main process, unless interrupted."""
        numbers: dict[str, float] | None = None
        if self.ranks.is_main:
            assert self.best.roll_out is not None, "nothing measures success"
            with self._averaged_weights():
                numbers = self.best.roll_out(self.model, should_stop=lambda: interruption.signal is not None)
            self.model.train()
        if largest_over_ranks(float(numbers is not None), self.ranks, self.device):
            self.best.rolled_out_step = self.step
        if numbers is not None:
            rate, low, high = (numbers[name] for name in (DEVELOPMENT_SUCCESS, SUCCESS_LOW, SUCCESS_HIGH))
            self._say(f"step {self.step}: success on development seeds {rate:.0%} [{low:.0%}, {high:.0%}]")
            for sink in self.sinks:
                sink.log(self.step, numbers)
            self._keep_if_best(numbers)

    def _keep_if_best(self, numbers: Mapping[str, float]) -> None:
        """Keep a checkpoint apart if these numbers make it the best one so far."""
        if self.best.take(numbers, step=self.step):
            self._save(best_directory(self.run_dir), training={})

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the model for the duration of the block."""
        raw = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        load_weights(self.model, self.average.weights(), source=self.run_dir)
        try:
            yield
        finally:
            load_weights(self.model, raw, source=self.run_dir)

    def _save_newest(self) -> Path:
        """Write a checkpoint of this step, remove those that are too many, and return its directory."""
        directory = checkpoint_directory(self.run_dir, self.step)
        self._save(directory, training=pack_training(self.model, self.optimizers))
        if self.ranks.is_main:
            prune_checkpoints(self.run_dir, keep=self.settings.keep_checkpoints)
        return directory

    def _save(self, directory: Path, *, training: Mapping[str, Tensor]) -> None:
        """Write a checkpoint from the main process; without `training` nothing can be resumed from it."""
        if not self.ranks.is_main:
            return
        state = {
            "step": self.step,
            "num_samples": self.num_samples,
            "elapsed_s": self.elapsed_s,
            "precision": precision_name(self.precision),
            "num_threads": self.threads.chosen,
            "usual_step_s": self.threads.usual_s,
            "sampler": self.sampler_state,
            "average_updates": self.average.num_updates,
            "metrics": self.metrics,
            "validated_step": self.validated_step,
            **self.best.to_json(),
            "init_from": None if self.start is None else self.start.to_json(),
            "settings": self._settings_to_keep(),
        }
        save_checkpoint(
            directory,
            model=self.model,
            processor=self.processor,
            averaged=self.average.weights(),
            training=training,
            golden=self.golden,
            state=state,
            provenance={**self.provenance, "step": self.step, "elapsed_s": self.elapsed_s},
        )

    def _newest_state(self) -> dict[str, Any]:
        """Return the state of the newest checkpoint of the run directory, empty if there is none."""
        return newest_state(
            self.run_dir,
            settings=self.settings,
            kept=self._settings_to_keep(),
            most_samples=self.num_steps * self.samples_per_step,
            report=self._say,
        )

    def _settings_to_keep(self) -> dict[str, Any]:
        """Return the settings that shape what is learned, which a resumed run must not change unasked."""
        trainer = {
            key: value
            for key, value in self.settings.to_json().items()
            if key not in MAY_CHANGE and value not in ([], {})  # as if it did not exist, as in older runs
        }
        return {
            **{f"trainer.{key}": value for key, value in trainer.items()},
            **{f"data.{key}": value for key, value in self.source_settings.items()},
            "number of processes": self.ranks.world_size,
        }

    def _resume(self) -> None:
        """Continue from the newest checkpoint of the run directory, if there is one."""
        found = list_checkpoints(self.run_dir)
        if not found:
            return
        require_same_parts(found[-1], model=self.model, processor=self.processor)
        tensors, state = load_training(found[-1])
        dropped = unpack_training(
            tensors,
            self.model,
            self.optimizers,
            source=found[-1],
            may_drop=self.settings.resume == "override",
        )
        if dropped:
            self._say(
                f"{len(dropped)} moments of another optimizer are dropped: {', '.join(dropped[:3])} ..."
            )
        self.average.load(load_averaged(found[-1]), num_updates=state["average_updates"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.sampler_state, self.metrics = state["sampler"], state["metrics"]
        self.validated_step = state["validated_step"]
        self.best.load(state)
        self._say(f"resuming from {found[-1]}")

    def _say(self, text: str) -> None:
        """Tell the person at the terminal, from the main process only."""
        if self.ranks.is_main:
            tqdm.write(text, file=sys.stderr)
