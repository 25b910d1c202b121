"""The HTML reports of evaluations and of the quickstart: what goes onto the page. envs/report.py draws it."""

import datetime
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from envs.charts import Series
from envs.provenance import software_versions
from envs.report import Chart, Charts, Commands, Headline, Section, Success, Table, Videos, write_report
from envs.results import Evaluation
from vla.training.metrics import read_metrics

RIGHT_TARGET, SWAPPED_TARGET = 0.85, 0.35  # the aims of the quickstart: at least, at most


def machine() -> str:
    """Return date, processor architecture, number of cores and system in a line."""
    day = datetime.date.today().isoformat()
    return f"{day}, {platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def percent(rate: float) -> str:
    """Return a rate in whole percent."""
    return f"{100 * rate:.0f} %"


def headlines(results: Mapping[str, Evaluation], *, with_aims: bool) -> list[Headline]:
    """Return mean success under each condition; with the quickstart's aims if asked for."""
    tiles = []
    for condition, evaluation in results.items():
        rate, interval = evaluation.mean_success_rate, evaluation.pooled_interval
        note = f"95 % interval {percent(interval.low)} to {percent(interval.high)}"
        met = None
        if with_aims and condition == "right":
            note, met = f"{note}; aim: at least {percent(RIGHT_TARGET)}", rate >= RIGHT_TARGET
        if with_aims and condition == "swapped":
            note, met = f"{note}; aim: at most {percent(SWAPPED_TARGET)}", rate <= SWAPPED_TARGET
        tiles.append(Headline(label=f"{condition} instruction", value=percent(rate), note=note, met=met))
    return tiles


def success_sections(results: Mapping[str, Evaluation]) -> list[Section]:
    """Return the success table and the videos."""
    named = {f"{condition} instruction": evaluation for condition, evaluation in results.items()}
    note = (
        "Swapped: the policy is told to do it with another object of the same scene; blank: it is told "
        "nothing. Success is always that of the original instruction, so both should be low."
    )
    sections: list[Section] = [
        Success(title="Success", evaluations=named, targets={}, note=note if len(named) > 1 else "")
    ]
    sections += [
        Videos(title=f"Episodes, {name}", evaluation=evaluation, note="Failures first.")
        for name, evaluation in named.items()
        if evaluation.videos
    ]
    return sections


def training_section(metrics_path: Path) -> Charts:
    """Return loss and token accuracy over training steps, held-out values beside them."""
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

    return Charts(
        title="Training", charts=[chart("loss [nats per token]", "loss"), chart("accuracy", "token_accuracy")]
    )


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
) -> None:
    """Write the report of a quickstart."""
    minutes = sum(seconds.values()) / 60
    timings = [[name, f"{value / 60:.1f}"] for name, value in seconds.items()]
    by_name = {f"bundle, {condition} instruction": one for condition, one in bundle.items()}
    sections: list[Section] = [
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
