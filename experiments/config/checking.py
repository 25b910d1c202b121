"""The keys of the check of recordings; apart from schema.py, as they need packages that others do not."""

from dataclasses import dataclass, field
from typing import Annotated

from experiments.config.found import DATASET
from experiments.config.schema import Program
from vla.data.quality.examine import ExamineSettings
from vla.data.quality.mend import MendSettings
from vla.registry import Choices, FilePath
from vla.spec import ACTION_CONVENTIONS, GRIPPER_SIGNS


@dataclass(kw_only=True)
class CheckRun(Program):
    """`python -m experiments.check`."""

    dataset: Annotated[str, DATASET, "directory of the recording; it is only read"]
    robot_file: Annotated[
        str | None, FilePath(), "what its numbers mean, if it does not state it; null drafts one"
    ] = None
    action_convention: Annotated[
        str | None, Choices(*ACTION_CONVENTIONS), "of a dataset that stores no robot spec; null: guess"
    ] = None
    gripper_sign: Annotated[
        str | None, Choices(*GRIPPER_SIGNS), "of a dataset that stores no robot spec; null: guess"
    ] = None
    examine: Annotated[ExamineSettings, "how closely to look"] = field(default_factory=ExamineSettings)
    mend: Annotated[str | None, FilePath(), "a new directory for a mended copy; null: none"] = None
    mending: Annotated[MendSettings, "what the mended copy leaves out"] = field(default_factory=MendSettings)
