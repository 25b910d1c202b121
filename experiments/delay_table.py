"""Success of a task against inference delay, for each chunk schedule, in simulated time.

    python -m experiments.delay_table bundle=outputs/bundle task=reach env.level=none episodes=20

The clock is simulated: an inference takes exactly the delay of its column, whatever this machine needs, so
the table is the same everywhere. Episodes go through the controller that drives robots, limits included, in
`num_workers` processes. A run that was interrupted continues when given the same out_dir. What goes onto
the page is in reports/pages.py.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tqdm import tqdm

from envs.workers import WorkerPool
from experiments.config import cli, schema
from experiments.config.control_setup import chosen_task, describe_setting
from experiments.config.schema import DelayTableRun
from experiments.config.simulated_robot import SimulatedRobot
from experiments.delay_episode import DelayEpisode, Key, OpenPolicy, open_bundle
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
from experiments.reports.tables import format_table, save_results
from experiments.stages import require_unchanged
from policies.exported import BundlePolicy
from vla.files import JsonLinesAppender, atomic_write_text, read_json, read_json_lines
from vla.provenance import software_versions

schema.register("delay_table")

DelayRows = Generator[DelayRow, None, None]  # to be closed, which ends the worker processes
FREE_TO_CHANGE = (
    "out_dir", "from_run", "episodes", "num_threads", "num_workers", "delays_ms", "schedules", "results"
)  # fmt: skip


def require_same_settings(run_dir: Path, run: DelayTableRun, *, bundle_id: str) -> None:
    """Write the settings of a new table, or compare with those of the one that is there.

    Raises:
        SettingsChanged: they are not the same; the message names them.
    """
    given = {**dataclasses.asdict(run), "bundle": bundle_id}
    text = json.dumps({key: value for key, value in given.items() if key not in FREE_TO_CHANGE}, indent=1)
    path = run_dir / "settings.json"
    rows = run_dir / "rows.jsonl"
    if path.exists() and rows.exists() and read_delay_rows(rows):  # settings that never ran bind nobody
        stored = read_json(path)
        require_unchanged(run_dir, stored=stored, given=json.loads(text), advice="or another out_dir")
    else:
        atomic_write_text(path, f"{text}\n")  # not as strict JSON: limits may be infinite


def read_delay_rows(path: Path) -> list[DelayRow]:
    """Return the rows of a `rows.jsonl`, without a torn last line.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: another line is damaged.
    """
    return read_json_lines(path, lambda row: DelayRow(**row))


def run_missing(
    run: DelayTableRun, run_dir: Path, *, play_all: Callable[[Sequence[Key]], DelayRows]
) -> list[DelayRow]:
    """Run the episodes that have no row yet, append a row as each ends, and return all rows in order."""
    path = run_dir / "rows.jsonl"
    rows = read_delay_rows(path) if path.exists() else []
    done = {Key(row.schedule, row.delay_ms, row.seed): row for row in rows}
    wanted = [
        Key(schedule, delay, run.first_seed + k)
        for k in range(run.episodes)  # in this order, so that an interrupted table is thin, not cut off
        for delay in run.delays_ms
        for schedule in run.schedules
    ]
    missing = [key for key in wanted if key not in done]
    progress = tqdm(total=len(missing), unit="episode", mininterval=10.0)
    with JsonLinesAppender(path) as log, progress, contextlib.closing(play_all(missing)) as new_rows:
        for row in new_rows:
            done[Key(row.schedule, row.delay_ms, row.seed)] = row
            log.append(dataclasses.asdict(row))
            progress.update()
    return [done[key] for key in wanted]


def play_in_workers(
    run: DelayTableRun, keys: Sequence[Key], *, open_policy: OpenPolicy = open_bundle
) -> DelayRows:
    """Run episodes in `run.num_workers` processes and yield rows as they end.

    Raises:
        WorkerError: an episode failed, or a process died.
    """
    if not keys:
        return
    jobs = [DelayEpisode(run_config=run, key=key, open_policy=open_policy) for key in keys]
    with WorkerPool(num_workers=min(run.num_workers, len(keys))) as pool:
        for _, row in pool.run(jobs):
            yield row


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
        save_results(target, results=results, markdown=markdown)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="delay_table")
def main(config: DictConfig) -> None:
    """Run the episodes and print the table."""
    run = schema.typed(config, DelayTableRun)
    schema.require_inputs(run)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if not isinstance(run.robot, SimulatedRobot):
        raise ValueError("only robot=sim can run in simulated time")
    if not run.delays_ms or not run.schedules:
        raise ValueError("name at least one delay and one schedule")
    bundle = BundlePolicy.load(run.bundle, num_threads=run.num_threads)
    print(describe_setting(run, bundle.provenance, source=run.bundle), flush=True)
    require_same_settings(run_dir, run, bundle_id=bundle.bundle_id)
    rows = run_missing(run, run_dir, play_all=lambda keys: play_in_workers(run, keys))
    write_results(run, run_dir, rows, bundle)
    grouped = cells(rows)
    header = [chosen_task(run), *(f"{delay:g} ms" for delay in run.delays_ms)]
    print("\n".join([format_table(header, success_rows(grouped)), *dry_lines(grouped)]))
    broken = sum(row.violations for row in rows)
    print(f"sent commands that broke a limit: {broken}\nreport: {run_dir / 'report.html'}")
    if broken:
        raise RuntimeError(f"{broken} commands broke a limit; this is a bug of the safety filter")


if __name__ == "__main__":
    cli.run(main)
