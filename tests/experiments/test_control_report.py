"""What a run of a robot came to: counted from its recording, told in its page and its exit code."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from program_fixtures import composed

from envs.tabletop.env import TabletopEnv
from experiments.config import cli
from experiments.control import EXIT_FAULT, EXIT_STOPPED, exit_code
from experiments.reports.control import summarize, write_control_page, write_film
from policies.runtime.recorder import PeriodRecord, Recorder, read_recording
from policies.runtime.states import State

ZEROS = [0.0] * 5
ROOT = Path(__file__).parents[2]


def record(index, **changes):
    plain = PeriodRecord(
        index=index,
        now=0.05 * index,
        late_s=0.0,
        state="RUNNING",
        reason="",
        observation_stamp=0.05 * index,
        measured=[0.5, 0.0, 0.1, 0.0, 1.0, 1.0],
        target=[0.01, *ZEROS, 1.0],
        commanded=[0.01, *ZEROS, 1.0],
        position=[0.5, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0],
        start=[0.5, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0] if index == 0 else None,
        chunk_seq=1 + index // 4,
        chunk_index=index % 4,
        chunk_age_s=0.05 * (index % 4),
        inference_s=0.04 if index % 4 == 0 else None,
        clamps=[],
        events=[],
        missed=0,
    )
    return dataclasses.replace(plain, **changes)


def recording(directory, records):
    limits = composed("control").robot.limits
    spec = TabletopEnv(task="reach", image_size=16).robot_spec
    with Recorder(directory, spec=spec, about={"limits": limits.to_json()}) as recorder:
        for one in records:
            recorder.append(one)
    return read_recording(directory)


def test_a_summary_counts_what_was_recorded(tmp_path):
    records = [record(index) for index in range(8)]
    records[5] = record(5, clamps=["velocity:delta_x"], missed=2, events=["<b>odd</b>"])
    records[4] = record(4, target=[0.02, *ZEROS, 1.0])
    records[7] = record(7, missed=2, state="HOLD", reason="no action is left")
    summary = summarize(recording(tmp_path, records))
    assert (summary.periods, summary.chunks, summary.missed) == (8, 2, 2)
    assert summary.rate_hz == pytest.approx(20.0)
    assert summary.inference_ms == pytest.approx((40.0, 40.0, 40.0))
    assert summary.seam_jump == pytest.approx(0.2, rel=1e-5)  # 0.01 of 0.05 m, from period 3 to 4
    assert summary.clamps == {"velocity:delta_x": 1}
    assert summary.end == "HOLD: no action is left"
    assert summary.violations == []
    assert dict(summary.rows())["sent commands that broke a limit"] == "0"


def held(index, state, *, x):
    """A period that executes nothing and commands a position."""
    place = [x, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0]
    return record(index, state=state, target=None, position=place, inference_s=None)


def test_times_to_hold_rest_and_stop_are_read_from_the_recording(tmp_path):
    records = [record(index, position=[0.5 + 0.01 * index, *ZEROS, 1.0]) for index in range(4)]
    records += [held(4, "HOLD", x=0.535), held(5, "HOLD", x=0.536), held(6, "HOLD", x=0.536)]
    records += [record(7), record(8)]  # it resumed
    records += [held(9, "HOLD", x=0.51), held(10, "HOLD", x=0.51), held(11, "STOPPED", x=0.51)]
    summary = summarize(recording(tmp_path, records))
    assert summary.reactions.to_hold_s == pytest.approx([0.05, 0.05])
    assert summary.reactions.to_rest_s == pytest.approx([0.15, 0.10])
    assert summary.reactions.to_stop_s == pytest.approx([0.15])
    rows = dict(summary.rows())
    assert rows["time from the last action to holding, median / p90 / p99"] == "50 / 50 / 50 ms in 2 events"
    written = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert written["state"] == "STOPPED"
    assert written["reactions"]["to_stop_s"]["p50_p90_p99"] == pytest.approx([0.15, 0.15, 0.15])
    write_control_page(tmp_path / "report.html", recording(tmp_path, records), title="a run", command="c")
    assert "time from the last action to a stop" in (tmp_path / "report.html").read_text()


def test_a_run_that_never_held_and_one_that_was_armed_again_have_no_such_times(tmp_path):
    summary = summarize(recording(tmp_path, [record(index) for index in range(4)]))
    rows = dict(summary.rows())
    assert rows["time from the last action to holding, median / p90 / p99"] == "did not occur"
    again = [record(0), held(1, "IDLE", x=0.5), held(2, "ARMED", x=0.5), held(3, "STOPPED", x=0.5)]
    assert summarize(recording(tmp_path, again)).reactions.to_stop_s == []


def test_a_run_that_was_stopped_or_failed_ends_with_a_code_of_its_own():
    assert {state.value: exit_code(state) for state in State} == {
        "IDLE": 0, "ARMED": 0, "RUNNING": 0, "HOLD": 0, "STOPPED": EXIT_STOPPED, "FAULT": EXIT_FAULT
    }  # fmt: skip
    codes = {0, cli.EXIT_FAILED, cli.EXIT_CONFIG, EXIT_STOPPED, EXIT_FAULT}
    assert len(codes) == 5, "codes must differ"


def test_the_program_of_a_run_that_was_stopped_reports_and_ends_with_code_3(tmp_path):
    (tmp_path / "made").mkdir()
    recording(tmp_path / "made", [record(0), record(1), held(2, "STOPPED", x=0.5)])
    script = (
        "from pathlib import Path\n"
        "from experiments import control\n"
        "from experiments.config import cli\n"
        "from policies.runtime.recorder import read_recording\n"
        f"made = Path({str(tmp_path / 'made')!r})\n"
        "control.control_robot = lambda *_: (control.Outcome(recording=read_recording(made)), False)\n"
        "cli.run(control.main)\n"
    )
    command = [sys.executable, "-c", script, f"bundle={tmp_path}", f"out_dir={tmp_path / 'run'}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == EXIT_STOPPED, ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"report: {tmp_path / 'run' / 'report.html'}" in ended.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["state"], summary["goal_reached"], summary["limits_broken"]) == ("STOPPED", False, 0)


def test_a_command_that_broke_a_limit_shows_in_the_page(tmp_path):
    records = [record(index) for index in range(8)]
    records[6] = record(6, commanded=[0.2, *ZEROS, 1.0], events=["<script>alert(1)</script>"])
    written = recording(tmp_path, records)
    assert {one.kind for one in summarize(written).violations} >= {"velocity", "acceleration"}
    write_control_page(
        tmp_path / "report.html", written, title="a run", command="python -m experiments.control"
    )
    page = (tmp_path / "report.html").read_text()
    assert "tile missed" in page
    assert "<script>" not in page
    assert "tcp_x" in page


def test_the_page_names_instruction_and_goal_and_shows_the_film(tmp_path):
    one = recording(tmp_path, [record(index) for index in range(8)])
    one = dataclasses.replace(one, about={**one.about, "instruction": "", "goal": "lift the <cube>"})
    frames = [(0.2 * i, np.full((8, 16, 3), 20 * i, np.uint8)) for i in range(6)]
    assert write_film(tmp_path / "film.mp4", frames) == ""
    command = "python -m experiments.control " + "bundle=somewhere/far/away " * 20
    write_control_page(
        tmp_path / "report.html",
        one,
        title="a run",
        command=command,
        is_reached=False,
        film=tmp_path / "film.mp4",
    )
    page = (tmp_path / "report.html").read_text()
    assert "<td>instruction</td><td>&#x27;&#x27;</td>" in page
    assert "&#x27;lift the &lt;cube&gt;&#x27;" in page
    assert "<td>goal reached</td><td>not reached</td>" in page
    assert page.count("data:video/mp4;base64,") == 1
    assert f"<pre>{command}</pre><button" in page
    assert "white-space: pre-wrap" in page


def test_a_run_without_a_scene_is_judged_by_nobody(tmp_path):
    one = recording(tmp_path, [record(0)])
    write_control_page(tmp_path / "report.html", one, title="a run", command="c")
    page = (tmp_path / "report.html").read_text()
    assert "none: no scene judges this run" in page
    assert "<td>goal reached</td><td>not judged</td>" in page
    assert "<video" not in page


def test_a_film_that_cannot_be_written_is_explained(tmp_path, monkeypatch):
    frame = (0.0, np.zeros((8, 16, 3), np.uint8))
    assert "1 frames, too few" in write_film(tmp_path / "film.mp4", [frame])
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'vla-stack[data]'" in write_film(tmp_path / "film.mp4", [frame, frame])
    assert not (tmp_path / "film.mp4").exists()
