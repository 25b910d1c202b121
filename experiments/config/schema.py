"""Every key that a program accepts, with its type and default: Hydra's structured configs.

A key that is not a field here is an error, in a file as on the command line. Values live in `conf/`; a
default here means that the files may leave the key out. This file knows nothing of what the values do.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf

from envs.registry import expand_tasks
from experiments.config import robot as schema_robot
from experiments.config.env import EnvConfig
from vla.model.registry import HEADS
from vla.processing.registry import CODECS

Schema = TypeVar("Schema")


class UnknownKey(HydraException):
    """A key was added that no program reads."""


@dataclass
class CollectConfig:
    """How demonstrations are recorded."""

    episodes_per_task: int = MISSING  # successful ones
    first_seed: int = 0
    noise_probability: float = MISSING  # share of the episodes in which the expert is disturbed
    noise_std: float = MISSING  # of the disturbance in each period, as a share of half the action range
    bump_probability: float = MISSING  # of a few periods' drift to begin in a period of such an episode
    extra_steps: int = 0  # control periods recorded after success: what to do right at the goal
    twin_share: float | None = None  # while recording, in place of the env's: more lessons in shapes
    storage: str = MISSING  # video | image
    pixel_format: str = "yuv420p"  # as in LeRobot; yuv444p keeps the colours of small things sharp
    num_workers: int = 2


@dataclass
class ModelConfig:
    """Parts of `vla.model.vla.VLAModel`, each chosen by `kind` among those of `vla.model.registry`."""

    backbone: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    auxiliaries: dict[str, Any] = field(default_factory=dict)  # by a name of your choice


@dataclass
class ProcessorConfig:
    """Arguments of `Processor.fit` that are neither data nor action codec."""

    action_horizon: int = MISSING  # control periods in a predicted chunk
    max_committed: int = MISSING  # most actions that may be committed before a chunk is predicted; 0 for none
    frame_offsets: list[int] = MISSING  # which frames a policy looks at, control periods before now
    inputs: dict[str, Any] = field(default_factory=dict)  # input encoders by name, each chosen by `kind`


@dataclass
class TrainerConfig:
    """`vla.training.settings.TrainerSettings`, the seed apart."""

    num_samples: int = MISSING  # the budget; the learning rate follows it
    batch_size: int = MISSING
    learning_rate: float = MISSING
    max_minutes: float | None = None  # a cap that ends the run before its budget; more time continues it
    optimizer: str = "muon"  # muon (for the trunk's matrices) | adamw
    warmup_share: float = 0.03
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    accumulate: int = 1
    balance_tasks: bool = False  # as many samples of each task, however long its demonstrations
    precision: str = "auto"  # auto | fp32 | bf16
    compile: str = "auto"  # auto (on a GPU) | on | off
    device: str = "auto"  # auto | cpu | cuda
    num_threads: int | None = None  # null: one or all, whichever is faster at the moment
    log_every_steps: int = 20
    validate_every_steps: int = 500
    validation_batches: int = 4
    save_every_minutes: float = 3.0
    keep_checkpoints: int = 2  # -1: all
    resume: str = "same"  # same: other settings than the run began with are refused | override: they apply


@dataclass
class EvaluationConfig:
    """How a policy is measured."""

    episodes_per_task: int = MISSING
    first_seed: int = MISSING  # episode k of a task has seed first_seed + k
    conditions: list[str] = MISSING  # right | swapped | blank
    runtime: str = "simulation"  # simulation | robot: delta conversion and safety filter on every action
    safety: bool = True  # whether the runtime "robot" has these two; false is for comparison
    execute_horizon: int = MISSING  # actions executed of a chunk before the policy looks again
    ensemble_decay: float | None = None  # mean of overlapping chunks, by ACT; null: the newest
    device: str = "auto"  # auto | cpu | cuda, for checkpoints; a bundle runs on the CPU
    num_workers: int = 2
    envs_per_worker: int = 4
    videos_per_task: int = 2


@dataclass
class CollectRun:
    """`python -m experiments.collect`."""

    out_dir: str = MISSING
    dataset: str = MISSING
    tasks: list[str] = MISSING
    env: EnvConfig = MISSING
    collect: CollectConfig = MISSING


@dataclass
class TrainRun:
    """`python -m experiments.train`."""

    out_dir: str = MISSING
    dataset: str = MISSING
    record: bool = False  # whether to record first what `dataset` lacks
    tasks: list[str] = MISSING
    env: EnvConfig = MISSING
    collect: CollectConfig = MISSING
    data: dict[str, Any] = field(default_factory=dict)  # a training source: `vla.data.registry`
    model: ModelConfig = field(default_factory=ModelConfig)
    codec: dict[str, Any] = field(
        default_factory=dict
    )  # of actions, chosen by `kind` among `vla.processing.registry`
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    trainer: TrainerConfig = MISSING
    evaluation: EvaluationConfig = MISSING
    logger: str = "jsonl"  # jsonl | wandb (JSON lines are written always)
    seed: int = 0


@dataclass
class EvaluateRun:
    """`python -m experiments.evaluate`."""

    out_dir: str = MISSING
    policy: str = MISSING  # checkpoint | bundle
    path: str = MISSING
    head: dict[str, Any] = field(default_factory=dict)  # of a checkpoint: settings that no weight depends on
    tasks: list[str] = MISSING
    env: EnvConfig = MISSING
    evaluation: EvaluationConfig = MISSING


@dataclass
class ExportRun:
    """`python -m experiments.export`."""

    out_dir: str = MISSING
    checkpoint: str = MISSING
    bundle: str = MISSING
    head: dict[str, Any] = field(default_factory=dict)  # settings that no weight depends on
    replace: bool = False  # whether an existing bundle gives way


@dataclass
class CompareRun:
    """`python -m experiments.compare`."""

    out_dir: str = MISSING
    a: str = MISSING
    b: str = MISSING
    condition: str = "right"


@dataclass
class SweepTableRun:
    """`python -m experiments.sweep_table`."""

    out_dir: str = MISSING
    runs: list[str] = MISSING
    condition: str = "right"


@dataclass
class ObservationMapConfig:
    """`policies.serving.observation_map.ObservationMap`; what is left empty is derived from the bundle."""

    cameras: dict[str, str] = field(default_factory=dict)  # camera of the bundle -> the client's key
    state: list[str] = field(default_factory=list)  # keys whose numbers, joined, are the state
    instruction: str = ""
    layout: str = "hwc"  # hwc | chw
    resize: str = "refuse"  # other image sizes: refuse | stretch | pad
    missing_frames: str = "refuse"  # one image where the policy looks at several: refuse | repeat


@dataclass
class ServeRun:
    """`python -m experiments.serve`."""

    out_dir: str = MISSING
    bundle: str = MISSING
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    token_env: str = "VLA_SERVE_TOKEN"  # environment variable that holds the token
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    insecure_lan: bool = False  # accept plain text beyond this machine
    allowed_origins: list[str] = field(default_factory=list)  # web pages that may connect
    num_threads: int = 1  # of one inference
    openpi_map: ObservationMapConfig = MISSING
    vla_eval_map: ObservationMapConfig = MISSING
    vla_eval_execute_horizon: int = 1  # actions handed out of a chunk; 0 sends the whole chunk
    vla_eval_observation_params: dict[str, Any] = field(default_factory=dict)  # for benchmarks' constructors
    request_timeout_s: float = 2.0
    idle_timeout_s: float = 300.0
    max_connections: int = 16  # 1: the first client is the only one
    max_bytes: int = 8388608  # of one frame
    status_every_s: float = 2.0


@dataclass
class QuickstartRun(TrainRun):
    """`python -m experiments.quickstart`: all of `TrainRun`, then export and evaluation of the bundle."""

    bundle_evaluation: EvaluationConfig = MISSING
    fresh: bool = False  # start over instead of resuming finished stages


@dataclass
class BenchmarkRun(TrainRun):
    """`python -m experiments.benchmark`: what a training run has, to be timed instead."""

    part: str = MISSING  # simulation | data | training | threads | latency | serving
    repeats: int = 20  # of every short measurement
    backends: list[str] = field(
        default_factory=lambda: ["torch", "torch.compile", "onnxruntime", "openvino"]
    )  # that latency is measured in
    heads: list[str] = field(default_factory=lambda: ["parallel", "autoregressive"])  # whose latency
    first_seed: int = 600000
    peer_python: str | None = None  # an interpreter that has lerobot, to time it on the same work


# Chosen by `kind`; what else they take follows from it.
PARTS = (
    *("data", "codec", "head", "processor.inputs"),
    *("model.backbone", "model.head", "model.auxiliaries"),
)
ROOTS = {
    "collect": CollectRun,
    "train": TrainRun,
    "evaluate": EvaluateRun,
    "export": ExportRun,
    "compare": CompareRun,
    "sweep_table": SweepTableRun,
    "serve": ServeRun,
    "quickstart": QuickstartRun,
    "benchmark": BenchmarkRun,
    "control": schema_robot.ControlRun,
    "delay_table": schema_robot.DelayTableRun,
    "franka_trials": schema_robot.FrankaTrialsRun,
}


def register() -> None:
    """Make the schemas known to Hydra as `collect_schema`, `train_schema` and so on."""
    for name, schema in ROOTS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=_open_parts(OmegaConf.structured(schema)))
    for group, registry in (("codec", CODECS), ("model/head", HEADS)):
        for name in registry.names():
            ConfigStore.instance().store(group=group, name=name, node={"kind": name})
    for name, schema in schema_robot.ROBOTS.items():
        ConfigStore.instance().store(group="robot", name=f"{name}_schema", node=schema)


def _open_parts(node: Any) -> Any:
    """Let the parts that are chosen by `kind` take any key; the registries check them."""
    for path in PARTS:
        part = OmegaConf.select(node, path)
        if part is not None:
            OmegaConf.set_struct(part, False)
    return node


def typed(config: DictConfig, schema: type[Schema]) -> Schema:
    """Return a composed configuration as an object of its schema, sets of tasks as their tasks.

    Raises:
        UnknownKey: `+key=value` smuggled in a key that the schema does not have.
        omegaconf.errors.OmegaConfBaseException: a value without default is missing, or of the wrong type.
    """
    run = OmegaConf.to_object(config)
    assert isinstance(run, schema)
    _require_known(run, prefix="")
    values = vars(run)
    if "tasks" in values and "env" in values:
        values["tasks"] = expand_tasks(values["env"].family, values["tasks"])
    return run


def _require_known(node: Any, *, prefix: str) -> None:
    declared = keys_of(type(node).__name__)
    for key, value in vars(node).items():
        if key not in declared:
            raise UnknownKey(f"Key '{key}' not in '{type(node).__name__}'\n    full_key: {prefix}{key}")
        if dataclasses.is_dataclass(value):
            _require_known(value, prefix=f"{prefix}{key}.")


def keys_of(name: str) -> tuple[str, ...]:
    """Return the keys of the schema class of that name; none if there is no such class."""
    owner = _classes().get(name)
    return () if owner is None else tuple(entry.name for entry in dataclasses.fields(owner))


def all_keys() -> tuple[str, ...]:
    """Return the keys of all schema classes."""
    return tuple(sorted({entry.name for owner in _classes().values() for entry in dataclasses.fields(owner)}))


def _classes() -> dict[str, Any]:
    """Return all schema classes by name."""
    values = [*vars(sys.modules[__name__]).values(), *vars(schema_robot).values()]
    return {one.__name__: one for one in values if isinstance(one, type) and dataclasses.is_dataclass(one)}
