"""Summarizes a recording: numbers for the terminal and one HTML page. Reads recordings, drives nothing."""

import importlib
import importlib.util
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from experiments.reports.charts import Series
from experiments.reports.html import Chart, Charts, Film, Headline, Section, Table, write_report
from experiments.reports.pages import closing_sections, machine
from policies.runtime.clock import MISSED_WINDOW_S
from policies.runtime.limits import SafetyLimits, Violation
from policies.runtime.recorder import PeriodRecord, Recording, audit_recording
from policies.runtime.states import LATCHED, State

_MAX_EVENTS = 60
_FEWEST_FRAMES, _MOST_FPS, _LEAST_SIZE = 2, 60.0, 64  # of a film, its frames in pixels
GOAL_WORDS = {True: "reached", False: "not reached", None: "not judged"}
_AT_REST = 1e-6  # change of a commanded position in a period, as a share of its range
_LATCHED = tuple(state.value for state in LATCHED)
_HELD = (State.HOLD.value, *_LATCHED)
_BETWEEN = (State.IDLE.value, State.ARMED.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reactions:
    """How soon the robot held, rested and stopped [s]: a number for each time that it did.

    All count from the last period in which an action of the policy was executed, so that the next period
    is the soonest; what led to it (a silent server, a refused action) may have begun earlier.
    """

    to_hold_s: Sequence[float]  # until the first period that executed none, in HOLD, STOPPED or FAULT
    to_rest_s: Sequence[float]  # until its commanded motion had ended; no number where the robot itself stops
    to_stop_s: Sequence[float]  # until STOPPED or FAULT

    def rows(self) -> list[list[str]]:
        """Return name and percentiles of each."""
        return [
            [f"time from the last action to {name}, median / p90 / p99", _percentiles_text(values)]
            for name, values in (
                ("holding", self.to_hold_s),
                ("rest", self.to_rest_s),
                ("a stop", self.to_stop_s),
            )
        ]

    def to_json(self) -> dict[str, Any]:
        """Return times and percentiles as JSON-ready data [s]; percentiles are None without times."""
        by_name = {"to_hold_s": self.to_hold_s, "to_rest_s": self.to_rest_s, "to_stop_s": self.to_stop_s}
        return {
            name: {"times": list(values), "p50_p90_p99": _percentiles(values) if values else None}
            for name, values in by_name.items()
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlSummary:
    """The numbers of one run."""

    periods: int
    seconds: float
    rate_hz: float  # of the loop
    missed: int
    missed_share: float  # the largest of any 2 s, in [0, 1]; the watchdog stops by it
    states: Counter[str]  # periods by state
    chunks: int
    inference_ms: tuple[float, float, float]  # median, 90th and 99th percentile; NaN without chunks
    max_chunk_age_s: float
    clamps: Counter[str]  # commands by "kind:channel"
    seam_jump: float  # largest change of the target where chunks meet, as a share of an action's range
    inner_jump: float  # the same within chunks
    violations: Sequence[Violation]
    reactions: Reactions
    state: str  # the last one,
    end: str  # and why

    def rows(self) -> list[list[str]]:
        """Return name and value of each number."""
        median, p90, p99 = self.inference_ms
        inference = f"{median:.0f} / {p90:.0f} / {p99:.0f} ms" if self.chunks else "no chunk arrived"
        states = ", ".join(f"{name} {count}" for name, count in self.states.items())
        clamped = ", ".join(f"{name} {count}" for name, count in self.clamps.most_common(6)) or "none"
        return [
            ["final state", self.end],
            ["control periods", f"{self.periods} in {self.seconds:.1f} s, {self.rate_hz:.1f} Hz"],
            [
                "missed deadlines",
                f"{self.missed}, at most {self.missed_share:.0%} of the periods of {MISSED_WINDOW_S:g} s",
            ],
            ["periods by state", states],
            ["chunks", str(self.chunks)],
            ["inference time, median / p90 / p99", inference],
            ["largest age of an executed chunk", f"{self.max_chunk_age_s:.2f} s"],
            [
                "largest target change between chunks / within a chunk",
                f"{self.seam_jump:.0%} / {self.inner_jump:.0%} of the action's range",
            ],
            ["commands clamped by the safety filter", clamped],
            *self.reactions.rows(),
            ["sent commands that broke a limit", str(len(self.violations))],
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON-ready data."""
        numbers = (
            "state",
            "end",
            "periods",
            "seconds",
            "rate_hz",
            "missed",
            "missed_share",
            "chunks",
            "max_chunk_age_s",
        )
        return {name: getattr(self, name) for name in (*numbers, "seam_jump", "inner_jump")} | {
            "periods_by_state": dict(self.states),
            "inference_ms_p50_p90_p99": self.inference_ms if self.chunks else None,
            "clamps": dict(self.clamps),
            "limits_broken": len(self.violations),
            "reactions": self.reactions.to_json(),
        }


def summarize(recording: Recording) -> ControlSummary:
    """Compute a run's numbers.

    Raises:
        ValueError: the recording has no periods or lacks the limits.
    """
    periods = recording.periods
    if not periods or "limits" not in recording.about:
        raise ValueError("the recording has no periods, or its header lacks the limits; nothing to summarize")
    seconds = periods[-1].now - periods[0].now
    times = [1e3 * one.inference_s for one in periods if one.inference_s is not None]
    seam, inner = _target_jumps(recording)
    last = periods[-1]
    return ControlSummary(
        periods=len(periods),
        seconds=seconds,
        rate_hz=(len(periods) - 1) / seconds if seconds > 0 else 0.0,
        missed=last.missed,
        missed_share=_largest_missed_share(recording),
        states=Counter(one.state for one in periods),
        chunks=len(times),
        inference_ms=_percentiles(times),
        max_chunk_age_s=max((one.chunk_age_s or 0.0 for one in periods), default=0.0),
        clamps=Counter(clamp for one in periods for clamp in one.clamps),
        seam_jump=max(seam, default=0.0),
        inner_jump=max(inner, default=0.0),
        violations=audit_recording(recording, _limits(recording)),
        reactions=reactions(recording),
        state=last.state,
        end=f"{last.state}: {last.reason}" if last.reason else last.state,
    )


def reactions(recording: Recording) -> Reactions:
    """Read from a recording how soon the robot held, rested and stopped.

    Raises:
        KeyError: the recording lacks the limits.
    """
    limits = _limits(recording)
    still = _AT_REST * np.array([channel.high - channel.low for channel in limits.channels.values()])
    moves = ~limits.is_gripper
    to_hold, to_rest, to_stop = [], [], []
    last_executed: float | None = None
    is_held = is_resting = is_stopped = False
    position: np.ndarray | None = None
    for period in recording.periods:
        before, position = position, None if period.position is None else np.array(period.position)
        if period.state == State.RUNNING.value and period.target is not None:
            last_executed, is_held, is_resting, is_stopped = period.now, False, False, False
        elif period.state in _BETWEEN:
            last_executed = None
        elif period.state in _HELD and last_executed is not None:
            since = period.now - last_executed
            if not is_held:
                to_hold.append(since)
            if not is_stopped and period.state in _LATCHED:
                to_stop.append(since)
            is_held, is_stopped = True, is_stopped or period.state in _LATCHED
            if not is_resting and before is not None and position is not None:
                is_resting = bool((np.abs(position - before)[moves] <= still[moves]).all())
                to_rest += [since] if is_resting else []
    return Reactions(to_hold_s=to_hold, to_rest_s=to_rest, to_stop_s=to_stop)


def _percentiles_text(seconds: Sequence[float]) -> str:
    if not seconds:
        return "did not occur"
    median, p90, p99 = _percentiles([1e3 * value for value in seconds])
    return f"{median:.0f} / {p90:.0f} / {p99:.0f} ms in {len(seconds)} events"


def _largest_missed_share(recording: Recording) -> float:
    num_window = max(1, round(MISSED_WINDOW_S * recording.robot_spec.control_hz))
    largest, recent = 0, deque([(-math.inf, 0)])
    for one in recording.periods:
        recent.append((one.now, one.missed))
        while one.now - recent[0][0] > MISSED_WINDOW_S:
            recent.popleft()
        largest = max(largest, one.missed - recent[0][1])
    return min(1.0, largest / num_window)


def _limits(recording: Recording) -> SafetyLimits:
    return SafetyLimits.from_json(recording.about["limits"])


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return float("nan"), float("nan"), float("nan")
    median, p90, p99 = np.percentile(values, [50, 90, 99])
    return float(median), float(p90), float(p99)


def _target_jumps(recording: Recording) -> tuple[list[float], list[float]]:
    """Return changes from one target to the next, where chunks meet and within them; grippers left out."""
    limits = _limits(recording)
    spec = recording.robot_spec
    span = np.where(limits.is_gripper, np.inf, spec.action_high - spec.action_low)
    seam, inner = [], []
    for before, after in zip(recording.periods, recording.periods[1:], strict=False):
        if before.target is None or after.target is None or None in (*before.target, *after.target):
            continue
        first, second = np.array(before.target, float), np.array(after.target, float)
        if first.shape == second.shape == span.shape:
            jump = float((np.abs(second - first) / span).max())
            (inner if before.chunk_seq == after.chunk_seq else seam).append(jump)
    return seam, inner


def _motion_charts(recording: Recording) -> list[Chart]:
    """Return a chart for every channel that the state measures: commanded and measured position."""
    began = recording.periods[0].now
    charts = []
    for column, channel in enumerate(_limits(recording).channels.values()):
        if channel.measured_by is None:
            continue
        state = recording.robot_spec.state_names.index(channel.measured_by)
        sent = [(one.now - began, one.position[column]) for one in recording.periods if one.position]
        seen = [
            (one.observation_stamp - began, one.measured[state])
            for one in recording.periods
            if one.measured is not None and one.observation_stamp is not None
        ]
        series = [_series("commanded", sent), _series("measured", seen)]
        unit = recording.robot_spec.action[column].unit
        charts.append(
            Chart(
                caption=channel.measured_by, series=series, x_label="time [s]", y_label=f"position [{unit}]"
            )
        )
    return charts


def _series(name: str, points: Sequence[tuple[float, float]]) -> Series:
    return Series(name=name, x=[x for x, _ in points], y=[y for _, y in points])


def _timing_charts(recording: Recording) -> list[Chart]:
    began = recording.periods[0].now
    ages = [
        (one.now - began, 1e3 * one.chunk_age_s) for one in recording.periods if one.chunk_age_s is not None
    ]
    took = [
        (one.now - began, 1e3 * one.inference_s) for one in recording.periods if one.inference_s is not None
    ]
    late = [(one.now - began, 1e3 * one.late_s) for one in recording.periods]
    lines = (
        ("age of the action's chunk", ages),
        ("inference", took),
        ("start of the period after its time", late),
    )
    return [
        Chart(caption=f"{name} [ms]", series=[_series(name, points)], x_label="time [s]", y_label="ms")
        for name, points in lines
        if points
    ]


def _seam_charts(recording: Recording) -> list[Chart]:
    """Return the targets and the commands sent, by channel; targets jump where chunks meet."""
    began, limits = recording.periods[0].now, _limits(recording)
    charts = []
    for column, (name, channel) in enumerate(limits.channels.items()):
        if channel.kind == "gripper":
            continue
        targets = [
            (one.now - began, value)
            for one in recording.periods
            if one.target is not None and len(one.target) > column
            for value in [one.target[column]]
            if value is not None
        ]
        sent = [(one.now - began, one.commanded[column]) for one in recording.periods if one.commanded]
        spec = recording.robot_spec.action[column]
        charts.append(
            Chart(
                caption=name,
                series=[_series("target", targets), _series("commanded", sent)],
                x_label="time [s]",
                y_label=f"action [{spec.unit}]",
            )
        )
    return charts


def _events(recording: Recording) -> list[list[str]]:
    began = recording.periods[0].now
    rows = [[f"{one.now - began:.2f}", event] for one in recording.periods for event in one.events]
    if len(rows) > _MAX_EVENTS:
        rows = [
            *rows[: _MAX_EVENTS // 2],
            ["...", f"{len(rows) - _MAX_EVENTS} more"],
            *rows[-_MAX_EVENTS // 2 :],
        ]
    return rows


def write_film(path: Path, frames: Sequence[tuple[float, UInt8[np.ndarray, "_ _ 3"]]]) -> str:
    """Write the film of a run, as fast as it was.

    Args:
        path: of the MP4 file.
        frames: and when each was captured [s].

    Returns:
        Why there is none, or nothing.

    Raises:
        OSError: the file cannot be written.
    """
    if len(frames) < _FEWEST_FRAMES:
        return f"the cameras showed {len(frames)} frames, too few for a film"
    if importlib.util.find_spec("av") is None:
        return "there is no film, as PyAV is not installed: pip install 'vla-stack[data]'"
    film_files = importlib.import_module("envs.film_files")
    stamps = [stamp for stamp, _ in frames]
    fps = (len(frames) - 1) / max(stamps[-1] - stamps[0], 1e-3)
    size = -(-_LEAST_SIZE // min(frames[0][1].shape[:2]))  # encoders take no tiny frames
    enlarged = (frame.repeat(size, axis=0).repeat(size, axis=1) for _, frame in frames)
    film_files.write_video(path, enlarged, fps=min(fps, _MOST_FPS))
    return ""


def _tiles(summary: ControlSummary, *, instruction: str | None, is_reached: bool | None) -> list[Headline]:
    broken = len(summary.violations)
    return [
        Headline(label="goal", value=GOAL_WORDS[is_reached], note=instruction or "", met=is_reached),
        Headline(
            label="limits broken", value=str(broken), met=broken == 0, note="by sent commands; aim: none"
        ),
        Headline(label="missed deadlines", value=str(summary.missed), note=f"of {summary.periods} periods"),
        Headline(
            label="inference, median",
            value=f"{summary.inference_ms[0]:.0f} ms",
            note=f"{summary.chunks} chunks",
        ),
        Headline(label="rate", value=f"{summary.rate_hz:.1f} Hz", note=summary.end),
    ]


def write_control_page(
    path: Path,
    recording: Recording,
    *,
    title: str,
    command: str,
    is_reached: bool | None = None,
    film: Path | None = None,
) -> None:
    """Write the page of one run; it needs no other file.

    Args:
        path: of the page.
        recording: of the run.
        title: of the page.
        command: that made the run.
        is_reached: whether the goal was reached; None where nobody judges it.
        film: of the run, an MP4 file, if there is one.

    Raises:
        ValueError: there is nothing in the recording.
    """
    summary = summarize(recording)
    instruction, goal = recording.about.get("instruction"), recording.about.get("goal")
    films = [] if film is None else [Film(title="Film", path=film, note="What the policy's cameras saw.")]
    asked = [
        ["instruction", "not recorded" if instruction is None else f"{instruction!r}"],
        ["goal of the scene", "none: no scene judges this run" if goal is None else f"{goal!r}"],
        ["goal reached", GOAL_WORDS[is_reached]],
    ]
    sections: list[Section] = [
        *films,
        Table(title="The run", header=["what", ""], rows=[*asked, *summary.rows()]),
        Charts(
            title="Commanded and measured",
            charts=_motion_charts(recording),
            note="Commanded: what was sent, summed up where actions are changes.",
        ),
        Charts(
            title="Targets and commands",
            charts=_seam_charts(recording),
            note="Where chunks meet, targets jump; the safety filter keeps commands within limits.",
        ),
        Charts(title="Time", charts=_timing_charts(recording)),
        Table(
            title="Clamped commands",
            header=["limit and channel", "commands"],
            rows=[[name, str(count)] for name, count in summary.clamps.most_common()] or [["none", "0"]],
        ),
        Table(title="Events", header=["time [s]", "event"], rows=_events(recording)),
        *closing_sections([(command, "this run")]),
    ]
    headlines = _tiles(summary, instruction=instruction, is_reached=is_reached)
    write_report(path, title=title, subtitle=machine(), headlines=headlines, sections=sections)


def live_line(record: PeriodRecord, *, rate_hz: float, missed_share: float, clamps: int) -> str:
    """Return the line that the terminal shows while a robot runs.

    Args:
        record: the newest period.
        rate_hz: periods in a second, of late.
        missed_share: of the control periods of the last seconds, in [0, 1].
        clamps: commands so far that the safety filter changed.
    """
    age = "-" if record.chunk_age_s is None else f"{1e3 * record.chunk_age_s:.0f} ms"
    reason = f"  {record.reason[:60]}" if record.state in ("HOLD", "STOPPED", "FAULT") else ""
    return (
        f"{record.state:<8} {rate_hz:5.1f} Hz  chunk age {age:>7}  missed {record.missed:>3} "
        f"({missed_share:4.0%} now)  clamps {clamps:>4}{reason}"
    )
