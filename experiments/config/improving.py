"""The configuration of `experiments.improve`."""

from dataclasses import dataclass, field
from typing import Annotated

from experiments.config.schema import TrainRun
from experiments.corrections import CorrectionSettings
from policies.pretrained_names import PolicyPath
from vla.registry import Range


@dataclass(kw_only=True)
class ImproveRun(TrainRun):
    """`python -m experiments.improve`: a training run, whose settings are those of the run at `path`."""

    path: Annotated[str, PolicyPath(), "of the policy: a training run, or one of its checkpoints"]
    rounds: Annotated[int, Range(1, 100), "of acting, correcting and training; may be raised later"] = 1
    samples_per_round: Annotated[int, Range(1, 10**12), "that it is trained on, in place of num_samples"] = (
        50_000
    )
    corrections: Annotated[CorrectionSettings, "how its rollouts become demonstrations"] = field(
        default_factory=CorrectionSettings
    )
