"""What a training run can be told, and how it ends; plain data, checked at once.

Knows nothing of how training is done.
"""

import dataclasses
from pathlib import Path

from vla.data.augment import ImageAugmentation


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint was kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended."""

    checkpoint: Path
    step: int
    elapsed_s: float  # seconds of training, over all resumptions
    samples_per_s: float  # median over the logged intervals of this process
    finished: bool  # False when it was interrupted by Ctrl-C or SIGTERM
    metrics: dict[str, float]  # of the last validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Every setting of a run.

    `time_budget_minutes`, if given, ends the run after that much training time even if `num_steps` are not
    done, and the learning rate follows whichever of the two is further along; such a run does not repeat bit
    for bit. `smoothing_bins` is the width of the Gaussian over neighbouring action bins in the targets;
    `future_weight` the weight of the loss on later states, for models that predict them; `balance_tasks`
    gives every task an equal share of the samples, however long its demonstrations;
    `accumulate` the number of batches summed into one optimiser step; `batch_size` that of one process.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_share: float = 0.03
    optimizer: str = "muon"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    accumulate: int = 1
    smoothing_bins: float = 1.0
    future_weight: float = 3.0
    balance_tasks: bool = False
    time_budget_minutes: float | None = None
    precision: str = "auto"
    compile: str = "auto"
    device: str = "auto"
    augmentation: ImageAugmentation | None = None
    log_every_steps: int = 20
    validate_every_steps: int = 500
    validation_batches: int = 4
    save_every_minutes: float = 3.0
    keep_checkpoints: int = 2
    num_threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "accumulate", "log_every_steps", "validate_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must be positive")
        if self.time_budget_minutes is not None and not self.time_budget_minutes > 0:
            raise ValueError(
                f"trainer.time_budget_minutes is {self.time_budget_minutes}; give minutes or null"
            )
