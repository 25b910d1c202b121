"""The page of a policy compared with recorded episodes: errors by channel, and one episode drawn."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.offline import OfflineEvaluation, error_rows
from experiments.reports.charts import Series
from experiments.reports.html import Chart, Charts, Headline, Table, write_report
from experiments.reports.pages import closing_sections, machine

_NOTE = (
    "Means over all periods of the episodes; intervals: 95 %, bootstrap over episodes. Staying "
    "still: the error of keeping the last command while each chunk is executed. A ratio well below 1 "
    "says that the policy knows where to go; it does not say that it arrives."
)


def write_offline_page(path: Path, evaluation: OfflineEvaluation, *, title: str, command: str) -> None:
    """Write the page."""
    header, rows = error_rows(evaluation)
    ratios = [one.error / one.still for one in evaluation.channels if one.still > 0]
    headlines = [
        Headline(label="episodes", value=str(evaluation.num_episodes), note=evaluation.what),
        Headline(
            label="error against staying still",
            value=f"{np.mean(ratios):.2f}" if ratios else "-",
            note="mean over channels; 1 is no better",
        ),
    ]
    write_report(
        path,
        title=title,
        subtitle=machine(),
        headlines=headlines,
        sections=[
            Table(title="Errors", header=header, rows=rows, note=_NOTE),
            Charts(title="One episode, of middling error", charts=_charts(evaluation)),
            *closing_sections([(command, "this page")]),
        ],
    )


def _charts(evaluation: OfflineEvaluation) -> Sequence[Chart]:
    trace, spec = evaluation.trace, evaluation.spec
    seconds = (np.arange(len(trace.recorded)) / spec.control_hz).tolist()
    return [
        Chart(
            caption=channel.name,
            series=[
                Series(name="recorded", x=seconds, y=trace.recorded[:, i].tolist()),
                Series(name="predicted", x=seconds, y=trace.predicted[:, i].tolist()),
            ],
            x_label="time [s]",
            y_label=channel.unit if channel.unit != "1" else "",
        )
        for i, channel in enumerate(spec.action)
    ]
