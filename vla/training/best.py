"""Which checkpoint of a run is kept as the best one, and the success that a run may choose it by.

Rolling a policy out is not training's affair: whoever starts a run hands over a `RollOut`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from vla.model.vla import VLAModel
from vla.training.settings import TrainerSettings
from vla.training.validation import HELD_OUT_LOSS

LOSS, SUCCESS = "loss", "success"  # what the best one is chosen by
DEVELOPMENT_SUCCESS = "development/success"  # mean over tasks of the success rate, in [0, 1]
SUCCESS_LOW, SUCCESS_HIGH = f"{DEVELOPMENT_SUCCESS}_low", f"{DEVELOPMENT_SUCCESS}_high"  # of its interval


@runtime_checkable  # so that tests can check annotations
class RollOut(Protocol):
    """Measures the success of a model while it is trained."""

    def __call__(self, model: VLAModel, *, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Return named numbers, `DEVELOPMENT_SUCCESS` and the ends of its interval among them.

        Args:
            model: with the averaged weights; it is used as it is and not kept.
            should_stop: looked at between episodes; once it is true, nothing is measured.

        Returns:
            The numbers; None if it had to stop.
        """
        ...


class BestSoFar:
    """When success is to be measured, and which step of a run has the best number so far.

    Args:
        settings: of the run.
        roll_out: measures success; None if the settings ask for none.
        num_steps: of the whole run.
        samples_per_step: of all processes together.
    """

    def __init__(
        self, settings: TrainerSettings, *, roll_out: RollOut | None, num_steps: int, samples_per_step: int
    ) -> None:
        assert roll_out is not None or settings.rollout_every_samples is None, "nothing measures success"
        self._by, self._keeps_any = settings.best_by, settings.keep_best
        self._every = settings.rollout_every_samples
        self.roll_out, self._num_steps, self._samples_per_step = roll_out, num_steps, samples_per_step
        self._best: dict[str, Any] | None = None  # step, `by`, and the number that it names
        self.rolled_out_step: int | None = None  # at which success was last measured

    def is_due(self, step: int) -> bool:
        """Return whether success is to be measured after this step; after the last one it is anyway."""
        if self._every is None or step >= self._num_steps:
            return False
        samples, before = step * self._samples_per_step, (step - 1) * self._samples_per_step
        return samples // self._every > before // self._every

    def lacks_last(self, step: int) -> bool:
        """Return whether the last step is done and its success still to be measured."""
        is_measured = self._every is None or self.rolled_out_step == step
        return step >= self._num_steps and not is_measured

    def take(self, numbers: Mapping[str, float], *, step: int) -> bool:
        """Return whether these numbers make the checkpoint of this step the best one so far.

        Of equally successful ones the newer counts: few episodes give the same rate again and again, and it
        was trained for longer.
        """
        name, by = {LOSS: HELD_OUT_LOSS, SUCCESS: DEVELOPMENT_SUCCESS}[self._by], self._by
        if not self._keeps_any or name not in numbers:
            return False
        value, old = numbers[name], None if self._best is None else self._best[by]
        if old is not None and (value >= old if by == LOSS else value < old):
            return False
        self._best = {"step": step, "by": by, by: value}
        return True

    def to_json(self) -> dict[str, Any]:
        """Return what `load` takes."""
        return {"rolled_out_step": self.rolled_out_step, "best": self._best}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `to_json` returned; what was best by another number is forgotten."""
        self.rolled_out_step, best = state.get("rolled_out_step"), state.get("best")
        if best is not None and best.get("by", LOSS) == self._by:
            self._best = dict(best)
