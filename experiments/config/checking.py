"""The keys of the check; apart from schema.py, as they need packages that others do not."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from experiments.config.found import DATASET
from experiments.config.robot import ROBOTS, RobotSetup
from experiments.config.schema import FirstSeed, SceneProgram
from vla.data.quality.examine import ExamineSettings
from vla.data.quality.mend import MendSettings
from vla.processing.registry import CODECS
from vla.registry import Choices, FilePath, Range
from vla.spec import ACTION_CONVENTIONS, GRIPPER_SIGNS


@dataclass(kw_only=True)
class CheckRun(SceneProgram):
    """`python -m experiments.check`: of a dataset, an environment, a robot (in a scene) or a codec."""

    dataset: Annotated[
        str | None, DATASET, "directory of the recording, which is only read; with codec, its chunks"
    ] = None
    robot: Annotated[RobotSetup | None, ROBOTS, "a robot; simulated ones alone are commanded"] = None
    may_move: Annotated[
        bool, "whether a robot that is not simulated may move a little; a person stands at the emergency stop"
    ] = False
    codec: Annotated[dict[str, Any], CODECS, "an action codec"] = field(default_factory=dict)
    num_seeds: Annotated[int, Range(2, 1000), "episodes of the expert, for each task of an environment"] = 3
    first_seed: FirstSeed = 0
    action_horizon: Annotated[
        int, Range(1, 1024), "control periods in the chunks that a codec is tried on"
    ] = 8
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
