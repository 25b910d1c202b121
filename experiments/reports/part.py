"""The page of the check of an environment, a robot or a codec: findings, pictures, and what was measured."""

from collections import Counter
from pathlib import Path

from experiments.checks.examination import NOT_TRIED, Examination
from experiments.reports.html import Commands, Headline, Section, Table, write_report
from experiments.reports.pages import machine
from experiments.reports.recording import ContactSheet, Findings, strip
from vla.data.quality.findings import SEVERITIES


def write_part_page(path: Path, seen: Examination, *, title: str, command: str) -> None:
    """Write the page.

    Args:
        path: where, usually ``report.html``.
        seen: what was looked at and found.
        title: what was checked.
        command: what was typed.
    """
    counts = Counter(one.severity for one in seen.findings)
    tiles = [
        Headline(
            label=f"{severity}s",
            value=str(counts[severity]),
            met=counts[severity] == 0 if severity == "error" else None,
        )
        for severity in SEVERITIES
    ]
    tiles.append(Headline(label=NOT_TRIED, value=str(sum(row[2] == NOT_TRIED for row in seen.rows))))
    sections: list[Section] = [Findings(title="Findings", findings=seen.findings)]
    if seen.strips:
        strips = [(caption, strip(pictures)) for caption, pictures in seen.strips]
        sections.append(ContactSheet(title="Pictures", strips=strips))
    header = ["check", "where", "verdict", "measured"]
    sections.append(Table(title="Checks", header=header, rows=seen.rows))
    sections.append(Commands(title="Command", commands=[(command, "")]))
    write_report(path, title=f"Check of {title}", subtitle=machine(), headlines=tiles, sections=sections)
