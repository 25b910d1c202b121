"""One HTML page that tells what was done and how it went, and needs no other file and no network.

A report is a title, a few headline numbers and sections; each section is plain data that can write itself as
HTML. Pictures and videos are embedded. It runs nothing and reads nothing but the media that it embeds.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from envs.evaluation.results import Evaluation, VideoRecord
from envs.evaluation.statistics import Interval, wilson_interval
from experiments.reports.charts import COLORS, Series, line_chart, rate_bar
from experiments.reports.style import STYLE
from vla.files import atomic_write_text

_COPY = (
    """<button type="button" onclick="navigator.clipboard.writeText(this.previousSibling.textContent)"""
    """.then(() => { this.textContent = 'copied' })">copy</button>"""
)
_MODE_COLORS = {"original": COLORS[0], "swapped": COLORS[1], "blank": COLORS[2]}


@runtime_checkable
class Section(Protocol):
    """A part of a report."""

    @property
    def title(self) -> str:
        """Heading of the part."""
        ...

    def to_html(self) -> str:
        """Return its content, without the heading."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """A number to see first; `met` tells whether its aim was reached, or nothing if it has none."""

    label: str
    value: str
    note: str = ""
    met: bool | None = None

    def to_html(self) -> str:
        """Return a tile."""
        status = {None: "", True: " met", False: " missed"}[self.met]
        mark = {None: "", True: " &#10003;", False: " &#10007;"}[self.met]
        return (
            f'<div class="tile{status}"><div class="what">{html.escape(self.label)}</div>'
            f'<div class="value">{html.escape(self.value)}{mark}</div>'
            f'<div class="note">{html.escape(self.note)}</div></div>'
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Paragraphs."""

    title: str
    paragraphs: Sequence[str]

    def to_html(self) -> str:
        """Return the paragraphs."""
        return "".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in self.paragraphs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of text under a header; for versions, timings, parity and the like. Numbers go to the right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def to_html(self) -> str:
        """Return the table."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows
        )
        return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>{_note(self.note)}'


@dataclass(frozen=True, kw_only=True, slots=True)
class Commands:
    """Commands as typed, each with what it does; a click selects one, a button copies it."""

    title: str
    commands: Sequence[tuple[str, str]]  # command, comment

    def to_html(self) -> str:
        """Return a block for each."""
        return "".join(
            f'<p class="note">{html.escape(comment)}</p><div class="command"><pre>{html.escape(line)}</pre>'
            f"{_COPY}</div>"
            for line, comment in self.commands
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One drawing of lines."""

    caption: str
    series: Sequence[Series]
    x_label: str
    y_label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Charts:
    """Drawings side by side, such as loss and token accuracy over training steps."""

    title: str
    charts: Sequence[Chart]
    note: str = ""

    def to_html(self) -> str:
        """Return the drawings; a chart without points says so."""
        figures = (
            f"<figure><figcaption>{html.escape(chart.caption)}</figcaption>"
            f"{line_chart(chart.series, x_label=chart.x_label, y_label=chart.y_label)}</figure>"
            for chart in self.charts
            if any(one.points() for one in chart.series)
        )
        return f'<div class="charts">{"".join(figures)}</div>{_note(self.note)}'


@dataclass(frozen=True, kw_only=True, slots=True)
class Success:
    """Success by task, a column for each evaluation, with Wilson 95 % intervals as whiskers.

    `evaluations` maps a column's name ("original instruction", "bundle") to what it shows. `targets` maps the
    same names to the rate that was aimed at, if any.
    """

    title: str
    evaluations: Mapping[str, Evaluation]
    targets: Mapping[str, float]
    note: str = ""

    def to_html(self) -> str:
        """Return the table with bars."""
        tasks = list(dict.fromkeys(task for one in self.evaluations.values() for task in one.tasks))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.evaluations)
        rows = [
            f"<tr><th>{html.escape(task)}</th>" + "".join(self._cell(name, task) for name in self.evaluations)
            for task in tasks
        ]
        groups = next((one.groups for one in self.evaluations.values()), {})
        rows += [
            f'<tr class="total"><th>{html.escape(group.label(name))}</th>'
            + "".join(self._group_cell(column, name) for column in self.evaluations)
            for name, group in groups.items()
        ]
        rows.append(
            '<tr class="total"><th>mean over tasks</th>'
            + "".join(self._mean_cell(name) for name in self.evaluations)
        )
        seeds = {name: _seeds(one) for name, one in self.evaluations.items()}
        distinct = set(seeds.values())
        listed = distinct if len(distinct) == 1 else [f"{name}: {those}" for name, those in seeds.items()]
        explained = (
            "Bars: success rate. Whiskers: Wilson 95 % intervals; that of the mean pools all episodes."
            + (" Vertical mark: the aim." if self.targets else "")
            + f" Evaluated on {'; '.join(listed)}."
        )
        body = "</tr>".join(rows)
        table = f'<table class="success"><tr><th>task</th>{head}</tr>{body}</tr></table>'
        return f'<div class="wide">{table}</div>{_note(explained)}{_note(self.note)}'

    def _cell(self, name: str, task: str) -> str:
        result = self.evaluations[name].tasks.get(task)
        if result is None:
            return "<td>&ndash;</td>"
        return self._bar(name, result.success_rate, result.interval, result.successes, result.episodes)

    def _group_cell(self, name: str, group: str) -> str:
        result = self.evaluations[name].groups.get(group)
        if result is None:
            return "<td>&ndash;</td>"
        return self._bar(name, result.success_rate, result.interval, result.successes, result.episodes)

    def _mean_cell(self, name: str) -> str:
        evaluation = self.evaluations[name]
        if not evaluation.rows:
            return "<td>&ndash;</td>"
        successes, episodes = sum(row.success for row in evaluation.rows), len(evaluation.rows)
        interval = wilson_interval(successes, episodes)
        return self._bar(name, evaluation.mean_success_rate, interval, successes, episodes)

    def _bar(self, name: str, rate: float, interval: Interval, successes: int, episodes: int) -> str:
        color = _MODE_COLORS[self.evaluations[name].plan.instruction_mode]
        bar = rate_bar(rate, interval.low, interval.high, color=color, target=self.targets.get(name))
        counts = f"<small>{interval.in_percent()} &middot; {successes}/{episodes}</small>"
        return f"<td>{bar}<strong>{100 * rate:.0f} %</strong> {counts}</td>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Videos:
    """Filmed episodes of one evaluation, failures first."""

    title: str
    evaluation: Evaluation
    note: str = ""

    def to_html(self) -> str:
        """Return one card per episode: video, filmstrip, instruction and outcome."""
        records = sorted(self.evaluation.videos, key=lambda record: record.success)
        if not records:
            return "<p>No episode was filmed.</p>"
        cards = "".join(_card(self.evaluation.run_dir, record) for record in records)
        return f'<div class="cards">{cards}</div>{_note(self.note)}'


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """One video."""

    title: str
    path: Path
    note: str = ""

    def to_html(self) -> str:
        """Return the video, embedded."""
        video = _embedded(self.path, "video/mp4")
        return f'<video class="film" controls loop muted playsinline src="{video}"></video>{_note(self.note)}'


def _card(run_dir: Path, record: VideoRecord) -> str:
    video = _embedded(run_dir / record.video, "video/mp4")
    strip = _embedded(run_dir / record.filmstrip, "image/jpeg")
    verdict = "success" if record.success else "failure"
    given = html.escape(record.given_instruction or "(nothing)")
    goal = (
        ""
        if record.given_instruction == record.instruction
        else f"<br>goal: {html.escape(record.instruction)}"
    )
    differs = "" if record.replay_agrees else " &middot; the replay ended differently"
    return (
        f'<article class="{verdict}"><video controls loop muted playsinline preload="metadata" src="{video}">'
        f'</video><p><span class="badge">{verdict}</span> <q>{given}</q>{goal}</p>'
        f'<p class="note">{html.escape(record.task)}, seed {record.seed}, {record.steps} steps{differs}</p>'
        f'<img alt="filmstrip of the episode" src="{strip}"></article>'
    )


def _embedded(path: Path, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def _seeds(evaluation: Evaluation) -> str:
    if not evaluation.rows:
        return "no episodes"
    seeds = [row.seed for row in evaluation.rows]
    return f"seeds {min(seeds)} to {max(seeds)}"


def write_report(
    path: Path,
    *,
    title: str,
    subtitle: str = "",
    headlines: Sequence[Headline] = (),
    sections: Sequence[Section],
) -> None:
    """Write the page as a whole.

    Args:
        path: where, usually ``report.html``.
        title: what was done.
        subtitle: one line, such as date, machine and duration.
        headlines: the numbers to see first.
        sections: in the order in which they are shown.

    Raises:
        FileNotFoundError: a video or filmstrip that a section names is gone.
        OSError: the page could not be written; an older one is kept.
    """
    tiles = "".join(headline.to_html() for headline in headlines)
    parts = "".join(
        f"<section><h2>{html.escape(one.title)}</h2>{one.to_html()}</section>" for one in sections
    )
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p></header>"
        f'<main><div class="tiles">{tiles}</div>{parts}</main></body></html>\n'
    )
    atomic_write_text(path, page)
