"""What an evaluation is made of: the plan, the rows, the sums with their intervals, and tables of them.

Plain data, readable without an environment or a policy; evaluation.py makes it and report.py shows it.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np

from envs.episode_request import INSTRUCTION_MODES, EpisodeRequest
from envs.evaluation.episodes import FORMER_NAMES, EpisodeRow, read_rows, with_instruction_mode
from envs.evaluation.statistics import Interval, interval_of_mean, wilson_interval
from envs.registry import TaskGroups, task_groups, with_current_names
from policies.runtime.limits import SafetyLimits
from vla.files import DamagedFile, read_json
from vla.provenance import software_versions
from vla.registry import Choices, Range, check_attributes

GREATEST_SEED = 2**31 - 1  # of an episode; what every simulator and file format takes
Parsed = TypeVar("Parsed")
PLAN = "plan.json"
RUNTIMES = ("simulation", "robot")  # actions executed as predicted, or as the runtime of a robot sends them


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSettings:
    """How a policy is measured, whatever the tasks."""

    episodes_per_task: Annotated[int, Range(1, 10**5), "episodes of every task"]
    first_seed: Annotated[int, Range(0, GREATEST_SEED), "episode k of a task has the seed first_seed + k"]
    runtime: Annotated[
        str, Choices(*RUNTIMES), "robot: every action passes delta conversion and safety filter"
    ] = "simulation"
    safety: Annotated[bool, "whether the runtime robot has these two; false is for comparison"] = True
    execute_horizon: Annotated[
        int, Range(1, 1024), "actions executed of a chunk before the policy looks again"
    ] = 10
    ensemble_decay: Annotated[
        float | None, Range(0, 100), "mean of overlapping chunks (envs/rollout.py); null: the newest"
    ] = None
    num_workers: Annotated[int, Range(1, 256), "processes with environments"] = 2
    envs_per_worker: Annotated[int, Range(1, 64), "episodes that one process plays at a time"] = 4
    videos_per_task: Annotated[
        int, Range(0, 1000), "episodes filmed afterward, failures first; at most one each if swapped or blank"
    ] = 2

    def __post_init__(self) -> None:
        check_attributes(self, where="evaluation")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPlan(EvaluationSettings):
    """Which episodes to run."""

    env_configs: Mapping[str, dict[str, Any]]  # task name to the configuration of its environment
    instruction_mode: Annotated[str, Choices(*INSTRUCTION_MODES), "instruction of the policy"] = "original"
    limits: SafetyLimits | None = None  # of the runtime "robot"; None: without safety filter and conversion

    def __post_init__(self) -> None:
        check_attributes(self, where="evaluation")
        if self.runtime == "simulation" and self.limits is not None:
            raise ValueError("limits are given, but the runtime 'simulation' has no safety filter")
        if not self.env_configs:
            raise ValueError("env_configs is empty; name at least one task and its environment")
        for task in self.env_configs:
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", task):
                raise ValueError(f"task name {task!r} may hold letters, digits, '_', '.' and '-' only")

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return data | {"limits": None if self.limits is None else self.limits.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EvaluationPlan":
        """Rebuild a plan from `to_json`, of a version without some of the keys too.

        Raises:
            ValueError: a value makes no sense.
        """
        limits = data.get("limits")
        current = with_instruction_mode(data)
        current["limits"] = None if limits is None else SafetyLimits.from_json(limits)
        current["env_configs"] = {t: with_current_names(c) for t, c in data["env_configs"].items()}
        return cls(**current)

    @property
    def road(self) -> str:
        """What the predicted actions passed on their way to the arm, in words."""
        if self.runtime == "simulation":
            return "simulation: actions are executed as predicted"
        if self.limits is None:
            return "robot, with safety filter and delta conversion off"
        return "robot: actions pass delta conversion and safety filter, as on an arm"

    def requests(self) -> list[EpisodeRequest]:
        """Return all episodes, task by task."""
        return [
            EpisodeRequest(task=task, env_config=config, seed=seed, instruction_mode=self.instruction_mode)
            for task, config in self.env_configs.items()
            for seed in range(self.first_seed, self.first_seed + self.episodes_per_task)
        ]


def actions_path(run_dir: Path, task: str, seed: int) -> Path:
    """Return where an evaluation keeps the executed actions of an episode."""
    return run_dir / "actions" / f"{task}-{seed}.npy"


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRecord:
    """A filmed episode; paths are relative to the evaluation's directory."""

    task: str
    seed: int
    success: bool
    instruction: str
    given_instruction: str
    steps: int
    video: str
    filmstrip: str
    replay_agrees: bool  # whether the replay ended as the row says


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """Success of one task, with the Wilson 95 % interval of its rate."""

    episodes: int
    successes: int
    success_rate: float
    interval: Interval
    mean_success_steps: float | None  # control periods until success, or nothing without success
    first_seed: int
    last_seed: int

    @classmethod
    def of(cls, rows: Sequence[EpisodeRow]) -> "TaskResult":
        """Sum up at least one row."""
        steps = [row.steps for row in rows if row.success]
        return cls(
            episodes=len(rows),
            successes=len(steps),
            success_rate=len(steps) / len(rows),
            interval=wilson_interval(len(steps), len(rows)),
            mean_success_steps=float(np.mean(steps)) if steps else None,
            first_seed=min(row.seed for row in rows),
            last_seed=max(row.seed for row in rows),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupResult:
    """Success of a group of tasks: the mean over its tasks, with the Wilson 95 % interval of its episodes."""

    num_tasks: int  # that have episodes
    group_size: int  # all tasks of the group
    episodes: int
    successes: int
    success_rate: float
    interval: Interval

    @classmethod
    def of(cls, results: Sequence[TaskResult], *, group_size: int) -> "GroupResult":
        """Sum up at least one task of a group."""
        successes, episodes = sum(r.successes for r in results), sum(r.episodes for r in results)
        return cls(
            num_tasks=len(results),
            group_size=group_size,
            episodes=episodes,
            successes=successes,
            success_rate=float(np.mean([result.success_rate for result in results])),
            interval=wilson_interval(successes, episodes),
        )

    def label(self, name: str) -> str:
        """Return how a table calls the group, for example ``easy (28 tasks)`` or ``easy (2 of 28 tasks)``."""
        some = "" if self.num_tasks == self.group_size else f"{self.num_tasks} of "
        return f"{name} ({some}{self.group_size} tasks)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The rows of an evaluation, in the order of tasks and seeds, and what follows from them."""

    run_dir: Path
    plan: EvaluationPlan
    policy_id: str
    rows: tuple[EpisodeRow, ...]
    videos: tuple[VideoRecord, ...] = ()
    wall_s: float = 0.0  # of the program that finished it

    @property
    def tasks(self) -> dict[str, TaskResult]:
        """Result by task, for the tasks that have rows."""
        by_task = {task: [row for row in self.rows if row.task == task] for task in self.plan.env_configs}
        return {task: TaskResult.of(rows) for task, rows in by_task.items() if rows}

    @property
    def mean_success_rate(self) -> float:
        """Mean over tasks of the success rate, each task counting the same."""
        return float(np.mean([result.success_rate for result in self.tasks.values()]))

    @property
    def task_groups(self) -> TaskGroups | None:
        """The groups by which the family of the environments is reported, if it has any."""
        families = {str(config.get("family", "")) for config in self.plan.env_configs.values()}
        return task_groups(families.pop()) if len(families) == 1 else None

    @property
    def groups(self) -> dict[str, GroupResult]:
        """Result by group, for the groups of which a task has rows; empty for a family without groups."""
        tasks, groups = self.tasks, self.task_groups
        if groups is None:
            return {}
        return {
            name: GroupResult.of([tasks[task] for task in group if task in tasks], group_size=len(group))
            for name, group in groups.tasks.items()
            if any(task in tasks for task in group)
        }

    @property
    def group_mean(self) -> tuple[float, Interval] | None:
        """Mean over groups of their success rates, with its interval; only when no task of any is missing."""
        groups, results = self.task_groups, self.groups
        if groups is None or len(results) < len(groups.tasks):
            return None
        if any(result.num_tasks < result.group_size for result in results.values()):
            return None
        rates = [result.success_rate for result in results.values()]
        interval = interval_of_mean(rates, [result.interval for result in results.values()])
        return sum(rates) / len(rates), interval

    @property
    def pooled_interval(self) -> Interval:
        """Wilson 95 % interval of all episodes pooled; that of the mean when tasks have as many episodes."""
        return wilson_interval(sum(row.success for row in self.rows), len(self.rows))

    @property
    def is_complete(self) -> bool:
        """Whether every planned episode has a row."""
        return len(self.rows) == len(self.plan.requests())

    def to_json(self) -> dict[str, Any]:
        """Return what `results.json` holds."""
        return {
            "schema_version": 1,
            "policy_id": self.policy_id,
            "runtime": self.plan.runtime,
            "safety": self.plan.limits is not None,
            "complete": self.is_complete,
            "mean_success_rate": self.mean_success_rate,
            "pooled_wilson_95": dataclasses.asdict(self.pooled_interval),
            "tasks": {task: dataclasses.asdict(result) for task, result in self.tasks.items()},
            **self._groups_to_json(),
            "plan": self.plan.to_json(),
            "wall_s": self.wall_s,
            "versions": software_versions(),
            "videos": [dataclasses.asdict(video) for video in self.videos],
        }

    def _groups_to_json(self) -> dict[str, Any]:
        groups, mean = self.task_groups, self.group_mean
        if groups is None:
            return {}
        summed = {name: dataclasses.asdict(result) for name, result in self.groups.items()}
        if mean is not None:
            summed["mean"] = {"success_rate": mean[0], "interval": dataclasses.asdict(mean[1])}
        return {f"{groups.kind}s": summed}


def folder_of_mode(path: Path, mode: str) -> Path:
    """Return the folder of an evaluation by instruction mode; one of a former name if it exists."""
    for former, current in FORMER_NAMES.items():
        if current == mode and (path / former / "plan.json").exists():
            return path / former
    return path / mode


def _read_parsed(path: Path, parse: Callable[[Any], Parsed]) -> Parsed:
    """Return what `parse` makes of a JSON file.

    Raises:
        DamagedFile: it has another form.
    """
    stored = read_json(path)
    try:
        return parse(stored)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedFile(
            f"{path} is not as an evaluation writes it ({type(error).__name__}: {error}); restore it from a "
            "copy, or evaluate into another directory"
        ) from error


def read_plan(run_dir: Path) -> tuple[str, EvaluationPlan]:
    """Return the policy's id and the plan of the evaluation in a directory.

    Raises:
        FileNotFoundError: there is none.
        DamagedFile: its file is damaged.
    """
    return _read_parsed(
        run_dir / PLAN, lambda stored: (stored["policy_id"], EvaluationPlan.from_json(stored["plan"]))
    )


def _videos_and_time(results: Any) -> tuple[tuple[VideoRecord, ...], float]:
    return tuple(VideoRecord(**video) for video in results["videos"]), results["wall_s"]


def load_evaluation(run_dir: Path) -> Evaluation:
    """Read an evaluation from its directory, finished or not.

    Raises:
        FileNotFoundError: the directory holds no evaluation.
        DamagedFile: a file is damaged, or a row is of another policy or instruction mode than the plan.
    """
    if not (run_dir / PLAN).exists():
        raise FileNotFoundError(f"{run_dir} holds no evaluation: it has no {PLAN}")
    policy_id, plan = read_plan(run_dir)
    log = run_dir / "episodes.jsonl"
    rows = {(row.task, row.seed): row for row in (read_rows(log) if log.exists() else [])}
    for row in rows.values():
        if (row.policy_id, row.instruction_mode) != (policy_id, plan.instruction_mode):
            raise DamagedFile(
                f"{log} has a row of policy {row.policy_id!r}, {row.instruction_mode} instruction (task "
                f"{row.task}, seed {row.seed}), but {PLAN} is of {policy_id!r}, {plan.instruction_mode} "
                "instruction; restore both from a copy, or evaluate into another directory"
            )
    wanted = [rows.get((request.task, request.seed)) for request in plan.requests()]
    videos, wall_s = (), 0.0
    if (run_dir / "results.json").exists():
        videos, wall_s = _read_parsed(run_dir / "results.json", _videos_and_time)
    return Evaluation(
        run_dir=run_dir,
        plan=plan,
        policy_id=policy_id,
        rows=tuple(row for row in wanted if row is not None),
        videos=videos,
        wall_s=wall_s,
    )


def format_table(evaluation: Evaluation, *controls: Evaluation) -> str:
    """Return a table for a terminal: success by task with Wilson 95 % intervals, one column per evaluation.

    Args:
        evaluation: gives the tasks.
        controls: further columns, such as the same policy with blank and swapped instructions.
    """
    columns = (evaluation, *controls)
    header = ["task", *(f"{column.plan.instruction_mode} instruction" for column in columns)]
    table = [header]
    for task in evaluation.tasks:
        table.append([task, *(_cell(column.tasks.get(task)) for column in columns)])
    sums = [*_group_rows(columns), ["mean over tasks", *(_mean_cell(column) for column in columns)]]
    widths = [max(len(row[index]) for row in (*table, *sums)) for index in range(len(header))]
    head, *tasks, rule = (_line(row, widths) for row in (*table, ["-" * width for width in widths]))
    note = (
        "Brackets: Wilson 95 % intervals; that of the mean is over all episodes pooled.\n"
        f"Runtime: {evaluation.plan.road}."
    )
    return "\n".join((head, rule, *tasks, rule, *(_line(row, widths) for row in sums), note))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _group_rows(columns: Sequence[Evaluation]) -> list[list[str]]:
    """Return one row per group and one for their mean, if the family of the first column has groups."""
    groups = columns[0].task_groups
    if groups is None:
        return []
    rows = [
        [result.label(name), *(_cell(column.groups.get(name)) for column in columns)]
        for name, result in columns[0].groups.items()
    ]
    means = [column.group_mean for column in columns]
    if any(mean is not None for mean in means):
        cells = ["-" if mean is None else f"{'':7} {_percent(*mean)}" for mean in means]
        rows.append([f"mean over {groups.kind}s", *cells])
    return rows


def _percent(rate: float, interval: Interval) -> str:
    return f"{100 * rate:5.1f} % {interval.in_percent()}"


def _cell(result: TaskResult | GroupResult | None) -> str:
    if result is None:
        return "-"
    return f"{result.successes:3d}/{result.episodes:<3d} {_percent(result.success_rate, result.interval)}"


def _mean_cell(evaluation: Evaluation) -> str:
    if not evaluation.rows:
        return "-"
    successes = sum(row.success for row in evaluation.rows)
    share = _percent(evaluation.mean_success_rate, evaluation.pooled_interval)
    return f"{successes:3d}/{len(evaluation.rows):<3d} {share}"
