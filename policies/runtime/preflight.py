"""Looks at a robot and a policy before the first run: everything that a control loop does, except to send.

`observe_and_infer` runs the loop for some seconds and keeps what it saw; `checks` judges that, line by line:
cameras, units, ranges, rates, latency, and what the first chunk would do to the robot where it stands.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from policies.runtime.clock import Clock, Pacer, short_collections
from policies.runtime.inference import POLICY_ERRORS, BadResult, InferenceResult, ResultGate
from policies.runtime.limits import SafetyLimits
from policies.runtime.observation_buffer import FrameHistory, StreamLimits, check_reading, sensor_stamps
from policies.runtime.safety import SafetyFilter, UnsafeCommand, UnsafeStart
from policies.runtime.watchdog import WatchdogLimits
from vla.interface import ObservationError, Policy, Robot, SensorReading
from vla.spec import RobotSpec

GOOD, DOUBTFUL, BAD = "good", "doubtful", "bad"
DRIVER_ERRORS: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, LookupError, TypeError)
_ENOUGH = 0.8  # of the control rate: a camera below delivers the same picture to several periods
_ROOM = 0.7  # of a period: observing that takes longer leaves too little for the rest
_CHUNKS_MAX = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line: what was looked at, what was found, what would be right, and what to do if it is not."""

    level: str  # GOOD, DOUBTFUL or BAD
    what: str
    found: str
    wanted: str
    advice: str = ""


@dataclass(kw_only=True)
class Seen:
    """What a robot and a policy showed."""

    readings: list[SensorReading] = field(default_factory=list)  # at the robot's rate
    ages_s: list[dict[str, float]] = field(default_factory=list)  # of each sensor, at each reading
    observe_s: list[float] = field(default_factory=list)  # how long each look took
    errors: list[str] = field(default_factory=list)  # of the driver, and of malformed readings
    num_looks: int = 0
    missed_share: float = 0.0
    inference_s: list[float] = field(default_factory=list)
    chunks: list[Float[np.ndarray, "time action"]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # of the policy
    stood: list[Float[np.ndarray, " state"]] = field(default_factory=list)  # state that each chunk is from


def observe_and_infer(
    robot: Robot, policy: Policy, *, instruction: str, clock: Clock, seconds: float
) -> Seen:
    """Observe at the robot's rate, then infer on what comes; nothing is sent to the robot.

    One after the other, as each would hide how long the other takes.

    Args:
        robot: observed only.
        policy: asked again and again.
        instruction: for the policy.
        clock: real time.
        seconds: how long, in all.
    """
    seen = Seen()
    history = FrameHistory(spec=robot.robot_spec, frame_offsets=policy.frame_offsets)
    with short_collections():
        _observe(robot, history, seen, clock=clock, seconds=seconds / 2)
        _infer(robot, policy, history, seen, instruction=instruction, clock=clock, seconds=seconds / 2)
    return seen


def observe(robot: Robot, *, clock: Clock, seconds: float) -> Seen:
    """Observe at the robot's rate, without a policy; nothing is sent to the robot.

    Args:
        robot: observed only.
        clock: real time.
        seconds: how long.
    """
    seen = Seen()
    history = FrameHistory(spec=robot.robot_spec, frame_offsets=(0,))
    with short_collections():
        _observe(robot, history, seen, clock=clock, seconds=seconds)
    return seen


def _observe(robot: Robot, history: FrameHistory, seen: Seen, *, clock: Clock, seconds: float) -> None:
    period_s = 1.0 / robot.robot_spec.control_hz
    _look(robot, history, seen, clock)  # the first look opens things; it does not count as a rate
    seen.observe_s.clear()
    num_periods = max(2, round(seconds / period_s))
    pacer = Pacer(clock=clock, period_s=period_s)
    for _ in range(num_periods):
        pacer.wait()
        reading = _look(robot, history, seen, clock)
        if reading is not None:
            now = clock.now()
            seen.readings.append(reading)
            seen.ages_s.append({name: now - stamp for name, stamp in sensor_stamps(reading).items()})
    seen.missed_share = pacer.num_missed / num_periods


def _look(robot: Robot, history: FrameHistory, seen: Seen, clock: Clock) -> SensorReading | None:
    began = clock.now()
    seen.num_looks += 1
    try:
        reading = robot.observe()
        check_reading(reading, robot.robot_spec)
    except (ObservationError, *DRIVER_ERRORS) as error:
        seen.errors.append(f"{type(error).__name__}: {error}")
        return None
    seen.observe_s.append(clock.now() - began)
    history.add(reading)
    return reading


def _infer(
    robot: Robot,
    policy: Policy,
    history: FrameHistory,
    seen: Seen,
    *,
    instruction: str,
    clock: Clock,
    seconds: float,
) -> None:
    num_actions = len(robot.robot_spec.action)
    began = clock.now()
    for seq in range(1, _CHUNKS_MAX + 1):
        _look(robot, history, seen, clock)
        if history.newest is None:
            return
        observation = history.observation(instruction, np.zeros((0, num_actions), np.float32))
        asked = clock.now()
        try:
            actions: Any = policy.predict([observation])[0]
            result = InferenceResult(
                seq=seq, stamp=observation.stamp, submitted_at=asked, finished_at=clock.now(), actions=actions
            )
            chunk = ResultGate(num_actions=num_actions).admit(result)
        except (BadResult, *POLICY_ERRORS) as error:
            seen.failures.append(f"{type(error).__name__}: {error}")
        else:
            seen.inference_s.append(result.finished_at - asked)
            seen.chunks.append(chunk.actions.astype(np.float64))
            seen.stood.append(np.asarray(history.newest.state, np.float64))
        if clock.now() - began > seconds:
            return


def checks(
    seen: Seen,
    *,
    spec: RobotSpec,
    limits: SafetyLimits,
    watchdog: WatchdogLimits,
    stream: StreamLimits,
    schedule: str,
    execute_horizon: int,
) -> list[Check]:
    """Judge what was seen; see `Check`."""
    found = observation_checks(seen, spec=spec, watchdog=watchdog, stream=stream)
    found += _inference(seen, spec, schedule=schedule, execute_horizon=execute_horizon)
    return [*found, unlimited(limits), *_first_chunk(seen, spec, limits)]


def observation_checks(
    seen: Seen, *, spec: RobotSpec, watchdog: WatchdogLimits, stream: StreamLimits
) -> list[Check]:
    """Judge what the robot showed, without a policy; see `Check`."""
    found = [_driver(seen), _rate(seen, spec)]
    if seen.readings:
        found += [*_cameras(seen, spec, watchdog, stream), *_states(seen, spec, stream)]
    return found


def _driver(seen: Seen) -> Check:
    failed = len(seen.errors)
    return Check(
        level=GOOD if not failed else DOUBTFUL if failed < 0.05 * seen.num_looks else BAD,
        what="readings",
        found=f"{seen.num_looks - failed} of {seen.num_looks} are whole"
        + (f"; the last that was not: {seen.errors[-1]}" if failed else ""),
        wanted="all",
        advice="look at cables, ports and the names and sizes of the cameras" if failed else "",
    )


def _rate(seen: Seen, spec: RobotSpec) -> Check:
    period_ms = 1e3 / spec.control_hz
    if not seen.observe_s:
        return Check(level=BAD, what="time to observe", found="nothing was observed", wanted="")
    median, p99 = np.percentile(seen.observe_s, [50, 99]) * 1e3
    is_slow, is_tight = median > _ROOM * period_ms or seen.missed_share >= 0.3, p99 > _ROOM * period_ms
    return Check(
        level=BAD if is_slow else DOUBTFUL if is_tight or seen.missed_share > 0.02 else GOOD,
        what="time to observe",
        found=f"median {median:.1f} ms, p99 {p99:.1f} ms; {seen.missed_share:.0%} of the periods missed",
        wanted=f"well below the period, {period_ms:.0f} ms at {spec.control_hz:g} Hz",
        advice="have cameras read in threads, lower their resolution, or lower control_hz"
        if is_slow or is_tight
        else "",
    )


def _cameras(seen: Seen, spec: RobotSpec, watchdog: WatchdogLimits, stream: StreamLimits) -> list[Check]:
    found, hold_s = [], watchdog.observation_hold_s
    for camera in spec.cameras:
        stamps = sorted({reading.image_stamps[camera.name] for reading in seen.readings})
        span = stamps[-1] - stamps[0]
        rate = (len(stamps) - 1) / span if span > 0 else 0.0
        age = float(np.percentile([ages[f"camera {camera.name}"] for ages in seen.ages_s], 90))
        is_rare, is_old = rate < _ENOUGH * spec.control_hz, age > hold_s / 2
        found.append(
            Check(
                level=BAD if age > hold_s or rate == 0.0
                else DOUBTFUL if is_rare or is_old else GOOD,
                what=f"camera {camera.name}: new pictures",
                found=f"{rate:.1f} a second, {1e3 * age:.0f} ms old (p90)",
                wanted=f"{spec.control_hz:g} a second, at most {1e3 * hold_s:.0f} ms old",
                advice="raise the camera's rate, or lower control_hz" if is_rare or is_old else "",
            )
        )  # fmt: skip
        brightness = float(np.mean([reading.images[camera.name].mean() for reading in seen.readings[-5:]]))
        is_black = brightness < stream.black_level
        found.append(
            Check(
                level=BAD if is_black else GOOD,
                what=f"camera {camera.name}: picture",
                found=f"{camera.width} x {camera.height}, mean brightness {brightness:.0f} of 255",
                wanted=f"brighter than {stream.black_level:g}; compare it with the recording by eye",
                advice="take the cap off, turn on the light, or choose another device" if is_black else "",
            )
        )
    return found


def _states(seen: Seen, spec: RobotSpec, stream: StreamLimits) -> list[Check]:
    states = np.stack([np.asarray(reading.state, np.float64) for reading in seen.readings])
    jumps = np.abs(np.diff(states, axis=0)).max(0) if len(states) > 1 else np.zeros(states.shape[1])
    found = []
    for column, channel in enumerate(spec.state):
        low, high = float(states[:, column].min()), float(states[:, column].max())
        span, unit = channel.high - channel.low, "" if channel.unit == "1" else f" {channel.unit}"
        is_out = low < channel.low or high > channel.high
        is_far = low < channel.low - span / 2 or high > channel.high + span / 2
        has_jumped = jumps[column] > stream.state_jump * span
        advice = ""
        if is_out:
            advice = "the robot, or its unit or zero, is another than in the recording"
            if channel.unit == "rad" and max(abs(low), abs(high)) > 6.3:
                advice = "these look like degrees; the spec is in radians"
        found.append(
            Check(
                level=BAD if is_far or has_jumped else DOUBTFUL if is_out else GOOD,
                what=f"state {channel.name}",
                found=f"{low:.4g} to {high:.4g}{unit}" + (", with a jump" if has_jumped else ""),
                wanted=f"in [{channel.low:g}, {channel.high:g}]{unit}",
                advice=advice,
            )
        )
    return found


def _inference(seen: Seen, spec: RobotSpec, *, schedule: str, execute_horizon: int) -> list[Check]:
    if seen.failures or not seen.chunks:
        return [
            Check(
                level=BAD,
                what="chunks",
                found=f"{len(seen.chunks)} good, {len(seen.failures)} not"
                + (f": {seen.failures[-1]}" if seen.failures else ""),
                wanted="every answer is a chunk of finite numbers",
            )
        ]
    median, p90 = np.percentile(seen.inference_s, [50, 90])
    horizon_s = len(seen.chunks[0]) / spec.control_hz
    rest_s = horizon_s - execute_horizon / spec.control_hz  # left of a chunk when the next is requested
    waits = schedule == "sync"
    is_dry = not waits and p90 > rest_s
    return [
        Check(
            level=BAD if is_dry and median > rest_s else DOUBTFUL if is_dry or p90 > horizon_s else GOOD,
            what="time to infer",
            found=f"median {1e3 * median:.0f} ms, p90 {1e3 * p90:.0f} ms, {len(seen.chunks)} chunks",
            wanted="the robot waits for each" if waits else f"less than {1e3 * rest_s:.0f} ms, which a chunk "
            f"lasts after the next is requested",
            advice="lower execute_horizon, use schedule=sync, or infer on a faster machine" if is_dry else "",
        )
    ]  # fmt: skip


def unlimited(limits: SafetyLimits) -> Check:
    """Judge whether every channel is limited in acceleration and jerk."""
    open_ended = [
        name
        for name, one in limits.channels.items()
        if not limits.is_gripper[list(limits.channels).index(name)]
        and not np.isfinite([one.acceleration, one.jerk]).all()
    ]
    return Check(
        level=DOUBTFUL if open_ended else GOOD,
        what="limits",
        found=f"no limit of acceleration or jerk: {', '.join(open_ended)}" if open_ended else "all set",
        wanted="velocity, acceleration and jerk of every channel",
        advice="the driver's own limits must catch jerky motion then" if open_ended else "",
    )


def _first_chunk(seen: Seen, spec: RobotSpec, limits: SafetyLimits) -> list[Check]:
    """Try every chunk on a safety filter from where the robot stood, as if all of it were executed."""
    if not seen.chunks:
        return []
    clamps: dict[str, int] = {}
    refusals: list[str] = []
    leads: list[np.ndarray] = []
    for chunk, state in zip(seen.chunks, seen.stood, strict=True):
        safety = SafetyFilter(spec=spec, limits=limits)
        try:
            safety.reset(state)
            safety.require_sane(chunk.astype(np.float32))
            begins = safety.position
            for action in chunk:
                for clamp in safety.step(action).clamps:
                    clamps[clamp] = clamps.get(clamp, 0) + 1
        except (UnsafeStart, UnsafeCommand) as error:
            refusals.append(str(error))
            continue
        first = np.where(safety.absolute, chunk[0] - begins, chunk[0] * spec.change_per_action)
        fastest = np.array([one.velocity / spec.control_hz for one in limits.channels.values()])
        leads.append(np.where(limits.is_gripper, 0.0, np.abs(first) / fastest))
    found = [
        Check(
            level=BAD if refusals else GOOD,
            what="chunks and the safety filter",
            found=f"{len(refusals)} of {len(seen.chunks)} refused{f': {refusals[-1]}' if refusals else ''}",
            wanted="none",
            advice="another robot, unit or convention than in the recording, or wrong limits"
            if refusals else "",
        )
    ]  # fmt: skip
    if leads:
        worst = np.max(leads, axis=0)
        name, share = spec.action_names[int(worst.argmax())], float(worst.max())
        found.append(
            Check(
                level=GOOD if share <= 1.0 else DOUBTFUL if share <= 3.0 else BAD,
                what="first action against where the robot stands",
                found=f"{share:.2g} of the way that the velocity limit allows ({name})",
                wanted="at most 1",
                advice="bring the robot near to where the recordings begin" if share > 1.0 else "",
            )
        )
        num_actions = sum(len(chunk) for chunk in seen.chunks)
        listed = ", ".join(f"{name} {count}" for name, count in sorted(clamps.items())[:8]) or "none"
        share = max(clamps.values(), default=0) / num_actions
        found.append(
            Check(
                level=GOOD if share < 0.1 else DOUBTFUL,
                what="actions that the limits would clamp",
                found=f"{listed}; of {num_actions}",
                wanted="few",
                advice="the recording moves faster than these limits" if share >= 0.1 else "",
            )
        )
    return found


def worst_level(found: Sequence[Check]) -> str:
    """Return the worst level of all."""
    order = (GOOD, DOUBTFUL, BAD)
    return max((one.level for one in found), key=order.index, default=GOOD)


def to_json(found: Sequence[Check]) -> list[dict[str, str]]:
    """Return the checks as JSON-ready data."""
    return [dataclasses.asdict(one) for one in found]
