"""Success of a task against inference delay, for each chunk schedule, in simulated time.

    python -m experiments.delay_table bundle=outputs/bundle task=reach env.level=none episodes=20

The clock is simulated: an inference takes exactly the delay of its column, whatever this machine needs, so
the table is the same everywhere. Episodes go through the controller that drives robots, limits included. A
run that was interrupted continues when given the same out_dir. Knows nothing of how the bundle was made.
"""

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tqdm import tqdm

from envs.base import ManipulationEnv
from envs.charts import Series
from envs.registry import make_env
from envs.report import Chart, Charts, Table, write_report
from envs.sim_robot import SimRobot
from envs.statistics import wilson_interval
from experiments import cli, schema
from experiments.report_pages import closing_sections, machine
from experiments.robot_parts import (
    build_controller,
    chosen_task,
    drive,
    safety_limits,
    sensor_faults,
    task_config,
)
from experiments.schema_robot import DelayTableRun
from experiments.tables import format_table
from policies.exported import BundlePolicy
from policies.interface import Policy
from policies.runtime.clock import SimulatedClock
from policies.runtime.inference import SimulatedInference
from policies.runtime.limits import SafetyLimits
from policies.runtime.recorder import PeriodRecord, Recording, audit_recording
from vla.files import atomic_write_json

schema.register()

START_PERIODS = 10  # beyond an episode's own: the observations that arming takes
FREE_TO_CHANGE = ("out_dir", "episodes", "num_threads", "delays_ms", "schedules")


class SettingsDiffer(ValueError):
    """The directory holds a table with other settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DelayRow:
    """One episode."""

    schedule: str
    delay_ms: float
    seed: int
    success: bool
    periods: int
    chunks: int
    holds: int  # times that the controller had to hold
    clamped: int  # commands that the safety filter changed
    largest_jump: float  # change of a commanded action from one period to the next, as a share of its range
    violations: int  # limits broken by commands sent
    end: str  # the controller's last state


def run_episode(
    env: ManipulationEnv,
    policy: Policy,
    *,
    max_committed: int,
    run: DelayTableRun,
    limits: SafetyLimits,
    schedule: str,
    delay_ms: float,
    seed: int,
) -> DelayRow:
    """Run one episode in simulated time.

    Raises:
        SpecMismatch: policy and environment differ.
    """
    clock = SimulatedClock()
    env.start_episode(seed=seed)
    robot = SimRobot(env=env, clock=clock, faults=sensor_faults(run.robot), seed=seed)
    controller = build_controller(
        robot=robot,
        policy=policy,
        inference=SimulatedInference(policy=policy, clock=clock, delay_s=lambda: delay_ms / 1e3),
        limits=limits,
        max_committed=max_committed,
        schedule=schedule,
        execute_horizon=run.execute_horizon,
        anchored=run.anchored,
        instruction=robot.instruction,
        watchdog=run.watchdog,
        stream=run.stream,
        clock=clock,
    )
    periods: list[PeriodRecord] = []
    drive(
        controller,
        is_over=lambda: robot.is_over,
        max_periods=env.max_steps + START_PERIODS,
        on_period=periods.append,
    )
    recording = Recording(robot_spec=robot.robot_spec, about={}, periods=periods)
    counts = controller.counts
    return DelayRow(
        schedule=schedule,
        delay_ms=delay_ms,
        seed=seed,
        success=robot.success,
        periods=len(periods),
        chunks=counts["chunks"],
        holds=counts["times HOLD"],
        clamped=sum(bool(one.clamps) for one in periods),
        largest_jump=_largest_jump(recording, limits),
        violations=len(audit_recording(recording, limits)),
        end=controller.state.value,
    )


def _largest_jump(recording: Recording, limits: SafetyLimits) -> float:
    spec = recording.robot_spec
    sent = [one.commanded for one in recording.periods if one.commanded is not None]
    if len(sent) < 2:
        return 0.0
    share = np.abs(np.diff(np.array(sent), axis=0)) / (spec.action_high - spec.action_low)
    return float(share[:, ~limits.is_gripper].max())


def read_delay_rows(path: Path) -> list[DelayRow]:
    """Return the rows of a `rows.jsonl`, without a torn last line.

    Raises:
        ValueError: a line in the middle is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return [DelayRow(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to start over") from error


def require_same_settings(run_dir: Path, run: DelayTableRun, *, bundle_id: str) -> None:
    """Write the settings of a new table, or compare with those of the one that is there.

    Raises:
        SettingsDiffer: they are not the same; the message names them.
    """
    settings: dict[str, Any] = json.loads(
        json.dumps({**dataclasses.asdict(run), "bundle": bundle_id}, allow_nan=True)
    )
    settings = {key: value for key, value in settings.items() if key not in FREE_TO_CHANGE}
    path = run_dir / "settings.json"
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(
            key for key in settings if json.dumps(stored.get(key)) != json.dumps(settings[key])
        )
        if differing:
            raise SettingsDiffer(
                f"{run_dir} holds a table with other settings of {differing}; "
                "give the same, or another out_dir"
            )
    else:
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def run_missing(
    env: ManipulationEnv,
    policy: Policy,
    *,
    max_committed: int,
    run: DelayTableRun,
    limits: SafetyLimits,
    run_dir: Path,
) -> list[DelayRow]:
    """Run the episodes that have no row yet, append a row as each ends, and return all rows."""
    path = run_dir / "rows.jsonl"
    rows = read_delay_rows(path)
    done = {(row.schedule, row.delay_ms, row.seed): row for row in rows}
    wanted = [
        (schedule, delay, run.first_seed + k)
        for k in range(run.episodes)  # in this order, so that an interrupted table is thin, not cut off
        for delay in run.delays_ms
        for schedule in run.schedules
    ]
    missing = [key for key in wanted if key not in done]
    path.write_bytes(b"".join(_line(row) for row in rows))  # without a torn line
    with path.open("ab") as file:
        for schedule, delay_ms, seed in tqdm(missing, unit="episode", mininterval=10.0):
            row = run_episode(
                env,
                policy,
                max_committed=max_committed,
                run=run,
                limits=limits,
                schedule=schedule,
                delay_ms=delay_ms,
                seed=seed,
            )
            done[schedule, delay_ms, seed] = row
            file.write(_line(row))
            file.flush()
    return [done[key] for key in wanted]


def _line(row: DelayRow) -> bytes:
    return json.dumps(dataclasses.asdict(row)).encode() + b"\n"


def cells(rows: Sequence[DelayRow]) -> dict[str, dict[float, list[DelayRow]]]:
    """Group rows by schedule and delay, in the order in which they come."""
    grouped: dict[str, dict[float, list[DelayRow]]] = {}
    for row in rows:
        grouped.setdefault(row.schedule, {}).setdefault(row.delay_ms, []).append(row)
    return grouped


def success_rows(grouped: Mapping[str, Mapping[float, Sequence[DelayRow]]]) -> list[list[str]]:
    """Return success with Wilson 95 % intervals, a line a schedule, a column a delay."""
    table = []
    for schedule, by_delay in grouped.items():
        line = [schedule]
        for rows in by_delay.values():
            successes = sum(row.success for row in rows)
            interval = wilson_interval(successes, len(rows))
            line.append(f"{successes / len(rows):.0%} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]")
        table.append(line)
    return table


def _means(grouped: Mapping[str, Mapping[float, Sequence[DelayRow]]], key: str, form: str) -> list[list[str]]:
    return [
        [
            schedule,
            *(format(sum(getattr(row, key) for row in rows) / len(rows), form) for rows in by.values()),
        ]
        for schedule, by in grouped.items()
    ]


def write_page(path: Path, rows: Sequence[DelayRow], *, run: DelayTableRun, command: str) -> None:
    """Write the page: the table, a chart, and what the controller had to do."""
    grouped = cells(rows)
    header = ["schedule", *(f"{delay:g} ms" for delay in run.delays_ms)]
    lines = [
        Series(
            name=schedule,
            x=list(by_delay),
            y=[100 * sum(row.success for row in one) / len(one) for one in by_delay.values()],
        )
        for schedule, by_delay in grouped.items()
    ]
    chart = Chart(caption="success [%]", series=lines, x_label="inference delay [ms]", y_label="success [%]")
    last_seed = run.first_seed + run.episodes - 1
    write_report(
        path,
        title=f"Success against inference delay: {chosen_task(run)}",
        subtitle=machine(),
        sections=[
            Table(
                title="Success",
                header=header,
                rows=success_rows(grouped),
                note=f"{run.episodes} episodes each, seeds {run.first_seed} to {last_seed}; in brackets "
                "Wilson 95 % intervals. Time is simulated. An episode has the same number of periods at any "
                "delay, so that a schedule that waits has fewer of them to move in.",
            ),
            Charts(title="Success against delay", charts=[chart]),
            Table(title="Periods to the end, mean", header=header, rows=_means(grouped, "periods", ".0f")),
            Table(title="Holds an episode, mean", header=header, rows=_means(grouped, "holds", ".1f")),
            Table(
                title="Largest jump of a command, share of its range, mean",
                header=header,
                rows=_means(grouped, "largest_jump", ".0%"),
            ),
            Table(title="Clamped commands an episode", header=header, rows=_means(grouped, "clamped", ".1f")),
            *closing_sections([(command, "this table")]),
        ],
    )


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="delay_table")
def main(config: DictConfig) -> None:
    """Run the episodes and print the table."""
    run = schema.typed(config, DelayTableRun)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if run.robot.kind != "sim":
        raise ValueError(f"robot is {run.robot.kind!r}; only robot=sim can run in simulated time")
    if not run.delays_ms or not run.schedules or run.episodes < 1:
        raise ValueError("name at least one delay, one schedule and one episode")
    bundle = BundlePolicy.load(run.bundle, num_threads=run.num_threads)
    require_same_settings(run_dir, run, bundle_id=bundle.bundle_id)
    with contextlib.closing(make_env(task_config(run))) as env:
        rows = run_missing(
            env,
            bundle,
            max_committed=bundle.processor.max_committed,
            run=run,
            limits=safety_limits(run.robot),
            run_dir=run_dir,
        )
    command = shlex.join(["python", "-m", "experiments.delay_table", *sys.argv[1:]])
    write_page(run_dir / "report.html", rows, run=run, command=command)
    atomic_write_json(
        run_dir / "delay_table.json",
        {
            "task": chosen_task(run),
            "bundle": bundle.bundle_id,
            "rows": [dataclasses.asdict(row) for row in rows],
        },
    )
    broken = sum(row.violations for row in rows)
    print(
        format_table(
            [chosen_task(run), *(f"{delay:g} ms" for delay in run.delays_ms)], success_rows(cells(rows))
        )
    )
    print(f"limits broken by commands sent: {broken}\nreport: {run_dir / 'report.html'}")
    if broken:
        raise RuntimeError(f"{broken} commands broke a limit; this is a bug of the safety filter")


if __name__ == "__main__":
    cli.run(main)
