"""Success of a task against inference delay, for each chunk schedule, in simulated time.

    python -m experiments.delay_table bundle=outputs/bundle task=reach env.level=none episodes=20

The clock is simulated: an inference takes exactly the delay of its column, whatever this machine needs, so
the table is the same everywhere. Episodes go through the controller that drives robots, limits included, in
`num_workers` processes. A run that was interrupted continues when given the same out_dir. Knows nothing of
how the bundle was made; what goes onto the page is in report_pages.py.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tqdm import tqdm

from envs.base import ManipulationEnv
from envs.registry import make_env
from envs.sim_robot import SimRobot
from experiments.config import cli, schema
from experiments.config.control_setup import (
    build_controller,
    chosen_task,
    drive,
    safety_limits,
    sensor_faults,
    task_config,
)
from experiments.config.robot import DelayTableRun
from experiments.reports.pages import (
    DelayRow,
    cells,
    delay_markdown,
    dry_lines,
    machine,
    success_json,
    success_rows,
    write_delay_page,
)
from experiments.reports.tables import format_table
from policies.exported import BundlePolicy
from policies.runtime.clock import SimulatedClock
from policies.runtime.inference import SimulatedInference
from policies.runtime.limits import SafetyLimits
from policies.runtime.recorder import PeriodRecord, Recording, audit_recording
from policies.runtime.watchdog import UNDERRUN
from vla.files import atomic_write_bytes, atomic_write_json
from vla.interface import Policy
from vla.provenance import software_versions

schema.register()

START_PERIODS = 10  # beyond an episode's own: the observations that arming takes
FREE_TO_CHANGE = (
    "out_dir", "episodes", "num_threads", "num_workers", "delays_ms", "schedules", "results"
)  # fmt: skip


class SettingsDiffer(ValueError):
    """The directory holds a table with other settings."""


class WorkerFailed(RuntimeError):
    """A worker process died; the rows of finished episodes are kept."""


class Key(NamedTuple):
    """Which episode."""

    schedule: str
    delay_ms: float
    seed: int


Play = Callable[[Key], DelayRow]
OpenPlayer = Callable[[DelayTableRun], AbstractContextManager[Play]]


def run_episode(
    env: ManipulationEnv, policy: Policy, key: Key, *, max_committed: int, run: DelayTableRun
) -> DelayRow:
    """Run one episode in simulated time.

    Raises:
        SpecMismatch: policy and environment differ.
    """
    clock, limits = SimulatedClock(), safety_limits(run.robot)
    env.start_episode(seed=key.seed)
    robot = SimRobot(env=env, clock=clock, faults=sensor_faults(run.robot), seed=key.seed)
    controller = build_controller(
        robot=robot,
        policy=policy,
        inference=SimulatedInference(policy=policy, clock=clock, delay_s=lambda: key.delay_ms / 1e3),
        limits=limits,
        max_committed=max_committed,
        schedule=key.schedule,
        execute_horizon=run.execute_horizon,
        delta_to_absolute=run.delta_to_absolute,
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
    acted = [one.state == "RUNNING" and one.target is not None for one in periods]
    first = acted.index(True) if any(acted) else len(periods)
    return DelayRow(
        **key._asdict(),
        success=robot.success,
        periods=len(periods),
        chunks=counts["chunks"],
        holds=counts["times HOLD"],
        dry=sum(event == f"RUNNING -> HOLD: {UNDERRUN}" for one in periods for event in one.events),
        idle=sum(
            not has_acted and one.state in ("RUNNING", "HOLD")
            for one, has_acted in zip(periods[first:], acted[first:], strict=True)
        ),
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
        return [_row(line) for line in lines]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to start over") from error


def _line(row: DelayRow) -> bytes:
    return json.dumps(dataclasses.asdict(row)).encode() + b"\n"


def _row(line: bytes) -> DelayRow:
    return DelayRow(**json.loads(line))


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
        text = json.dumps(settings, indent=1)  # delays may be infinite
        atomic_write_bytes(path, f"{text}\n".encode())


def run_missing(
    run: DelayTableRun, run_dir: Path, *, play_all: Callable[[Sequence[Key]], Iterator[DelayRow]]
) -> list[DelayRow]:
    """Run the episodes that have no row yet, append a row as each ends, and return all rows in order."""
    path = run_dir / "rows.jsonl"
    rows = read_delay_rows(path)
    done = {Key(row.schedule, row.delay_ms, row.seed): row for row in rows}
    wanted = [
        Key(schedule, delay, run.first_seed + k)
        for k in range(run.episodes)  # in this order, so that an interrupted table is thin, not cut off
        for delay in run.delays_ms
        for schedule in run.schedules
    ]
    missing = [key for key in wanted if key not in done]
    atomic_write_bytes(path, b"".join(_line(row) for row in rows))  # without a torn line
    with (
        path.open("ab") as file,
        contextlib.closing(tqdm(total=len(missing), unit="episode", mininterval=10.0)) as progress,
    ):
        for row in play_all(missing):
            done[Key(row.schedule, row.delay_ms, row.seed)] = row
            file.write(_line(row))
            file.flush()
            progress.update()
    return [done[key] for key in wanted]


@contextlib.contextmanager
def open_player(run: DelayTableRun) -> Iterator[Play]:
    """Load the bundle, build the environment, and give what runs an episode with them."""
    bundle = BundlePolicy.load(run.bundle, num_threads=run.num_threads, verify=False)  # the program has
    with contextlib.closing(make_env(task_config(run))) as env:
        committed = bundle.processor.max_committed
        yield lambda key: run_episode(env, bundle, key, max_committed=committed, run=run)


def play_in_workers(
    run: DelayTableRun, keys: Sequence[Key], *, opener: OpenPlayer = open_player
) -> Iterator[DelayRow]:
    """Run episodes in `run.num_workers` processes, each all those of its seeds; yield rows as they end.

    Raises:
        WorkerFailed: a process died.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}  # processes by the connection that their rows come from
    for number in range(run.num_workers):
        share = [key for key in keys if (key.seed - run.first_seed) % run.num_workers == number]
        if share:
            our_end, their_end = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(run, share, opener, their_end), daemon=True)
            worker.start()
            their_end.close()
            workers[our_end] = worker
    try:
        while workers:
            ready = wait(list(workers))
            for connection in [one for one in workers if one in ready]:
                try:
                    yield _row(connection.recv_bytes())
                except EOFError:
                    _require_done(workers.pop(connection))
    finally:
        for worker in workers.values():
            worker.terminate()
            worker.join()


def _require_done(worker: SpawnProcess) -> None:
    worker.join()
    if worker.exitcode:
        raise WorkerFailed(
            f"a worker process ended with code {worker.exitcode}; what it printed says why. The same command "
            "with the same out_dir continues"
        )


def _work(run: DelayTableRun, keys: Sequence[Key], opener: OpenPlayer, rows: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with opener(run) as play:
        for key in keys:
            rows.send_bytes(_line(play(key)))


def write_results(run: DelayTableRun, run_dir: Path, rows: Sequence[DelayRow], bundle: BundlePolicy) -> None:
    """Write the page, and the table as JSON and Markdown; the latter two to `run.results` as well.

    Single episodes stay in `rows.jsonl`.
    """
    command = cli.portable_command("delay_table")
    title = f"Success against inference delay: {chosen_task(run)}"
    chunk_ms = 1e3 * bundle.action_horizon / bundle.robot_spec.control_hz
    note = (
        f"{run.episodes} episodes each, seeds {run.first_seed} to {run.first_seed + run.episodes - 1}; in "
        "brackets Wilson 95 % intervals. Time is simulated. An episode has the same number of periods at any "
        "delay, so that a schedule that waits has fewer of them to move in. A chunk lasts "
        f"{chunk_ms:.0f} ms and is used while the next is inferred: it runs dry when two inferences take "
        f"longer. Of its actions, {bundle.processor.max_committed} can be committed in advance."
    )
    write_delay_page(run_dir / "report.html", rows, title=title, note=note, command=command)
    markdown = delay_markdown(rows, title=title, note=note, command=command)
    results = {
        "task": chosen_task(run),
        "bundle": bundle.bundle_id,
        "max_committed": bundle.processor.max_committed,
        "action_horizon": bundle.action_horizon,
        "execute_horizon": run.execute_horizon,
        "command": command,
        "machine": machine(),
        "software": software_versions(),
        "success": success_json(cells(rows)),
    }
    targets = [run_dir / "delay_table", *([Path(run.results)] if run.results is not None else [])]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(target.with_name(f"{target.name}.json"), results)
        atomic_write_bytes(target.with_name(f"{target.name}.md"), markdown.encode())


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="delay_table")
def main(config: DictConfig) -> None:
    """Run the episodes and print the table."""
    run = schema.typed(config, DelayTableRun)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if run.robot.kind != "sim":
        raise ValueError(f"robot is {run.robot.kind!r}; only robot=sim can run in simulated time")
    if not run.delays_ms or not run.schedules or run.episodes < 1 or run.num_workers < 1:
        raise ValueError("name at least one delay, one schedule, one episode and one worker")
    bundle = BundlePolicy.load(run.bundle, num_threads=run.num_threads)
    require_same_settings(run_dir, run, bundle_id=bundle.bundle_id)
    rows = run_missing(run, run_dir, play_all=lambda keys: play_in_workers(run, keys))
    write_results(run, run_dir, rows, bundle)
    grouped = cells(rows)
    header = [chosen_task(run), *(f"{delay:g} ms" for delay in run.delays_ms)]
    print("\n".join([format_table(header, success_rows(grouped)), *dry_lines(grouped)]))
    broken = sum(row.violations for row in rows)
    print(f"limits broken by commands sent: {broken}\nreport: {run_dir / 'report.html'}")
    if broken:
        raise RuntimeError(f"{broken} commands broke a limit; this is a bug of the safety filter")


if __name__ == "__main__":
    cli.run(main)
