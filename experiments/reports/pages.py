"""The reports of evaluations, of the quickstart and of the delay table: what goes onto the page.

experiments/reports/html.py draws it.
"""

import datetime
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.evaluation.results import Evaluation
from envs.evaluation.statistics import wilson_interval
from experiments.reports.charts import Series
from experiments.reports.html import (
    Chart,
    Charts,
    Commands,
    Headline,
    Section,
    Success,
    Table,
    Text,
    Videos,
    write_report,
)
from experiments.reports.tables import markdown_table
from vla.provenance import software_versions
from vla.training.metrics import read_metrics

ORIGINAL_TARGET, SWAPPED_TARGET = 0.90, 0.35  # the aims of the quickstart: at least, at most
TRAINING_NOTE = (
    "Held-out: averaged weights on episodes that are never trained on. Training: the weights of that step, "
    "on augmented images. Losses of further targets are not yet weighted."
)
TASK_TARGET = 0.80  # of every task with its original instruction


def machine() -> str:
    """Return date, processor architecture, number of cores and system in a line."""
    day = datetime.date.today().isoformat()
    return f"{day}, {platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def percent(rate: float) -> str:
    """Return a rate in whole percent."""
    return f"{100 * rate:.0f} %"


def headlines(results: Mapping[str, Evaluation], *, with_aims: bool) -> list[Headline]:
    """Return mean success in each instruction mode; with the quickstart's aims if requested."""
    tiles = []
    for mode, evaluation in results.items():
        rate, interval = evaluation.mean_success_rate, evaluation.pooled_interval
        note = f"95 % interval {percent(interval.low)} to {percent(interval.high)}"
        met = None
        if with_aims and mode == "original":
            worst = min(summary.success_rate for summary in evaluation.tasks.values())
            note = f"{note}; aim: at least {percent(ORIGINAL_TARGET)}, every task {percent(TASK_TARGET)}"
            met = rate >= ORIGINAL_TARGET and worst >= TASK_TARGET
        if with_aims and mode == "swapped":
            note, met = f"{note}; aim: at most {percent(SWAPPED_TARGET)}", rate <= SWAPPED_TARGET
        tiles.append(Headline(label=f"{mode} instruction", value=percent(rate), note=note, met=met))
    return tiles


def success_sections(results: Mapping[str, Evaluation]) -> list[Section]:
    """Return the success table and the videos."""
    named = {f"{mode} instruction": evaluation for mode, evaluation in results.items()}
    note = (
        "Swapped: the policy is given the instruction of another goal in the scene (in Meta-World: of "
        "another task); blank: an empty one. Success is always that of the original instruction, so both "
        "should be low, except where the scene leaves only one thing to do."
    )
    sections: list[Section] = [
        Success(title="Success", evaluations=named, targets={}, note=note if len(named) > 1 else ""),
        Table(title="Runtime", header=["instruction mode", "measured in"], rows=_road_rows(named)),
    ]
    sections += [
        Videos(
            title=f"Episodes, {name}",
            evaluation=evaluation,
            note="Failures first. Quoted: what the policy was given; goal: what decides about success.",
        )
        for name, evaluation in named.items()
        if evaluation.videos
    ]
    return sections


def _road_rows(named: Mapping[str, Evaluation]) -> list[list[str]]:
    """Return on which road each evaluation was measured, and how many episodes the watchdog ended."""
    rows = []
    for name, evaluation in named.items():
        stopped = sum(bool(row.stop_reason) for row in evaluation.rows)
        after = f"; the watchdog stopped {stopped} of {len(evaluation.rows)} episodes" if stopped else ""
        rows.append([name, evaluation.plan.road + after])
    return rows


def training_section(metrics_path: Path) -> Charts:
    """Return a chart of each loss over training steps, the held-out one next to it, and of the accuracy.

    The sum of losses that was trained is left out where its parts are logged.
    """
    rows = read_metrics(metrics_path)

    def series(name: str, key: str) -> Series:
        points = [(row["step"], row.get(key)) for row in rows]
        known = [(step, value) for step, value in points if step is not None and value is not None]
        return Series(name=name, x=[step for step, _ in known], y=[value for _, value in known])

    def chart(caption: str, key: str) -> Chart:
        lines = [series("training", key), series("held-out episodes", f"validation/{key}")]
        return Chart(
            caption=caption, series=[s for s in lines if s.points()], x_label="step", y_label=caption
        )

    parts = sorted({key for row in rows for key in row if key.startswith("loss/")})
    charts = [
        chart("loss of actions", "action_loss"),
        *[chart(f"loss of {key.removeprefix('loss/').replace('_', ' ')}", key) for key in parts],
        chart("accuracy", "token_accuracy"),
        Chart(
            caption="success on development seeds, 95 % interval",
            series=[
                line
                for name, key in (
                    ("mean over tasks", "success"),
                    ("low", "success_low"),
                    ("high", "success_high"),
                )
                if (line := series(name, f"development/{key}")).points()
            ],
            x_label="step",
            y_label="success",
        ),
    ]
    return Charts(title="Training", charts=[one for one in charts if one.series], note=TRAINING_NOTE)


def parity_rows(parity: str) -> list[list[str]]:
    """Split the lines of an export report, name and value two or more blanks apart, into cells."""
    cells = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in parity.splitlines() if line.strip()]
    return [[*row, ""][:2] for row in cells]


def closing_sections(commands: Sequence[tuple[str, str]]) -> list[Section]:
    """Return the commands to repeat it, and the versions of what ran."""
    versions = [[name, version] for name, version in software_versions().items()]
    return [
        Commands(title="Commands", commands=commands),
        Table(title="Versions", header=["what", "version"], rows=versions),
    ]


def write_evaluation_page(path: Path, results: Mapping[str, Evaluation], *, title: str, command: str) -> None:
    """Write the report of one evaluation."""
    write_report(
        path,
        title=title,
        subtitle=machine(),
        headlines=headlines(results, with_aims=False),
        sections=[*success_sections(results), *closing_sections([(command, "this page")])],
    )


def write_sweep_page(
    path: Path,
    *,
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
    chart: Chart | None,
    note: str,
    command: str,
) -> None:
    """Write the tables of a sweep, header and rows by title, and a chart if there is one."""
    charts: list[Section] = [] if chart is None else [Charts(title=chart.y_label, charts=[chart])]
    shown = [Table(title=title, header=header, rows=rows) for title, (header, rows) in tables.items()]
    write_report(
        path,
        title="A sweep",
        subtitle=machine(),
        headlines=[],
        sections=[
            *charts,
            *shown,
            Text(title="How to read it", paragraphs=[note]),
            *closing_sections([(command, "this page")]),
        ],
    )


def write_quickstart_page(
    path: Path,
    *,
    checkpoint: Mapping[str, Evaluation],
    bundle: Mapping[str, Evaluation],
    metrics_path: Path,
    parity: str,
    closed_loop: str,
    seconds: Mapping[str, float],
    commands: Sequence[tuple[str, str]],
    shortfall: str | None = None,
) -> None:
    """Write the report of a quickstart; `shortfall` says that its training ended early, if it did."""
    minutes = sum(seconds.values()) / 60
    timings = [[name, f"{value / 60:.1f}"] for name, value in seconds.items()]
    by_name = {f"bundle, {mode} instruction": one for mode, one in bundle.items()}
    warning = [] if shortfall is None else [Text(title="Not trained to the end", paragraphs=[shortfall])]
    sections: list[Section] = [
        *warning,
        *success_sections(checkpoint),
        training_section(metrics_path),
        Success(
            title="The exported bundle, without torch", evaluations=by_name, targets={}, note=closed_loop
        ),
        Table(title="Export parity", header=["checkpoint against bundle", ""], rows=parity_rows(parity)),
        Table(title="Time", header=["stage", "minutes"], rows=[*timings, ["all", f"{minutes:.1f}"]]),
        *closing_sections(commands),
    ]
    write_report(
        path,
        title="Quickstart: a language-conditioned robot policy",
        subtitle=f"{machine()}; {minutes:.1f} minutes in all",
        headlines=headlines(checkpoint, with_aims=True),
        sections=sections,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DelayRow:
    """One episode of the delay table."""

    schedule: str
    delay_ms: float
    seed: int
    success: bool
    periods: int
    chunks: int
    holds: int  # times that the controller had to hold
    dry: int  # of these, times that a chunk was used up before the next came
    idle: int  # periods without an action of the policy, from its first on
    clamped: int  # commands that the safety filter changed
    largest_jump: float  # change of a commanded action from one period to the next, as a share of its range
    violations: int  # limits broken by commands sent
    end: str  # the controller's last state


Cells = Mapping[str, Mapping[float, Sequence[DelayRow]]]  # by schedule and delay


def cells(rows: Sequence[DelayRow]) -> Cells:
    """Group rows by schedule and delay, in the order in which they come."""
    grouped: dict[str, dict[float, list[DelayRow]]] = {}
    for row in rows:
        grouped.setdefault(row.schedule, {}).setdefault(row.delay_ms, []).append(row)
    return grouped


def success_rows(grouped: Cells) -> list[list[str]]:
    """Return success with Wilson 95 % intervals, one line per schedule, one column per delay."""
    table = []
    for schedule, by_delay in grouped.items():
        line = [schedule]
        for rows in by_delay.values():
            successes = sum(row.success for row in rows)
            interval = wilson_interval(successes, len(rows))
            line.append(f"{successes / len(rows):.0%} {interval.in_percent()}")
        table.append(line)
    return table


def success_json(grouped: Cells) -> list[dict[str, Any]]:
    """Return successes, episodes and Wilson 95 % interval of each schedule and delay as JSON-ready data."""
    table = []
    for schedule, by_delay in grouped.items():
        for delay, rows in by_delay.items():
            successes = sum(row.success for row in rows)
            interval = wilson_interval(successes, len(rows))
            where = {"schedule": schedule, "delay_ms": delay, "low": interval.low, "high": interval.high}
            table.append({**where, "successes": successes, "episodes": len(rows)})
    return table


def mean_rows(grouped: Cells, key: str, form: str) -> list[list[str]]:
    """Return the mean of a number of each episode, one line per schedule, one column per delay."""
    return [
        [
            schedule,
            *(format(sum(getattr(row, key) for row in rows) / len(rows), form) for rows in by.values()),
        ]
        for schedule, by in grouped.items()
    ]


def dry_lines(grouped: Cells) -> list[str]:
    """Return a line for each schedule and delay at which a chunk was used up before the next arrived."""
    return [
        f"{schedule} at {delay:g} ms: {sum(row.dry for row in rows)} chunk underruns, in "
        f"{sum(row.dry > 0 for row in rows)} of {len(rows)} episodes; "
        f"{sum(row.end != 'IDLE' for row in rows)} were stopped permanently"
        for schedule, by_delay in grouped.items()
        for delay, rows in by_delay.items()
        if any(row.dry for row in rows)
    ]


def delay_tables(grouped: Cells) -> list[tuple[str, list[list[str]]]]:
    """Return title and rows of every table, success first."""
    return [
        ("Success", success_rows(grouped)),
        ("Chunk underruns per episode, mean", mean_rows(grouped, "dry", ".1f")),
        ("Control periods without a policy action per episode, mean", mean_rows(grouped, "idle", ".0f")),
        ("Control periods per episode, mean", mean_rows(grouped, "periods", ".0f")),
        ("Holds per episode, mean", mean_rows(grouped, "holds", ".1f")),
        ("Largest jump of a command, share of its range, mean", mean_rows(grouped, "largest_jump", ".0%")),
        ("Clamped commands per episode, mean", mean_rows(grouped, "clamped", ".1f")),
    ]


def write_delay_page(path: Path, rows: Sequence[DelayRow], *, title: str, note: str, command: str) -> None:
    """Write the HTML page of a delay table."""
    grouped = cells(rows)
    header = ["schedule", *(f"{delay:g} ms" for delay in next(iter(grouped.values())))]
    (first, success), *others = delay_tables(grouped)
    lines = [
        Series(
            name=schedule,
            x=list(by_delay),
            y=[100 * sum(row.success for row in one) / len(one) for one in by_delay.values()],
        )
        for schedule, by_delay in grouped.items()
    ]
    chart = Chart(caption="success [%]", series=lines, x_label="inference delay [ms]", y_label="success [%]")
    sections: list[Section] = [
        Table(title=first, header=header, rows=success, note=note),
        Charts(title="Success against delay", charts=[chart]),
        Text(title="Chunk underruns", paragraphs=dry_lines(grouped) or ["None."]),
        *(Table(title=name, header=header, rows=table) for name, table in others),
        *closing_sections([(command, "this table")]),
    ]
    write_report(path, title=title, subtitle=machine(), sections=sections)


def delay_markdown(rows: Sequence[DelayRow], *, title: str, note: str, command: str) -> str:
    """Return a delay table as a page of Markdown."""
    grouped = cells(rows)
    header = ["schedule", *(f"{delay:g} ms" for delay in next(iter(grouped.values())))]
    versions = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    tables = "\n".join(
        f"## {name}\n\n{markdown_table(header, table)}\n" for name, table in delay_tables(grouped)
    )
    dry = "\n".join(f"- {line}" for line in dry_lines(grouped)) or "None."
    return (
        f"# {title}\n\n`{command}`\n\n{machine()}; {versions}.\n\n{note}\n\n{tables}\n"
        f"## Chunk underruns\n\n{dry}\n"
    )
