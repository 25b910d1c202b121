"""What comes in from the robot: checked, watched over time, and put together as a policy wants to see it.

`check_observation` judges one observation by itself, `StreamMonitor` one after another (cameras that freeze
or go black, states that jump), `FrameHistory` keeps past frames for policies that look back, and `ObservationBuffer`
does all three. Nothing here decides what follows; watchdog.py does. A picture with red and blue swapped, or
left and right, cannot be told from a true one here: the names and sizes in the robot spec guard against that.
"""

import dataclasses
import hashlib
import unicodedata
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from vla.interface import Observation, ObservationError
from vla.spec import RobotSpec

MAX_INSTRUCTION_BYTES = 1024
_LIVE_OBSERVATIONS = 3  # new ones that must have come just now for a stream to count as live


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
        raise BadInstruction("the instruction is empty; say what the robot shall do")
    size = len(stripped.encode("utf-8", errors="surrogatepass"))
    if size > MAX_INSTRUCTION_BYTES:
        raise BadInstruction(f"the instruction has {size} bytes; at most {MAX_INSTRUCTION_BYTES} are read")
    odd = sorted({f"U+{ord(c):04X}" for c in stripped if unicodedata.category(c) in ("Cc", "Cs")})
    if odd:
        raise BadInstruction(f"the instruction holds control characters: {', '.join(odd[:8])}")
    return stripped


def check_observation(observation: Observation, spec: RobotSpec) -> None:
    """Check names, sizes, types and numbers of one observation.

    Raises:
        ObservationError: something is missing, extra, of the wrong size or type, or not finite.
    """
    if set(observation.images) != set(spec.camera_names):
        raise ObservationError(
            f"the robot sent cameras {sorted(observation.images)}; its spec has {list(spec.camera_names)}"
        )
    for camera in spec.cameras:
        frames = np.asarray(observation.images[camera.name])
        if frames.dtype != np.uint8 or frames.shape[1:] != (camera.height, camera.width, 3):
            raise ObservationError(
                f"camera {camera.name!r} sent {frames.dtype}{list(frames.shape)}; expected "
                f"uint8[frames, {camera.height}, {camera.width}, 3]"
            )
    state = np.asarray(observation.state)
    if state.shape != (len(spec.state),) or not np.isfinite(state).all():
        raise ObservationError(
            f"the state is {state.ravel()[:16].tolist()}; expected {len(spec.state)} finite numbers: "
            f"{spec.state_names}"
        )
    if not np.isfinite(observation.stamp):
        raise ObservationError(f"the observation's stamp is {observation.stamp}; expected seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamLimits:
    """When a stream of observations counts as broken."""

    frozen_frames: int = 5  # equal frames in a row, while the robot moves
    frozen_motion: float = 0.1  # how far it must have moved meanwhile, as a share of a state's range
    black_level: float = 4.0  # mean brightness in [0, 255] below which a camera counts as black
    state_jump: float = 0.35  # largest change of a state in one period, as a share of its range
    may_jump: tuple[str, ...] = ()  # channels such as a gripper's opening, which tell nothing of either


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamHealth:
    """What the stream is like at its newest observation."""

    frozen_cameras: tuple[str, ...] = ()
    black_cameras: tuple[str, ...] = ()
    state_jump: str | None = None  # what jumped, and by how much


@dataclass(kw_only=True, slots=True)
class _SeenFrame:
    digest: bytes
    state: Float32[np.ndarray, " state"]
    count: int


class StreamMonitor:
    """Compares each observation with those before it."""

    def __init__(self, *, spec: RobotSpec, limits: StreamLimits) -> None:
        self._spec, self._limits = spec, limits
        self._span = np.array([channel.high - channel.low for channel in spec.state])
        self._is_steady = np.array([name not in limits.may_jump for name in spec.state_names])
        self._last: Observation | None = None
        self._frames: dict[str, _SeenFrame] = {}
        self.health = StreamHealth()

    def update(self, observation: Observation) -> StreamHealth:
        """Take in an observation that `check_observation` has passed; one seen before changes nothing."""
        last = self._last
        if last is not None and observation.stamp <= last.stamp:
            return self.health
        frozen, black = [], []
        for name in self._spec.camera_names:
            frame = observation.images[name][-1]
            if self._is_frozen(name, frame, observation.state):
                frozen.append(name)
            if float(frame.mean()) < self._limits.black_level:
                black.append(name)
        self.health = StreamHealth(
            frozen_cameras=tuple(frozen),
            black_cameras=tuple(black),
            state_jump=None if last is None else self._jump(last, observation),
        )
        self._last = observation
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

    def _jump(self, last: Observation, new: Observation) -> str | None:
        periods = max(1.0, (new.stamp - last.stamp) * self._spec.control_hz)
        share = np.where(self._is_steady, np.abs(new.state - last.state) / self._span, 0.0)
        worst = int(share.argmax())
        if share[worst] <= self._limits.state_jump * periods:
            return None
        return (
            f"state {self._spec.state_names[worst]!r} jumped from {last.state[worst]:.4g} to "
            f"{new.state[worst]:.4g} in {new.stamp - last.stamp:.3f} s"
        )


class FrameHistory:
    """Past frames by capture time, for policies that look at more than the newest.

    Args:
        frame_offsets: which frames a policy looks at, in control periods before now, oldest first.
        period_s: length of a control period [s].
    """

    def __init__(self, *, frame_offsets: tuple[int, ...], period_s: float) -> None:
        self._offsets, self._period_s = frame_offsets, period_s
        self._kept: deque[tuple[float, Mapping[str, UInt8[np.ndarray, "h w 3"]]]] = deque(
            maxlen=2 * (max(frame_offsets) + 1)
        )

    def add(self, observation: Observation) -> None:
        """Keep the newest frame of every camera, unless it is known already."""
        if not self._kept or observation.stamp > self._kept[-1][0]:
            newest = {name: frames[-1] for name, frames in observation.images.items()}
            self._kept.append((observation.stamp, newest))

    def images(self) -> dict[str, UInt8[np.ndarray, "frames h w 3"]]:
        """Return for every camera the frames nearest to the wanted times; the first stands in for older."""
        now = self._kept[-1][0]
        wanted = [now - offset * self._period_s for offset in self._offsets]
        chosen = [min(self._kept, key=lambda one: abs(one[0] - moment))[1] for moment in wanted]  # noqa: B023
        return {name: np.stack([frames[name] for frames in chosen]) for name in chosen[-1]}

    def clear(self) -> None:
        """Forget all frames."""
        self._kept.clear()


class ObservationBuffer:
    """The newest good observation of a robot, and what is known about the stream that it belongs to.

    Args:
        spec: the robot.
        limits: when the stream counts as broken.
        frame_offsets: which frames the policy looks at; see `Policy.frame_offsets`.
    """

    def __init__(self, *, spec: RobotSpec, limits: StreamLimits, frame_offsets: tuple[int, ...]) -> None:
        self._spec, self._period_s = spec, 1.0 / spec.control_hz
        self._monitor = StreamMonitor(spec=spec, limits=limits)
        self._history = FrameHistory(frame_offsets=frame_offsets, period_s=self._period_s)
        self._stamps: deque[float] = deque(maxlen=_LIVE_OBSERVATIONS)
        self.newest: Observation | None = None
        self.blind_since: float | None = None  # when a camera was first seen frozen or black

    @property
    def health(self) -> StreamHealth:
        """What the stream is like."""
        return self._monitor.health

    def take(self, observation: Observation, now: float) -> bool:
        """Take in what the robot sent; false if it has been seen before.

        Raises:
            ObservationError: it is malformed, and counts as not having come.
        """
        check_observation(observation, self._spec)
        if self.newest is not None and observation.stamp <= self.newest.stamp:
            return False
        self.newest = observation
        self._stamps.append(observation.stamp)
        self._history.add(observation)
        health = self._monitor.update(observation)
        if not (health.frozen_cameras or health.black_cameras):
            self.blind_since = None
        elif self.blind_since is None:
            self.blind_since = now
        return True

    def is_live(self, now: float, *, max_age_s: float) -> bool:
        """Whether several new observations have come just now."""
        enough = len(self._stamps) == _LIVE_OBSERVATIONS
        return enough and now - self._stamps[0] <= max_age_s + (_LIVE_OBSERVATIONS - 1) * 2 * self._period_s

    def for_policy(self, instruction: str, committed: Float32[np.ndarray, "committed action"]) -> Observation:
        """Return the newest observation with the frames that the policy looks at."""
        assert self.newest is not None, "nothing has been observed"
        return dataclasses.replace(
            self.newest, images=self._history.images(), instruction=instruction, committed=committed
        )
