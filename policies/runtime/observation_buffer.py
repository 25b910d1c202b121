"""What the sensors deliver: checked, watched over time, and put together as a policy wants to see it.

`check_reading` judges one reading by itself, `StreamMonitor` one after another (cameras that freeze or go
black, states that jump), `FrameHistory` keeps past frames and makes observations of them, `ObservationBuffer`
does all three. Every sensor has a stamp of its own, and the oldest of them is the age of the whole: a camera
that stands still makes a reading stale although the joints are fresh. watchdog.py decides what follows. A
picture with red and blue swapped, or left and right, cannot be distinguished from a true one here: the names
and sizes in the robot spec guard against that.
"""

import hashlib
import unicodedata
from collections import deque
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float32, UInt8

from vla.interface import Observation, ObservationError, SensorReading
from vla.registry import Range, check_attributes
from vla.spec import RobotSpec

MAX_INSTRUCTION_BYTES = 1024
_LIVE_READINGS = 3  # new ones of every sensor that must have come just now for a stream to count as live


class BadInstruction(ValueError):
    """An instruction that no policy should be given."""


def checked_instruction(text: str) -> str:
    """Return an instruction without surrounding blanks.

    Any language passes; whether the policy understands it is for its authors to say.

    Raises:
        BadInstruction: it is empty, longer than 1024 bytes or holds control characters.
    """
    stripped = text.strip()
    if not stripped:
        raise BadInstruction("the instruction is empty; state what the robot should do")
    size = len(stripped.encode("utf-8", errors="surrogatepass"))
    if size > MAX_INSTRUCTION_BYTES:
        raise BadInstruction(f"the instruction has {size} bytes; the limit is {MAX_INSTRUCTION_BYTES}")
    odd = sorted({f"U+{ord(c):04X}" for c in stripped if unicodedata.category(c) in ("Cc", "Cs")})
    if odd:
        raise BadInstruction(f"the instruction holds control characters: {', '.join(odd[:8])}")
    return stripped


def check_reading(reading: SensorReading, spec: RobotSpec) -> None:
    """Check names, sizes, types and numbers of one reading.

    Raises:
        ObservationError: something is missing, extra, of the wrong size or type, or not finite.
    """
    for what, found in (("frames", reading.images), ("stamps of frames", reading.image_stamps)):
        if set(found) != set(spec.camera_names):
            raise ObservationError(
                f"the robot sent {what} of cameras {sorted(found)}; its spec has {list(spec.camera_names)}"
            )
    for camera in spec.cameras:
        frame = np.asarray(reading.images[camera.name])
        if frame.dtype != np.uint8 or frame.shape != (camera.height, camera.width, 3):
            raise ObservationError(
                f"camera {camera.name!r} sent {frame.dtype}{list(frame.shape)}; expected "
                f"uint8[{camera.height}, {camera.width}, 3]"
            )
    state = np.asarray(reading.state)
    if state.shape != (len(spec.state),) or not np.isfinite(state).all():
        raise ObservationError(
            f"the state is {state.ravel()[:16].tolist()}; expected {len(spec.state)} finite numbers: "
            f"{spec.state_names}"
        )
    stamps = sensor_stamps(reading)
    if not np.isfinite(list(stamps.values())).all():
        raise ObservationError(f"the reading's stamps are {stamps}; expected seconds")


def sensor_stamps(reading: SensorReading) -> dict[str, float]:
    """Return when each sensor measured last [s], by what to call it in a message."""
    cameras = {f"camera {name}": stamp for name, stamp in reading.image_stamps.items()}
    return {"joints": reading.state_stamp, **cameras}


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamLimits:
    """When a stream of readings counts as broken."""

    frozen_frames: Annotated[int, Range(1, 10**4), "equal frames in a row, while the robot moves"] = 5
    frozen_motion: Annotated[
        float, Range(0, 1), "how far it must have moved meanwhile, as a share of a state's range"
    ] = 0.1
    black_level: Annotated[
        float, Range(0, 255), "mean brightness in [0, 255] below which a camera counts as black"
    ] = 4.0
    state_jump: Annotated[
        float, Range(0, 1, open_low=True), "largest change of a state in one period, as a share of its range"
    ] = 0.35
    may_jump: tuple[str, ...] = ()  # channels such as a gripper's opening, which prove neither

    def __post_init__(self) -> None:
        check_attributes(self, where="stream")


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamHealth:
    """What the stream is like at its newest reading."""

    frozen_cameras: tuple[str, ...] = ()
    black_cameras: tuple[str, ...] = ()
    state_jump: str | None = None  # what jumped, and by how much


@dataclass(kw_only=True, slots=True)
class _SeenFrame:
    digest: bytes
    state: Float32[np.ndarray, " state"]
    count: int


class StreamMonitor:
    """Compares each reading with those before it, sensor by sensor."""

    def __init__(self, *, spec: RobotSpec, limits: StreamLimits) -> None:
        self._spec, self._limits = spec, limits
        self._span = np.array([channel.high - channel.low for channel in spec.state])
        self._is_steady = np.array([name not in limits.may_jump for name in spec.state_names])
        self._last: SensorReading | None = None
        self._frames: dict[str, _SeenFrame] = {}
        self._frozen: dict[str, bool] = {}
        self._black: dict[str, bool] = {}
        self.health = StreamHealth()

    def update(self, reading: SensorReading) -> StreamHealth:
        """Take in a reading that `check_reading` has passed; a sensor without news changes nothing."""
        last, jump = self._last, self.health.state_jump
        for name in self._spec.camera_names:
            if last is None or reading.image_stamps[name] > last.image_stamps[name]:
                frame = reading.images[name]
                self._frozen[name] = self._is_frozen(name, frame, reading.state)
                self._black[name] = float(frame.mean()) < self._limits.black_level
        if last is not None and reading.state_stamp > last.state_stamp:
            jump = self._jump(last, reading)
        self.health = StreamHealth(
            frozen_cameras=tuple(name for name, is_so in self._frozen.items() if is_so),
            black_cameras=tuple(name for name, is_so in self._black.items() if is_so),
            state_jump=jump,
        )
        self._last = reading
        return self.health

    def _is_frozen(
        self, name: str, frame: UInt8[np.ndarray, "h w 3"], state: Float32[np.ndarray, " state"]
    ) -> bool:
        digest = hashlib.blake2b(frame.tobytes(), digest_size=16).digest()
        seen = self._frames.get(name)
        if seen is None or seen.digest != digest:
            self._frames[name] = _SeenFrame(digest=digest, state=state, count=1)
            return False
        seen.count += 1
        moved = float(np.where(self._is_steady, np.abs(state - seen.state) / self._span, 0.0).max())
        return seen.count > self._limits.frozen_frames and moved > self._limits.frozen_motion

    def _jump(self, last: SensorReading, new: SensorReading) -> str | None:
        passed_s = new.state_stamp - last.state_stamp
        share = np.where(self._is_steady, np.abs(new.state - last.state) / self._span, 0.0)
        worst = int(share.argmax())
        if share[worst] <= self._limits.state_jump * max(1.0, passed_s * self._spec.control_hz):
            return None
        return (
            f"state {self._spec.state_names[worst]!r} jumped from {last.state[worst]:.4g} to "
            f"{new.state[worst]:.4g} in {passed_s:.3f} s"
        )


class FrameHistory:
    """Past frames of every camera by capture time, and the observations that policies get of them.

    Simulated episodes and real robots share it, so that a policy sees the same in both.

    Args:
        spec: the robot.
        frame_offsets: which frames a policy looks at, in control periods before now, oldest first.
    """

    def __init__(self, *, spec: RobotSpec, frame_offsets: tuple[int, ...]) -> None:
        self._offsets, self._period_s = frame_offsets, 1.0 / spec.control_hz
        self._low = np.array([channel.low for channel in spec.state], np.float32)
        self._high = np.array([channel.high for channel in spec.state], np.float32)
        longest = 2 * (max(frame_offsets) + 1)
        self._frames: dict[str, deque[tuple[float, UInt8[np.ndarray, "h w 3"]]]] = {
            name: deque(maxlen=longest) for name in spec.camera_names
        }
        self.newest: SensorReading | None = None

    def add(self, reading: SensorReading) -> None:
        """Keep the frames of the cameras that have a new one."""
        self.newest = reading
        for name, kept in self._frames.items():
            if not kept or reading.image_stamps[name] > kept[-1][0]:
                kept.append((reading.image_stamps[name], reading.images[name]))

    def observation(
        self, instruction: str, committed: Float32[np.ndarray, "committed action"]
    ) -> Observation:
        """Return what a policy may know now.

        Frames are those nearest to the times wanted, counted from the newest frame of the same camera; the
        first stands in for older ones. The state is clipped to the ranges of the robot spec, here alone: no
        policy has seen a state beyond them, while the safety filter must see what was measured.
        """
        assert self.newest is not None, "nothing has been observed"
        return Observation(
            images={name: self._wanted(name) for name in self._frames},
            state=np.clip(self.newest.state, self._low, self._high),
            instruction=instruction,
            committed=committed,
            stamp=self.newest.stamp,
        )

    def _wanted(self, name: str) -> UInt8[np.ndarray, "frames h w 3"]:
        kept = self._frames[name]
        moments = [kept[-1][0] - offset * self._period_s for offset in self._offsets]
        return np.stack([min(kept, key=lambda one: abs(one[0] - moment))[1] for moment in moments])  # noqa: B023


class ObservationBuffer:
    """The newest good reading of a robot, and what is known about the stream that it belongs to.

    Args:
        spec: the robot.
        limits: when the stream counts as broken.
        frame_offsets: which frames the policy looks at; see `Policy.frame_offsets`.
    """

    def __init__(self, *, spec: RobotSpec, limits: StreamLimits, frame_offsets: tuple[int, ...]) -> None:
        self._spec, self._period_s = spec, 1.0 / spec.control_hz
        self._monitor = StreamMonitor(spec=spec, limits=limits)
        self.history = FrameHistory(spec=spec, frame_offsets=frame_offsets)
        self._stamps: deque[float] = deque(maxlen=_LIVE_READINGS)
        self.blind_since: float | None = None  # when a camera was first seen frozen or black

    @property
    def newest(self) -> SensorReading | None:
        """The newest good reading, with the state as it was measured."""
        return self.history.newest

    @property
    def health(self) -> StreamHealth:
        """What the stream is like."""
        return self._monitor.health

    def take(self, reading: SensorReading, now: float) -> bool:
        """Take in what the robot sent; false if no sensor has news, or one went back in time.

        Raises:
            ObservationError: it is malformed, and counts as not having come.
        """
        check_reading(reading, self._spec)
        if self.newest is not None:
            before, after = sensor_stamps(self.newest), sensor_stamps(reading)
            passed = [after[name] - before[name] for name in before]
            if min(passed) < 0 or max(passed) <= 0:
                return False
        self.history.add(reading)
        if not self._stamps or reading.stamp > self._stamps[-1]:
            self._stamps.append(reading.stamp)
        health = self._monitor.update(reading)
        if not (health.frozen_cameras or health.black_cameras):
            self.blind_since = None
        elif self.blind_since is None:
            self.blind_since = now
        return True

    def is_live(self, now: float, *, max_age_s: float) -> bool:
        """Whether several new readings of every sensor have come just now."""
        enough = len(self._stamps) == _LIVE_READINGS
        return enough and now - self._stamps[0] <= max_age_s + (_LIVE_READINGS - 1) * 2 * self._period_s
