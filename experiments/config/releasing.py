"""The configuration of `experiments.release` and `experiments.demo`."""

from dataclasses import dataclass, field
from typing import Annotated

from envs.evaluation.results import GREATEST_SEED
from experiments.config.found import CHECKPOINT
from experiments.config.schema import ExecuteHorizon, Program, TaskProgram
from policies.pretrained_names import FOLDER
from vla.registry import FilePath, Range


@dataclass(kw_only=True)
class ReleaseRun(Program):
    """`python -m experiments.release`."""

    checkpoint: Annotated[str, CHECKPOINT, "a checkpoint, or a training run"]
    name: Annotated[str, "of the pretrained policy: small letters, digits and _"]
    evaluations: Annotated[list[str], FilePath(), "directories of experiments.evaluate, for the card"] = (
        field(default_factory=list)
    )
    limits: Annotated[list[str], "sentences on what the policy cannot do, for the card"] = field(
        default_factory=list
    )
    folder: Annotated[str, FilePath(), "where pretrained policies lie"] = str(FOLDER)
    replace: Annotated[bool, "whether an earlier one of that name gives way"] = False


@dataclass(kw_only=True)
class DemoRun(TaskProgram):
    """`python -m experiments.demo`."""

    path: Annotated[str, CHECKPOINT, "of the policy: pretrained/<name>, a checkpoint, or a training run"]
    sentences: Annotated[list[str], "that the policy obeys in turn; empty: five that the scenes suggest"] = (
        field(default_factory=list)
    )
    seed: Annotated[int, Range(0, GREATEST_SEED), "of the first scene that is tried"]
    execute_horizon: ExecuteHorizon = 4
    num_workers: Annotated[int, Range(1, 256), "processes with environments"] = 2
