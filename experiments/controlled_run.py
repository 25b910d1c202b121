"""What surrounds a robot's control loop in a program: signals, the line on the terminal, how it all ended.

Whatever happens, the robot is stopped first (policies/runtime/controller.py does that), and then it is told:
`drive_recorded` returns the record of a run that an error has ended, with the error in it.
"""

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from experiments.config import cli
from experiments.config.control_setup import drive
from experiments.reports.control import live_line
from policies.runtime.background import BackgroundWorker
from policies.runtime.clock import MISSED_WINDOW_S, Clock
from policies.runtime.controller import Controller
from policies.runtime.hang_guard import HangGuard
from policies.runtime.recorder import RECORDING_FILE, PeriodRecord, Recorder, Recording, read_recording
from policies.runtime.states import State

SHOW_EVERY_S = 0.2  # on a terminal; elsewhere, a line every 5 s
LOG_EVERY_S = 5.0
PATIENCE_S = 2.0  # after which Ctrl-C ends what does not end by itself


class LiveLine:
    """Shows the state of a run, in one line that is written over where there is a terminal.

    A thread of its own writes to the terminal: one that is paused (Ctrl-S), closed, or the reader of a pipe
    that has gone holds nobody. Lines that it does not take meanwhile are dropped and counted.

    Args:
        period_s: length of a control period [s].

    Attributes:
        num_dropped: lines that were not shown.
    """

    def __init__(self, *, period_s: float) -> None:
        sys.stdout.flush()
        self._period_s = period_s
        self._is_terminal = sys.stdout.isatty()
        self._encoding = sys.stdout.encoding or "utf-8"
        self._file = sys.stdout.fileno()  # past the buffer, whose lock a paused write would keep
        self._every_s = SHOW_EVERY_S if self._is_terminal else LOG_EVERY_S
        self._worker = BackgroundWorker(name="live line", max_waiting=2)
        self._shown_at = -float("inf")
        self._recent: deque[tuple[float, int]] = deque()  # time and missed periods of the last seconds
        self._clamps = 0
        self._state = ""
        self.num_dropped = 0

    def show(self, record: PeriodRecord) -> None:
        """Show a period if it is time to, or if the state has changed."""
        self._recent.append((record.now, record.missed))
        while record.now - self._recent[0][0] > MISSED_WINDOW_S:
            self._recent.popleft()
        self._clamps += bool(record.clamps)
        if record.now - self._shown_at < self._every_s and record.state == self._state:
            return
        began, missed = self._recent[0]
        line = live_line(
            record,
            rate_hz=(len(self._recent) - 1) / (record.now - began) if record.now > began else 0.0,
            missed_share=(record.missed - missed) * self._period_s / MISSED_WINDOW_S,
            clamps=self._clamps,
        )
        self._write(f"\r\033[K{line}" if self._is_terminal else f"{line}\n")
        self._shown_at, self._state = record.now, record.state

    def close(self) -> None:
        """Leave the line behind."""
        if self._is_terminal:
            self._write("\n")
        self._worker.close(timeout_s=0.5)

    def _write(self, text: str) -> None:
        data = text.encode(self._encoding, errors="replace")
        self.num_dropped += not self._worker.offer(lambda: _write_all(self._file, data))


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


class StopSignals:
    """What Ctrl-C, SIGTERM and a closed terminal (SIGHUP) do: stop the robot, and let the run end by itself.

    Entered before the robot is opened and left when the record of the run is whole: presses that come while
    it is written, or while the program ends after it, change nothing; a record that takes longer than
    `PATIENCE_S` is given up for one. A SIGHUP that was ignored when
    the program began (nohup) stays so.
    """

    def __init__(self) -> None:
        self._controller: Controller | None = None
        self._ended_at: float | None = None

    def watch(self, controller: Controller) -> None:
        """Have signals stop this controller from now on."""
        self._controller = controller

    def note_end(self) -> None:
        """Take notice that the robot is at rest and only the record of the run is left to be written."""
        self._ended_at = time.monotonic()

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._press) for number in cli.ending_signals()}
        return self

    def __exit__(self, *exception: object) -> None:
        has_ended = self._ended_at is not None  # the program is about to, too: with the code of the run
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if has_ended else handler)

    def _press(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._controller is None:  # no robot is being driven yet: as in every program
            raise cli.ENDED_BY[number]
        if self._ended_at is not None:
            if now - self._ended_at > PATIENCE_S:
                raise KeyboardInterrupt
            return
        self._controller.press_emergency_stop()
        began = self._controller.period_began
        if began is not None and now - began > PATIENCE_S:  # the loop hangs; HangGuard has stopped the robot
            raise KeyboardInterrupt


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended, and its record."""

    recording: Recording
    film: Sequence[tuple[float, UInt8[np.ndarray, "_ _ 3"]]] = ()  # frames, and when each was captured [s]
    failure: BaseException | None = None  # what ended the run, if it did not end by itself
    notes: tuple[str, ...] = ()  # what of the record is missing

    @property
    def state(self) -> State:
        """The last state of the controller; FAULT where something failed after it."""
        last = State(self.recording.periods[-1].state)
        return State.FAULT if isinstance(self.failure, Exception) and last is not State.STOPPED else last


def require_no_recording(run_dir: Path) -> None:
    """Check that no recording would be replaced by that of a new run.

    Raises:
        ValueError: one is there in which a robot was commanded, or it cannot be read.
    """
    if not (run_dir / RECORDING_FILE).exists():
        return
    if any(one.commanded is not None for one in read_recording(run_dir).periods):
        raise ValueError(
            f"{run_dir / RECORDING_FILE} is the recording of an earlier run; "
            "give another out_dir, or move it away"
        )


def drive_recorded(
    controller: Controller,
    recorder: Recorder,
    *,
    signals: StopSignals,
    clock: Clock,
    hung_stop_s: float,
    is_over: Callable[[], bool],
    max_seconds: float,
) -> Outcome:
    """Drive a robot from its first observation to rest, whatever ends it, and close the record.

    Args:
        controller: IDLE.
        recorder: that of the controller.
        signals: will stop the controller.
        clock: that of the controller, of real time.
        hung_stop_s: see `HangGuard`.
        is_over: whether there is nothing left to do; asked after every period.
        max_seconds: after which the task counts as over.

    Raises:
        ArmingRefused: observations did not come, or the robot stands out of its range.
    """
    signals.watch(controller)
    failure: BaseException | None = None
    line = LiveLine(period_s=controller.period_s)
    try:
        with HangGuard(controller, clock=clock, hung_stop_s=hung_stop_s), closing(line):
            drive(
                controller,
                is_over=is_over,
                max_periods=round(max_seconds / controller.period_s),
                on_period=line.show,
            )
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the robot has been stopped; now it is told
        if not controller.counts["times RUNNING"]:
            raise
        failure = error
    finally:
        signals.note_end()
        recorder.close()
    counts: dict[str, Any] = {
        "lines not shown, as the terminal did not take them": line.num_dropped,
        "periods not on the disk, as it did not take them": recorder.num_unwritten,
        "times that the frames before a stop were not kept": recorder.num_dropped_dumps,
        "frames of the film that were not kept": recorder.film.num_dropped,
    }
    notes = tuple(f"{count} {what}" for what, count in counts.items() if count)
    return Outcome(recording=recorder.recording(), film=recorder.film.frames, failure=failure, notes=notes)
