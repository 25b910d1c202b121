"""The report is one page that needs nothing else and cannot be broken by what it quotes."""

import json
import re
from html.parser import HTMLParser

import pytest
from fake_env import FACTORY, PointPolicy

from envs.evaluation.evaluate import EvaluationPlan, evaluate
from experiments.reports.charts import Series, line_chart, nice_ticks, rate_bar
from experiments.reports.html import (
    Chart,
    Charts,
    Commands,
    Headline,
    Success,
    Table,
    Text,
    Videos,
    write_report,
)
from experiments.reports.pages import training_section

VOID = {"meta", "img", "br", "line", "link"}


class Outline(HTMLParser):
    """Checks that tags close in order, and gathers text and addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.addresses, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def outline(path):
    parser = Outline()
    parser.feed(path.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    found = {}
    for mode in ("original", "swapped"):
        plan = EvaluationPlan(
            env_configs={"point": {"task": "point"}},
            episodes_per_task=4,
            first_seed=20,
            instruction_mode=mode,
            execute_horizon=5,
            videos_per_task=2,
        )
        run_dir = tmp_path_factory.mktemp(mode)
        found[f"{mode} instruction"] = evaluate(
            PointPolicy(), plan, run_dir=run_dir, policy_id="a", env_factory=FACTORY, show_progress=False
        )
    return found


def test_a_page_holds_everything_and_loads_nothing(evaluations, tmp_path):
    path = tmp_path / "report.html"
    write_report(
        path,
        title="Quick <start>",
        headlines=[Headline(label="mean success", value="100 %", note="aim: 85 %", met=True)],
        sections=[
            Success(title="Success", evaluations=evaluations, targets={"original instruction": 0.85}),
            Videos(title="Episodes", evaluation=evaluations["swapped instruction"]),
            Table(title="Parity", header=["check", "result"], rows=[["tokens", "64 of 64"]]),
            Commands(title="Commands", commands=[("make quickstart", "all of it")]),
            Text(title="Notes", paragraphs=["a < b & c"]),
        ],
    )
    page = outline(path)
    text = " ".join(page.text)
    assert "Quick <start>" in text
    assert "a < b & c" in text
    assert "4/4" in text
    assert "Evaluated on seeds 20 to 23." in text
    assert page.tags.count("video") == page.tags.count("img") == 2
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?:|url\(|@import|<script", path.read_text(encoding="utf-8"))
    assert path.read_text(encoding="utf-8").index("failure</span>") > 0


def test_charts_draw_finite_points_only(tmp_path):
    series = Series(name="loss", x=[0, 1, 2, 3], y=[2.0, float("nan"), 1.0, float("inf")])
    drawing = line_chart([series], x_label="step", y_label="loss")
    assert "nan" not in drawing
    assert "inf" not in drawing
    assert drawing.count(",") == 2
    with pytest.raises(ValueError, match=r"no finite points in \['loss'\]"):
        line_chart([Series(name="loss", x=[], y=[])], x_label="step", y_label="loss")
    empty = Chart(caption="Loss", series=[Series(name="a", x=[], y=[])], x_label="step", y_label="loss")
    write_report(tmp_path / "r.html", title="t", sections=[Charts(title="Training", charts=[empty])])
    assert "svg" not in outline(tmp_path / "r.html").tags


def test_a_point_that_stands_alone_is_seen():
    lines = [Series(name="training", x=[1, 2, 3], y=[3, 2, 1]), Series(name="held out", x=[3], y=[2])]
    assert line_chart(lines, x_label="step", y_label="loss").count("<circle") == 4
    long = Series(name="long", x=list(range(100)), y=list(range(100)))
    assert "<circle" not in line_chart([long], x_label="step", y_label="loss")


def test_the_training_page_compares_like_with_like(tmp_path):
    rows = [
        {"step": 1, "loss": 4.0, "action_loss": 1.0, "loss/later_states": 3.0, "token_accuracy": 0.1},
        {
            "step": 1,
            "validation/loss": 5.0,
            "validation/action_loss": 1.5,
            "validation/loss/later_states": 3.5,
        },
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = {one.caption: [tuple(s.y) for s in one.series] for one in training_section(path).charts}
    assert drawn == {
        "loss of actions": [(1.0,), (1.5,)],
        "loss of later states": [(3.0,), (3.5,)],
        "accuracy": [(0.1,)],
    }


def test_long_series_are_thinned_and_keep_their_ends():
    points = Series(name="a", x=range(10_000), y=range(10_000)).points()
    assert len(points) == 400
    assert (points[0], points[-1]) == ((0.0, 0.0), (9999.0, 9999.0))


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.0, 0.003), (2.1, 2.2), (5.0, 5.0), (-3.0, 12_345.0)]
)
def test_ticks_span_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 9


def test_a_bar_shows_rate_interval_and_aim():
    bar = rate_bar(0.9, 0.78, 0.96, color="#000", target=0.85)
    assert "width:90.0%" in bar
    assert "left:78.0%;width:18.0%" in bar
    assert "left:85.0%" in bar


def test_a_missing_video_is_an_error_and_keeps_the_old_page(evaluations, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    gone = evaluations["original instruction"]
    (gone.run_dir / gone.videos[0].video).unlink()
    with pytest.raises(FileNotFoundError):
        write_report(path, title="t", sections=[Videos(title="Episodes", evaluation=gone)])
    assert path.read_text() == "old"
