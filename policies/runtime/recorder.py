"""The record of a controlled run: a JSON line a period, readable after a crash, and frames before a stop.

`recording.jsonl` starts with a header and gets a line each period: if the program dies, at worst the last
line is torn, and it is left out when read. Frames are kept in memory for the last seconds only and written,
whole or not at all, when the robot stops for a reason. A thread of its own does the writing, so that a disk
that stalls holds nobody: periods wait in memory meanwhile, up to a bound. Nothing here looks at what the
numbers mean, apart from `audit_recording`.
"""

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from policies.runtime.background import BackgroundWorker
from policies.runtime.chunking import PlannedAction
from policies.runtime.clock import Clock
from policies.runtime.film import Film
from policies.runtime.limits import SafetyLimits, Violation, audit
from policies.runtime.safety import SafeCommand
from vla.disk_faults import DiskFault
from vla.files import JsonLinesAppender, read_json_lines, staged_file, write_json_lines
from vla.interface import Robot, SensorReading
from vla.spec import RobotSpec

RECORDING_FILE = "recording.jsonl"
SCHEMA_VERSION = 1
_CLOSE_S = 10.0  # how long closing waits for a disk that stalls
_MAX_DUMPS = 2  # of frames that wait for the disk, a few seconds of every camera each


@dataclass(frozen=True, kw_only=True, slots=True)
class PeriodRecord:
    """One control period. Times are of the controller's clock [s]; None where there was nothing."""

    index: int
    now: float
    late_s: float  # how long after its time the period began
    state: str
    reason: str  # of a hold, stop or fault
    observation_stamp: float | None  # of the sensor that measured longest ago
    measured: list[float] | None  # the robot's state
    target: (
        list[float | None] | None
    )  # what was requested of the safety filter; None for a number that is not finite
    commanded: list[float] | None  # what the robot was sent
    position: list[float] | None  # commanded position of every channel after it
    start: list[float] | None  # commanded position before it, in the first period after arming
    chunk_seq: int | None
    chunk_index: int | None
    chunk_age_s: float | None  # since the observation was captured that the action was predicted from
    inference_s: float | None  # from request to arrival, of a chunk that arrived in this period
    clamps: list[str]
    events: list[str]
    missed: int  # periods so far that were skipped or began late

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def plain(values: Any) -> list[float | None]:
    """Return numbers for JSON, None in place of those that are not finite or no numbers at all."""
    try:
        flat = np.asarray(values, np.float64).ravel()[:64]
    except (TypeError, ValueError):
        return []
    return [float(value) if math.isfinite(value) else None for value in flat]


def period_record(
    *,
    index: int,
    now: float,
    late_s: float,
    state: str,
    reason: str,
    reading: SensorReading | None,
    planned: PlannedAction | None,
    target: Any,
    command: SafeCommand | None,
    start: list[float] | None,
    inference_s: float | None,
    events: list[str],
    missed: int,
) -> PeriodRecord:
    """Put the record of a period together from what the parts of the controller report."""
    return PeriodRecord(
        index=index,
        now=now,
        late_s=late_s,
        state=state,
        reason=reason,
        observation_stamp=None if reading is None else reading.stamp,
        measured=None if reading is None else [float(value) for value in reading.state],
        target=None if target is None else plain(target),
        commanded=None if command is None else [float(value) for value in command.action],
        position=None if command is None else [float(value) for value in command.position],
        start=None if command is None else start,
        chunk_seq=None if planned is None else planned.seq,
        chunk_index=None if planned is None else planned.index,
        chunk_age_s=None if planned is None else now - planned.captured,
        inference_s=inference_s,
        clamps=[] if command is None else list(command.clamps),
        events=events,
        missed=missed,
    )


class Recorder:
    """Writes the recording of one run into a directory, in a thread of its own.

    Args:
        directory: made if it does not exist; a recording that is there already is replaced.
        spec: the robot.
        about: whatever else a reader should know, JSON-ready.
        dump_s: how many seconds of frames are kept for `dump`.
        max_unwritten: periods that may wait in memory for a disk that stalls, about 2 kB each.

    Attributes:
        film: small frames of the whole run, in memory.
        num_dropped_dumps: times that the frames of the last seconds were not kept, as the disk stalled.

    Raises:
        OSError: the directory cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        spec: RobotSpec,
        about: Mapping[str, Any],
        dump_s: float = 2.0,
        max_unwritten: int = 12_000,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.film = Film()
        self.num_dropped_dumps = 0
        self._readings: deque[SensorReading] = deque(maxlen=max(1, round(dump_s * spec.control_hz)))
        self._unwritten: deque[PeriodRecord] = deque()
        self._num_dumps = 0  # that wait
        self._max_unwritten = max_unwritten
        header = {"schema_version": SCHEMA_VERSION, "robot_spec": spec.to_json(), "about": dict(about)}
        write_json_lines(directory / RECORDING_FILE, [header])
        self._log = JsonLinesAppender(directory / RECORDING_FILE)
        self._is_closed = False
        self._worker = BackgroundWorker(name="recorder", max_waiting=max_unwritten + _MAX_DUMPS)

    @property
    def problem(self) -> str:
        """Why the record of the run will not be whole, or empty; a robot should not be driven on then."""
        failure = self._worker.failure
        if failure is not None:
            return str(failure) if isinstance(failure, DiskFault) else f"the recording has failed: {failure}"
        if len(self._unwritten) >= self._max_unwritten:
            return (
                f"the disk of {self.directory / RECORDING_FILE} does not answer, and "
                f"{len(self._unwritten)} periods wait in memory"
            )
        return ""

    def append(self, record: PeriodRecord) -> None:
        """Keep one period, to be written by the thread. Never waits and never fails; see `problem`."""
        self._unwritten.append(record)
        self._worker.offer(self._write_oldest)

    def see(self, reading: SensorReading) -> None:
        """Keep a new reading for a later `dump`, and some for the film."""
        self._readings.append(reading)
        self.film.see(reading)

    def dump(self, name: str) -> None:
        """Have the frames and states of the last seconds written to ``<name>.npz``, if there are any."""
        readings = list(self._readings)
        if not readings:
            return
        if self._num_dumps >= _MAX_DUMPS or not self._worker.offer(
            lambda: self._write_frames(name, readings)
        ):
            self.num_dropped_dumps += 1
            return
        self._num_dumps += 1

    def close(self) -> None:
        """Bring everything to the disk, as far as it answers; safe to call more than once."""
        if self._is_closed:
            return
        self._is_closed = True
        self.film.close()
        is_taken = self._worker.offer(self._log.close)  # not where too much waits already
        is_done = self._worker.close(timeout_s=_CLOSE_S)
        if (is_done and not is_taken) or (not is_done and self._worker.failure is not None):
            with contextlib.suppress(OSError):  # the disk that failed before; `problem` names it
                self._log.close()

    def recording(self) -> "Recording":
        """Return the whole run, once closed: what is on the disk, and what could not be written.

        Raises:
            OSError: the file has vanished.
            ValueError: it is damaged.
        """
        written = read_recording(self.directory)
        last = written.periods[-1].index if written.periods else -1
        rest = [one for one in self._unwritten if one.index > last]
        return dataclasses.replace(written, periods=[*written.periods, *rest])

    @property
    def num_unwritten(self) -> int:
        """Periods that are in memory alone."""
        return len(self._unwritten)

    def _write_oldest(self) -> None:
        self._log.append(self._unwritten[0].to_json())
        self._unwritten.popleft()

    def _write_frames(self, name: str, readings: Sequence[SensorReading]) -> None:
        self._num_dumps -= 1
        arrays = {
            "stamp": np.array([one.state_stamp for one in readings]),
            "state": np.stack([one.state for one in readings]),
        }
        for camera in readings[-1].images:
            arrays[f"images_{camera}"] = np.stack([one.images[camera] for one in readings])
            arrays[f"stamp_{camera}"] = np.array([one.image_stamps[camera] for one in readings])
        try:
            with staged_file(self.directory / f"{name}.npz") as staging, staging.open("xb") as file:
                np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
        except OSError:  # commands matter more than frames: the periods after these are still written
            self.num_dropped_dumps += 1

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A recording that was read back."""

    robot_spec: RobotSpec
    about: Mapping[str, Any]
    periods: Sequence[PeriodRecord]


def read_recording(path: Path) -> Recording:
    """Read a recording, or the directory that holds it, without a torn last line.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another schema version, or a line in the middle is damaged; the message says so.
    """
    path = path / RECORDING_FILE if path.is_dir() else path
    rows = read_json_lines(path, dict)
    if not rows:
        raise ValueError(
            f"{path} has no header; it is not a recording, or the recording ended before its first line"
        )
    header, names = rows[0], {field.name for field in dataclasses.fields(PeriodRecord)}
    if header.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} starts with {str(header)[:80]!r}; this program reads version {SCHEMA_VERSION}"
        )
    for number, row in enumerate(rows[1:], start=2):
        if set(row) != names:
            raise ValueError(f"{path}, line {number}: a period has the keys {sorted(names)}")
    return Recording(
        robot_spec=RobotSpec.from_json(header["robot_spec"]),
        about=header["about"],
        periods=[PeriodRecord(**row) for row in rows[1:]],
    )


def audit_recording(recording: Recording, limits: SafetyLimits) -> list[Violation]:
    """Return every limit that a command sent to the robot broke, by an arithmetic of its own (limits.py).

    `index` of a violation is that of the period. Commands between two armings form a motion from rest.
    """
    found: list[Violation] = []
    sent = [period for period in recording.periods if period.commanded is not None]
    beginnings = [i for i, period in enumerate(sent) if period.start is not None]
    if not sent:
        return found
    if not beginnings or beginnings[0] != 0:
        raise ValueError("the recording has commands before the first arming; it is damaged")
    for first, end in zip(beginnings, [*beginnings[1:], len(sent)], strict=True):
        motion = sent[first:end]
        violations = audit(
            np.array([period.commanded for period in motion], np.float32),
            start=np.array(motion[0].start, np.float64),
            spec=recording.robot_spec,
            limits=limits,
        )
        found += [dataclasses.replace(one, index=motion[one.index].index) for one in violations]
    return found


def replay(recording: Recording, *, robot: Robot, clock: Clock) -> int:
    """Send the recorded commands to a robot again, at their times after the first period; return how many.

    Raises:
        SpecMismatch: the recording is of another robot.
    """
    recording.robot_spec.require_same(robot.robot_spec, mine="the recording", theirs="this robot")
    sent = [period for period in recording.periods if period.commanded is not None]
    begun = clock.now()
    robot.observe()
    for period in sent:
        clock.sleep_until(begun + period.now - recording.periods[0].now)
        robot.command(np.array(period.commanded, np.float32))
    robot.stop()
    return len(sent)
