"""Every key that a program accepts. What a key is, its default and its range stand where it is declared.

Most keys are settings of a class that does the work, declared in its constructor; those of a program alone
are declared here. Values live in `conf/`. A key that nobody declares is an error, in a file as on the command
line.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from envs.disturbance import Disturbance
from envs.episode_request import INSTRUCTION_MODES
from envs.evaluation.results import GREATEST_SEED, EvaluationSettings
from envs.registry import ENVIRONMENTS, expand_tasks
from experiments.config.declared import schema_node
from experiments.config.found import (
    BUNDLE,
    CHECKPOINT,
    DATASET,
    EVALUATION,
    POLICY,
    RUN,
    Offered,
    no_value,
    require_there,
    shipped_mappings,
)
from experiments.config.plugins import load_plugins, offer_parts
from experiments.config.robot import ROBOTS, RobotSetup
from experiments.config.run_record import register_resolvers
from policies.runtime.chunking import SCHEDULES
from policies.runtime.observation_buffer import StreamLimits
from policies.runtime.watchdog import WatchdogLimits
from vla.data.registry import SOURCES
from vla.errors import did_you_mean
from vla.model.registry import AUXILIARIES, BACKBONES, HEADS
from vla.processing.registry import CODECS, INPUTS
from vla.registry import (
    REQUIRED,
    Choices,
    FilePath,
    Range,
    Registry,
    SettingError,
    check_settings,
    settings_of,
)
from vla.training.settings import TrainerSettings

# Declarations that several programs share.
InstructionMode = Annotated[str, Choices(*INSTRUCTION_MODES), "which instruction the policy is given"]
FirstSeed = Annotated[int, Range(0, GREATEST_SEED), "of the first episode; the next have the next seeds"]
ExecuteHorizon = Annotated[int, Range(1, 1024), "control periods from one inference to the next, at least"]
NumThreads = Annotated[int, Range(1, 256), "of one inference"]
HeadChanges = Annotated[dict[str, Any], "settings of a checkpoint's head that no weight depends on"]
Results = Annotated[
    str | None, FilePath(), "where to write <results>.json and <results>.md as well as in out_dir"
]
RobotFilePath = Annotated[
    str | None, FilePath(), "what the numbers of the recording mean; null: what it says of itself"
]
Metric = Annotated[
    str | None,
    "what the program returns to a sweeper: success/<instruction mode>, or validation/action_loss, ...",
]
BACKENDS_TIMED = ("torch", "torch.compile", "onnxruntime", "openvino")
FIRST_REPORTED_SEED = 900_000  # conf/evaluation/reporting.yaml
Duration = Range(0, 10**6, open_low=True)


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """How demonstrations are recorded."""

    episodes_per_task: Annotated[int, Range(1, 10**5), "successful ones"] = 50
    disturbance: Annotated[Disturbance, "of the expert"]
    storage: Annotated[str, Choices("video", "image"), "exact frames, or smaller ones"] = "image"
    first_seed: FirstSeed = 0
    extra_steps: Annotated[
        int, Range(0, 10**4), "control periods recorded after success: what to do right at the goal"
    ] = 0
    recording_same_color_share: Annotated[
        float | None, Range(0, 1), "same_color_share of env while recording; null: as in env"
    ] = None
    pixel_format: Annotated[
        str,
        Choices("yuv420p", "yuv444p"),
        "of video; as in LeRobot; yuv444p keeps the colors of small things sharp",
    ] = "yuv420p"
    geometry: Annotated[bool, "whether depth and the pixels of hand, object and goal are recorded"] = False
    num_workers: Annotated[int, Range(1, 256), "recording processes"] = 2


@dataclass(frozen=True, kw_only=True)
class WandbSettings:
    """What a run is called in Weights & Biases; what is null is taken from wandb's own variables."""

    project: Annotated[str | None, "null: that of WANDB_PROJECT, else vla-stack"] = None
    entity: Annotated[str | None, "user or team; null: that of WANDB_ENTITY, else that of the login"] = None
    name: Annotated[str | None, "of the run; null: that of WANDB_NAME, else of out_dir"] = None
    group: Annotated[str | None, "null: that of WANDB_RUN_GROUP, else of the sweep that it belongs to"] = None
    tags: Annotated[list[str], "empty: those of WANDB_TAGS"] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Parts of `vla.model.vla.VLAModel`, each chosen by `kind`."""

    backbone: Annotated[dict[str, Any], BACKBONES, "what all heads share"]
    head: Annotated[dict[str, Any], HEADS, "predicts actions"]
    auxiliaries: Annotated[
        dict[str, Annotated[dict[str, Any] | None, AUXILIARIES]],
        "further training targets, by names of your choice; null leaves one out",
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ProcessorConfig:
    """Arguments of `Processor.fit` that are neither data nor action codec."""

    action_horizon: Annotated[int, Range(1, 1024), "control periods in a predicted chunk"]
    max_committed: Annotated[
        int, Range(0, 1024), "most actions committed before a chunk is chosen; 0 for none"
    ]
    frame_offsets: Annotated[
        list[int], Range(0, 1000), "frames that a policy looks at, in control periods before now"
    ]
    inputs: Annotated[
        dict[str, Annotated[dict[str, Any], INPUTS]], "input encoders, by names of your choice"
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSettings:
    """Which episodes measure success while a policy is trained, see `trainer.rollout_every_samples`.

    Raises:
        SettingError: they reach the seeds for reporting, on which no checkpoint is chosen.
    """

    episodes_per_task: Annotated[int, Range(1, 10**5), "episodes of every task"] = 5
    first_seed: Annotated[int, Range(0, GREATEST_SEED), "of each task; below the seeds for reporting"] = (
        500000
    )

    def __post_init__(self) -> None:
        last = self.first_seed + self.episodes_per_task - 1
        if last >= FIRST_REPORTED_SEED:
            raise SettingError(
                f"rollouts.first_seed={self.first_seed} with {self.episodes_per_task} episodes per task "
                f"reaches seed {last}; seeds from {FIRST_REPORTED_SEED} on are for reporting, and no "
                "checkpoint is chosen on them. Give rollouts.first_seed=500000, say"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRunSettings(EvaluationSettings):
    """How a policy is measured: each instruction mode is an evaluation."""

    instruction_modes: Annotated[list[InstructionMode], "each is an evaluation"]
    device: Annotated[str, Choices("auto", "cpu", "cuda"), "for checkpoints; a bundle runs on the CPU"] = (
        "auto"
    )


@dataclass(kw_only=True)
class Program:
    """What every program accepts."""

    out_dir: Annotated[str, FilePath(), "where it writes; the same one continues what was interrupted"]
    plugins: Annotated[list[str], "modules of yours that add parts, by name or path of a file"] = field(
        default_factory=list
    )
    from_run: Annotated[
        str | None, FilePath(), "directory of an earlier run, with whose settings this one starts"
    ] = None


@dataclass(kw_only=True)
class TaskProgram(Program):
    """A program that makes environments."""

    env: Annotated[dict[str, Any], ENVIRONMENTS, "the environment, the task apart"]
    tasks: Annotated[list[str], "of the environment; empty: all"] = field(default_factory=list)


@dataclass(kw_only=True)
class SceneProgram(Program):
    """A program that may make an environment."""

    env: Annotated[dict[str, Any], ENVIRONMENTS, "the scene a robot stands in; empty for none"] = field(
        default_factory=dict
    )
    tasks: Annotated[list[str], "of the environment; empty: all"] = field(default_factory=list)


@dataclass(kw_only=True)
class CollectRun(TaskProgram):
    """`python -m experiments.collect`."""

    dataset: Annotated[str, FilePath(), "directory of the recording"]
    collect: Annotated[CollectSettings, "how demonstrations are recorded"]


@dataclass(kw_only=True)
class ConvertRun(Program):
    """`python -m experiments.convert`."""

    source: Annotated[str, FilePath(), "a file in HDF5, or a directory of such"]
    dataset: Annotated[str, FilePath(), "directory to write; continued if it is there"]
    mapping: Annotated[
        str, Offered(shipped_mappings), "of keys: a YAML file, or the name of one in conf/convert"
    ]
    storage: Annotated[str, Choices("video", "image"), "exact frames, or smaller ones"] = "video"
    instruction: Annotated[str | None, "of every episode; null: as the mapping says"] = None
    control_hz: Annotated[float | None, Range(0.1, 1000), "frames per second; null: as the mapping says"] = (
        None
    )


@dataclass(kw_only=True)
class TrainRun(CollectRun):
    """`python -m experiments.train`."""

    record: Annotated[bool, "whether to record first what the dataset lacks"] = False
    robot_file: RobotFilePath = None
    data: Annotated[dict[str, Any], SOURCES, "a training source"]
    model: Annotated[ModelConfig, "parts of the model"]
    codec: Annotated[dict[str, Any], CODECS, "of actions"]
    processor: Annotated[ProcessorConfig, "what a policy looks at and predicts"]
    trainer: Annotated[TrainerSettings, "how the model is trained"]
    init_from: Annotated[
        str | None,
        CHECKPOINT,
        "a checkpoint or a run whose weights training begins with, as far as they fit; null: random ones",
    ] = None
    init_statistics: Annotated[
        str,
        Choices("data", "checkpoint"),
        "scales state and action, and tokens of text: fitted anew, or init_from's",
    ] = "data"
    evaluation: Annotated[EvaluationRunSettings, "how the trained policy is measured"]
    rollouts: Annotated[RolloutSettings, "episodes played meanwhile, see trainer.rollout_every_samples"] = (
        field(default_factory=RolloutSettings)
    )
    logger: Annotated[str, Choices("jsonl", "wandb"), "JSON lines are written always"] = "jsonl"
    wandb: Annotated[WandbSettings, "how logger=wandb names the run"] = field(default_factory=WandbSettings)
    metric: Metric = None
    seed: Annotated[int, Range(0, GREATEST_SEED), "of the model's weights and of the order of samples"] = 0


@dataclass(kw_only=True)
class EvaluateRun(TaskProgram):
    """`python -m experiments.evaluate`."""

    policy: Annotated[str, Choices("auto", "checkpoint", "bundle"), "what lies at path; auto looks"]
    path: Annotated[str, POLICY, "of a checkpoint, of a training run, or of a bundle"]
    metric: Metric = None
    head: HeadChanges = field(default_factory=dict)
    dataset: Annotated[
        str | None,
        DATASET,
        "a recording: compare actions with its episodes instead of rolling out in simulation",
    ] = None
    cache_dir: Annotated[str, FilePath(), "where decoded frames of that recording are kept"] = "outputs/cache"
    evaluation: Annotated[EvaluationRunSettings, "how the policy is measured"]


@dataclass(kw_only=True)
class ExportRun(Program):
    """`python -m experiments.export`."""

    checkpoint: Annotated[str, CHECKPOINT, "a checkpoint, or a training run"]
    bundle: Annotated[str, FilePath(), "directory to write"]
    head: HeadChanges = field(default_factory=dict)
    replace: Annotated[bool, "whether an existing bundle gives way"] = False


@dataclass(kw_only=True)
class CompareRun(Program):
    """`python -m experiments.compare`."""

    a: Annotated[str, EVALUATION, "directory of an evaluation, a training, a quickstart or a sweep"]
    b: Annotated[
        str | None,
        EVALUATION,
        "another one to compare it with; null: the first evaluation of a with its others",
    ] = None
    instruction_mode: InstructionMode = "original"


@dataclass(kw_only=True)
class SweepTableRun(Program):
    """`python -m experiments.sweep_table`."""

    runs: Annotated[list[str], RUN, "directories of runs, or of sweeps; the first run is the one to beat"]
    instruction_mode: InstructionMode = "original"


@dataclass(kw_only=True)
class QuickstartRun(TrainRun):
    """`python -m experiments.quickstart`: all of `TrainRun`, then export and evaluation of the bundle."""

    bundle_evaluation: Annotated[EvaluationRunSettings, "how the bundle is measured"]
    fresh: Annotated[bool, "start over instead of resuming finished stages"] = False


@dataclass(kw_only=True)
class BenchmarkRun(TrainRun):
    """`python -m experiments.benchmark`: what a training run has, to be timed instead."""

    part: Annotated[
        str, Choices("simulation", "data", "training", "threads", "latency", "serving"), "what to time"
    ]
    repeats: Annotated[int, Range(1, 10**4), "of every short measurement"] = 20
    backends: Annotated[list[Annotated[str, Choices(*BACKENDS_TIMED)]], "that latency is measured in"] = (
        field(default_factory=lambda: list(BACKENDS_TIMED))
    )
    heads: Annotated[list[Annotated[str, Choices(*HEADS.names())]], "whose latency is measured"] = field(
        default_factory=lambda: ["parallel", "autoregressive"]
    )
    first_seed: FirstSeed = 600000
    peer_python: Annotated[str | None, "an interpreter that has lerobot, to time it on the same work"] = None


@dataclass(kw_only=True)
class RobotProgram(Program):
    """A program that drives a robot."""

    robot: Annotated[RobotSetup, ROBOTS, "the robot"]
    execute_horizon: ExecuteHorizon = 4
    num_threads: NumThreads = 1
    watchdog: Annotated[WatchdogLimits, "how long each problem may last"] = field(
        default_factory=WatchdogLimits
    )
    stream: Annotated[StreamLimits, "when observations count as broken"] = field(default_factory=StreamLimits)


@dataclass(kw_only=True)
class ControlRun(RobotProgram, SceneProgram):
    """`python -m experiments.control`."""

    bundle: Annotated[str | None, BUNDLE, "either a bundle, run in this process,"] = None
    server: Annotated[str | None, "or the address of a policy server: ws://host:port"] = None
    token_env: Annotated[str, "environment variable that holds the server's token, if it wants one"] = (
        "VLA_SERVE_TOKEN"
    )
    server_wait_s: Annotated[float, Range(0, 86400), "for a server that is not there yet, at the start"] = (
        30.0
    )
    task: Annotated[str | None, "the one to do; null: the first of tasks"] = None
    seed: Annotated[int, Range(0, GREATEST_SEED), "of the scene"]
    instruction: Annotated[str | None, "null: the task's own"] = None
    schedule: Annotated[str, Choices(*SCHEDULES), "when to infer, and what becomes of chunks"] = "async"
    delta_to_absolute: Annotated[
        bool, "whether chunks of changes count from the commanded position at capture"
    ] = True
    inference_delay_s: Annotated[float, Range(0, 60), "added to every inference"] = 0.0
    max_seconds: Annotated[float, Duration, "after which the task counts as over"] = 60.0
    replay: Annotated[
        str | None, FilePath(), "a recording whose commands are sent again, instead of asking a policy"
    ] = None
    dry_run: Annotated[bool, "do everything but send: the check before a first run on an arm"] = False
    dry_run_s: Annotated[float, Range(1, 600), "how long that observes and infers"] = 6.0


@dataclass(kw_only=True)
class DelayTableRun(RobotProgram, TaskProgram):
    """`python -m experiments.delay_table`."""

    bundle: Annotated[str, BUNDLE, "the policy"]
    task: Annotated[str | None, "the one to do; null: the first of tasks"] = None
    delays_ms: Annotated[list[float], Range(0, 60000), "of an inference"]
    schedules: Annotated[list[Annotated[str, Choices(*SCHEDULES)]], "to compare"]
    episodes: Annotated[int, Range(1, 10**5), "for each delay and schedule"]
    first_seed: FirstSeed
    delta_to_absolute: Annotated[
        bool, "whether chunks of changes count from the commanded position at capture"
    ] = True
    num_workers: Annotated[
        int, Range(1, 256), "processes, each with an environment and a policy of its own"
    ] = 2
    results: Results = None


@dataclass(kw_only=True)
class FrankaTrialsRun(RobotProgram, TaskProgram):
    """`python -m experiments.franka_trials`."""

    bundle: Annotated[str | None, BUNDLE, "null: the scripted expert acts in place of a policy"] = None
    trials: Annotated[int, Range(1, 10**4), "without faults"]
    faults: Annotated[int, Range(0, 10**4), "of each kind: killed, stopped, slowed"]
    first_seed: FirstSeed
    time: Annotated[
        str, Choices("wall", "robot"), "robot: the arm's clock, where a simulator of it is too slow"
    ] = "wall"
    schedule: Annotated[str, Choices(*SCHEDULES), "when to infer, and what becomes of chunks"] = "async"
    execute_horizon: ExecuteHorizon = 2
    max_seconds: Annotated[float, Duration, "of a trial"] = 6.0
    results: Results = None


ROOTS: Registry[Program] = Registry(
    "program",
    {
        "collect": f"{__name__}:CollectRun",
        "check": "experiments.config.checking:CheckRun",
        "convert": f"{__name__}:ConvertRun",
        "train": f"{__name__}:TrainRun",
        "evaluate": f"{__name__}:EvaluateRun",
        "export": f"{__name__}:ExportRun",
        "release": "experiments.config.releasing:ReleaseRun",
        "demo": "experiments.config.releasing:DemoRun",
        "compare": f"{__name__}:CompareRun",
        "sweep_table": f"{__name__}:SweepTableRun",
        "serve": "experiments.config.serving:ServeRun",
        "quickstart": f"{__name__}:QuickstartRun",
        "improve": "experiments.config.improving:ImproveRun",
        "benchmark": f"{__name__}:BenchmarkRun",
        "control": f"{__name__}:ControlRun",
        "delay_table": f"{__name__}:DelayTableRun",
        "franka_trials": f"{__name__}:FrankaTrialsRun",
    },
)

Run = TypeVar("Run", bound=Program)


def register(*programs: str) -> None:
    """Make the schemas of programs known to Hydra as `collect_schema` and so on; of all if none is named.

    What configurations may call is made known as well.
    """
    offer_parts()
    register_resolvers()
    for name in programs or ROOTS.names():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema_node(ROOTS.get(name)))


def typed(config: DictConfig, program: type[Run]) -> Run:
    """Return a composed configuration as what its program declares: checked, and with its parts built.

    Raises:
        SettingError: a key is unknown, or a value is not allowed; one line names the key.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise SettingError("\n".join(no_value(key, program) for key in missing))
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    load_plugins(values["plugins"])
    return checked(values, program)


def checked(values: dict[str, Any], program: type[Run]) -> Run:
    """Return plain data as what its program declares; see `typed`.

    Raises:
        SettingError: a key is unknown or missing, or a value is not allowed; one line names the key.
    """
    optional = {
        setting.name
        for setting in settings_of(program)
        if isinstance(setting.constraint, Registry) and setting.default is not REQUIRED
    }
    values = {key: value for key, value in values.items() if value or key not in optional}  # not chosen
    run = program(**check_settings(program, values))
    if isinstance(run, TaskProgram | SceneProgram) and run.env:
        run = dataclasses.replace(run, tasks=_known_tasks(run.env["family"], run.tasks))
        if isinstance(run, ControlRun | DelayTableRun) and run.task is not None and run.task not in run.tasks:
            raise SettingError(f"task is {run.task!r}; {did_you_mean(run.task, run.tasks)}")
    return run


def require_inputs(run: Program) -> None:
    """Check that what a program reads is named and there, before it makes anything.

    Raises:
        SettingError: it is not; the message names what there is.
    """
    require_there(run)
    if isinstance(run, ControlRun) and run.bundle is None and run.server is None and run.replay is None:
        raise SettingError(
            f"neither bundle nor server has a value; give server=ws://host:port, or bundle=<a bundle>: "
            f"{BUNDLE.offer()}"
        )


def _known_tasks(family: str, given: list[str]) -> list[str]:
    """Return the tasks of a family that are named; see `expand_tasks`.

    Raises:
        SettingError: one is unknown, or named twice.
    """
    tasks, known = expand_tasks(family, given), ENVIRONMENTS.get(family).TASKS
    for task in tasks:
        if task not in known:
            raise SettingError(f"tasks names {task!r}; {did_you_mean(task, known)}")
        if tasks.count(task) > 1:
            raise SettingError(f"tasks names {task!r} twice; name each once")
    return tasks
