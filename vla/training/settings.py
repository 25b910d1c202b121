"""Settings and result of a training run; plain data, checked at once."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from vla.errors import VLAError

MAY_CHANGE = (
    frozenset(  # from one part of a run to the next: how it is computed, shown and kept, and for how long
        {
            "num_samples",
            "max_minutes",
            "precision",
            "compile",
            "device",
            "num_threads",
            "log_every_steps",
            "validate_every_steps",
            "validation_batches",
            "save_every_minutes",
            "keep_checkpoints",
            "resume",
        }
    )
)
FINISHED, OUT_OF_TIME, INTERRUPTED = "finished", "out of time", "interrupted"


RESUMES = ("same", "override")


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint was kept."""


class BudgetSpent(VLAError):
    """A resumed run has nothing left to train with."""


def out_of_time_message(num_samples: int, *, budget: int) -> str:
    """Return the message for a run whose time ended after `num_samples` of its `budget` of samples."""
    return (
        f"trainer.max_minutes ended this training after {num_samples:,} of {budget:,} samples. The success "
        "that the recipe promises does not hold for it. To go on, run the same command with a larger "
        "trainer.max_minutes, or with trainer.max_minutes=null"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended."""

    checkpoint: Path
    step: int
    num_samples: int  # that were trained on, over all resumptions
    elapsed_s: float  # seconds of training, over all resumptions
    samples_per_s: float  # median over the logged intervals of this process
    phase_ms: dict[str, float]  # of a step, by phase: median over the logged intervals; host time on a GPU
    end: str  # FINISHED, OUT_OF_TIME or INTERRUPTED
    signal: int | None  # that interrupted it: SIGINT (Ctrl-C) or SIGTERM
    metrics: dict[str, float]  # of the last validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Every setting of a run.

    `num_samples` is the budget: the run ends with the step that reaches it, and the learning rate follows it.
    `max_minutes`, if given, ends a run before that; the learning rate does not follow it, so that such a run
    is not as good, and continues where it stopped once it is given more time. `balance_tasks` gives every
    task an equal share of the samples, however long its demonstrations; `accumulate` the number of batches
    summed into one optimizer step; `batch_size` that of one process. `num_threads` None chooses between one
    and all by timing steps. `keep_checkpoints` -1 keeps all. `resume` "same" refuses to continue a run with
    other settings than it began with, "override" continues with the new ones.
    """

    num_samples: int
    batch_size: int
    learning_rate: float
    warmup_share: float = 0.03
    optimizer: str = "muon"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    accumulate: int = 1
    balance_tasks: bool = False
    max_minutes: float | None = None
    precision: str = "auto"
    compile: str = "auto"
    device: str = "auto"
    log_every_steps: int = 20
    validate_every_steps: int = 500
    validation_batches: int = 4
    save_every_minutes: float = 3.0
    keep_checkpoints: int = 2
    num_threads: int | None = None
    resume: str = "same"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            *("num_samples", "batch_size", "accumulate"),
            *("log_every_steps", "validate_every_steps", "validation_batches"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must be at least 1")
        if self.keep_checkpoints < 1 and self.keep_checkpoints != -1:
            raise ValueError(
                f"trainer.keep_checkpoints is {self.keep_checkpoints}; give at least 1, or -1 to keep all"
            )
        if self.resume not in RESUMES:
            raise ValueError(f"trainer.resume is {self.resume!r}; it must be one of {RESUMES}")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must be positive")
        per_step = self.batch_size * self.accumulate
        if self.num_samples < per_step:
            raise ValueError(
                f"trainer.num_samples is {self.num_samples}, less than the {per_step} of one step "
                "(trainer.batch_size x trainer.accumulate); raise the one or lower the other"
            )
        if self.max_minutes is not None and not (0 < self.max_minutes < math.inf):
            raise ValueError(
                f"trainer.max_minutes is {self.max_minutes}; give a positive number, or null for no cap"
            )
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(
                f"trainer.num_threads is {self.num_threads}; give at least 1, or null to have it chosen"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON-ready data."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.loads(json.dumps(values))
