"""The page of `experiments.improve`: success before and after each round, and what was corrected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.evaluation.comparison import Comparison
from envs.evaluation.results import Evaluation
from experiments.corrections import COUNTS_HEADER, CorrectionCounts, count_rows
from experiments.reports.html import Headline, Section, Success, Table, Text, Videos, write_report
from experiments.reports.pages import closing_sections, machine, percent, training_section

NOTE = (
    "All rounds were evaluated on the same scenes, which differ from those in which the policy practiced. It "
    "has seen more demonstrations than a policy trained by cloning alone: name the corrections beside it."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What came of a round; 0 is the policy as it came, which nobody corrected."""

    number: int
    evaluation: Evaluation
    counts: Mapping[str, CorrectionCounts]
    metrics_path: Path | None

    @property
    def name(self) -> str:
        """What to call it."""
        return f"after round {self.number}" if self.number else "before"


def write_improve_page(
    path: Path,
    rounds: Sequence[Round],
    *,
    title: str,
    comparison: Comparison,
    seconds: Mapping[str, float],
    command: str,
) -> None:
    """Write the page.

    Args:
        path: of the page.
        rounds: from the policy as it came to the last round.
        title: of the page.
        comparison: of the last round with the first.
        seconds: that each stage took.
        command: that made it.
    """
    last = rounds[-1]
    sections: list[Section] = [
        Success(
            title="Success",
            evaluations={one.name: one.evaluation for one in rounds},
            targets={},
            note=f"{comparison.verdict(last.name, rounds[0].name)} {NOTE}",
        )
    ]
    for one in rounds[1:]:
        title_of_round = f"Round {one.number}: where the expert took over"
        sections.append(Table(title=title_of_round, header=COUNTS_HEADER, rows=count_rows(one.counts)))
        if one.metrics_path is not None:
            sections.append(training_section(one.metrics_path))
    if last.evaluation.videos:
        sections.append(
            Videos(title=f"Episodes {last.name}", evaluation=last.evaluation, note="Failures first.")
        )
    sections += _closing(seconds, command)
    write_report(
        path,
        title=title,
        subtitle=machine(),
        headlines=[
            Headline(
                label=one.name,
                value=percent(one.evaluation.mean_success_rate),
                note=f"95 % interval {one.evaluation.pooled_interval.in_percent()}, "
                f"{len(one.evaluation.rows)} episodes",
                met=None,
            )
            for one in rounds
        ],
        sections=sections,
    )


def _closing(seconds: Mapping[str, float], command: str) -> list[Section]:
    timings = [[name, f"{value / 60:.1f}"] for name, value in seconds.items()]
    how = (
        "Take-overs begin where the policy had led the robot: in episodes that it failed several, in others "
        "one. What the expert did from there is recorded. Where it fails itself it takes over after half the "
        "time, and half of that, until it does not; if it always fails nothing is recorded."
    )
    return [
        Table(title="Time", header=["stage", "minutes"], rows=timings),
        Text(title="How to read it", paragraphs=[how]),
        *closing_sections([(command, "this page; with more rounds it goes on")]),
    ]
