"""Settings and result of a training run: plain data. `TrainerSettings` is where each setting is declared."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from vla.errors import VLAError
from vla.registry import Choices, Range, SettingError, check_attributes

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
            "keep_best",
            "best_by",
            "rollout_every_samples",
            "resume",
        }
    )
)
FINISHED, OUT_OF_TIME, INTERRUPTED = "finished", "out of time", "interrupted"


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint was kept."""


class BudgetSpent(VLAError):
    """A resumed run has nothing left to train with."""


def out_of_time_message(num_samples: int, *, budget: int) -> str:
    """Return the message for a run whose time ended after `num_samples` of its `budget` of samples."""
    return (
        f"trainer.max_minutes ended this training after {num_samples:,} of {budget:,} samples. The success "
        "that the recipe documents does not hold for it. To go on, run the same command with a larger "
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
    signal: int | None  # that interrupted it: SIGINT (Ctrl-C), SIGTERM or SIGHUP
    metrics: dict[str, float]  # of the last validation; empty where nothing is held out


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Every setting of a run, the declaration of the group `trainer` of a configuration.

    Raises:
        SettingError: a value is not allowed, or `num_samples` is less than one step takes.
    """

    num_samples: Annotated[
        int,
        Range(1, 10**12),
        "the budget: the run ends with the step that reaches it; the learning rate follows it",
    ]
    batch_size: Annotated[int, Range(1, 65536), "samples in a batch of one process"]
    learning_rate: Annotated[float, Range(0, 100, open_low=True), "at its peak"]
    warmup_share: Annotated[float, Range(0, 1), "of the steps, in which the learning rate rises"] = 0.03
    optimizer: Annotated[
        str, Choices("muon", "adamw"), "muon is for the trunk's matrices; the rest has adamw"
    ] = "muon"
    weight_decay: Annotated[float, Range(0, 100), "of the optimizer"] = 0.05
    betas: Annotated[tuple[float, float], Range(0, 1, open_high=True), "of adamw"] = (0.9, 0.98)
    freeze: Annotated[
        tuple[str, ...], "patterns of parameters that do not train, such as backbone.image_tokenizer.*"
    ] = ()
    learning_rate_scale: Annotated[
        dict[str, Annotated[float, Range(0, 1000, open_low=True)]],
        "times the learning rate, by such a pattern; of several that match, the last counts",
    ] = dataclasses.field(default_factory=dict)
    max_grad_norm: Annotated[
        float, Range(0, 10**9, open_low=True), "gradients are scaled down to it; 1e9: never"
    ] = 1.0
    ema_decay: Annotated[float, Range(0, 1, open_high=True), "of the averaged weights, a step"] = 0.998
    accumulate: Annotated[int, Range(1, 65536), "batches summed into one optimizer step"] = 1
    max_minutes: Annotated[
        float | None,
        Range(0, 10**6, open_low=True),
        "a cap that ends the run before its budget; the learning rate does not follow it",
    ] = None
    precision: Annotated[str, Choices("auto", "fp32", "bf16"), "auto: whichever is faster here"] = "auto"
    compile: Annotated[str, Choices("auto", "on", "off"), "auto: on a GPU"] = "auto"
    device: Annotated[str, Choices("auto", "cpu", "cuda"), "auto: a GPU if there is one"] = "auto"
    log_every_steps: Annotated[int, Range(1, 10**9), "steps from one line of the log to the next"] = 20
    validate_every_steps: Annotated[int, Range(1, 10**9), "steps from one validation to the next"] = 500
    validation_batches: Annotated[int, Range(1, 10**6), "batches of a validation"] = 4
    save_every_minutes: Annotated[float, Range(0, 10**6), "minutes from one checkpoint to the next"] = 3.0
    keep_checkpoints: Annotated[int, Range(-1, 10**6), "newest checkpoints that are kept; -1: all"] = 2
    keep_best: Annotated[bool, "whether the best one is kept as checkpoints/best too, see best_by"] = True
    best_by: Annotated[
        str,
        Choices("loss", "success"),
        "what makes it so: least held-out loss of actions, most success on development seeds",
    ] = "loss"
    rollout_every_samples: Annotated[
        int | None, Range(1, 10**12), "from one measurement of that success to the next; null: never"
    ] = None
    num_threads: Annotated[
        int | None, Range(1, 256), "of the CPU; null: one or all, whichever is faster at the moment"
    ] = None
    resume: Annotated[
        str,
        Choices("same", "override"),
        "same: other settings than the run began with are refused; override: they apply",
    ] = "same"
    seed: int = 0

    def __post_init__(self) -> None:
        check_attributes(self, where="trainer")
        if self.keep_checkpoints == 0:
            raise SettingError(
                "trainer.keep_checkpoints is 0; it must be an integer in [1, 1000000], or -1 to keep all"
            )
        if self.best_by == "success" and self.rollout_every_samples is None:
            raise SettingError(
                "trainer.best_by is 'success', but trainer.rollout_every_samples is null, so that no success "
                "is measured; give trainer.rollout_every_samples=30000, say"
            )
        per_step = self.batch_size * self.accumulate
        if self.num_samples < per_step:
            raise SettingError(
                f"trainer.num_samples is {self.num_samples}, less than the {per_step} of one step "
                "(trainer.batch_size x trainer.accumulate); raise the one or lower the other"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON-ready data."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.loads(json.dumps(values))
