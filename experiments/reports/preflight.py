"""The page and the table of a dry run of `control`: a green, yellow or red line for each check."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from experiments.reports.charts import Series
from experiments.reports.html import Chart, Charts, Headline, write_report
from experiments.reports.pages import closing_sections, machine
from policies.runtime.preflight import BAD, DOUBTFUL, GOOD, Check, Seen
from vla.spec import RobotSpec

MARKS = {GOOD: "ok", DOUBTFUL: "look", BAD: "WRONG"}
_COLORS = {GOOD: "#1b7f4d", DOUBTFUL: "#9a6700", BAD: "#b3261e"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckLines:
    """A row for each check, marked by its level."""

    title: str
    checks: Sequence[Check]

    def to_html(self) -> str:
        """Return the table."""
        head = "<tr><th></th><th>what</th><th>found</th><th>wanted</th></tr>"
        rows = "".join(
            f'<tr><td style="color:{_COLORS[one.level]};font-weight:650">{MARKS[one.level]}</td>'
            f"<td>{html.escape(one.what)}</td><td>{html.escape(one.found)}"
            + (f'<p class="note">{html.escape(one.advice)}</p>' if one.advice else "")
            + f"</td><td>{html.escape(one.wanted)}</td></tr>"
            for one in self.checks
        )
        return f'<div class="wide"><table>{head}{rows}</table></div>'


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """The newest picture of each camera, to be compared by eye with the recording."""

    title: str
    by_camera: Mapping[str, UInt8[np.ndarray, "h w 3"]]

    def to_html(self) -> str:
        """Return them side by side."""
        figures = []
        for name, picture in self.by_camera.items():
            file = io.BytesIO()
            Image.fromarray(picture).save(file, format="PNG")
            data = base64.b64encode(file.getvalue()).decode()
            figures.append(
                f"<figure><figcaption>{html.escape(name)}</figcaption>"
                f'<img src="data:image/png;base64,{data}" alt="" style="max-width:100%;min-width:192px">'
                "</figure>"
            )
        return f'<div class="charts">{"".join(figures)}</div>'


def check_lines(found: Sequence[Check]) -> str:
    """Return the table for the terminal."""
    wide = 2 + max(len(one.what) for one in found)
    lines = []
    for one in found:
        lines.append(f"{MARKS[one.level]:<7}{one.what:<{wide}}{one.found}")
        if one.advice:
            lines.append(f"{'':<{7 + wide}}-> {one.advice}")
    return "\n".join(lines)


def write_preflight_page(
    path: Path, found: Sequence[Check], seen: Seen, *, spec: RobotSpec, title: str, command: str
) -> None:
    """Write the page: the checks, worst first, and what was measured over time.

    Raises:
        OSError: it cannot be written.
    """
    counts = {level: sum(one.level == level for one in found) for level in (BAD, DOUBTFUL, GOOD)}
    headlines = [
        Headline(label="wrong", value=str(counts[BAD]), met=not counts[BAD], note="aim: none"),
        Headline(label="to look at", value=str(counts[DOUBTFUL])),
        Headline(label="in order", value=str(counts[GOOD])),
        Headline(label="sent to the robot", value="nothing"),
    ]
    order = (BAD, DOUBTFUL, GOOD)
    began = seen.readings[0].state_stamp if seen.readings else 0.0
    times = [reading.state_stamp - began for reading in seen.readings]
    states = [
        Chart(
            caption=channel.name,
            series=[Series(name="measured", x=times, y=[float(one.state[i]) for one in seen.readings])],
            x_label="time [s]",
            y_label=channel.unit,
        )
        for i, channel in enumerate(spec.state)
    ]
    write_report(
        path,
        title=title,
        subtitle=machine(),
        headlines=headlines,
        sections=[
            CheckLines(title="Checks", checks=sorted(found, key=lambda one: order.index(one.level))),
            *([Pictures(title="Cameras", by_camera=seen.readings[-1].images)] if seen.readings else []),
            Charts(title="State, while nothing was sent", charts=states),
            *closing_sections([(command, "this dry run")]),
        ],
    )
