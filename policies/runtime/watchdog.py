"""Whether the robot may go on: a pure function of the time, the health of the run and the limits.

All times are seconds of one monotonic clock. A problem first means HOLD, which ends by itself when the
problem does; one that lasts means STOP, and what cannot be true means FAULT, and only an operator ends
these two. It has no state and no side effects.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from policies.runtime.clock import MISSED_WINDOW_S
from policies.runtime.observation_buffer import StreamHealth
from vla.registry import Range, check_attributes

_POSITIVE = Range(0, 1000, open_low=True)
UNDERRUN = "no action is left to execute"  # the reason when a chunk was used up before the next came


class Level(enum.IntEnum):
    """How bad it is; a higher level outranks a lower one."""

    OK = 0
    HOLD = 1
    STOP = 2
    FAULT = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A level and, unless all is well, why."""

    level: Level
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchdogLimits:
    """How long each problem may last [s]."""

    observation_hold_s: Annotated[float, _POSITIVE, "age of the stalest sensor, to hold"] = 0.25
    observation_stop_s: Annotated[float, _POSITIVE, "age of the stalest sensor, to stop"] = 1.0
    blind_stop_s: Annotated[float, _POSITIVE, "a camera frozen or black; holds at once"] = 2.0
    underrun_stop_s: Annotated[float, _POSITIVE, "no action left to execute; holds at once"] = 0.5
    failing_stop_s: Annotated[
        float, _POSITIVE, "since the first failed inference without a good one after it; holds at once"
    ] = 0.5
    refused_stop_s: Annotated[
        float, _POSITIVE, "the safety filter refuses what comes; each refusal holds by itself"
    ] = 0.5
    silent_stop_s: Annotated[float, _POSITIVE, "an inference that is not answered"] = 2.0
    unreadable_fault_s: Annotated[
        float, _POSITIVE, "the driver raises whenever it is observed; one failure is no observation"
    ] = 0.5
    missed_stop_share: Annotated[
        float, Range(0, 1, open_low=True), f"of the control periods of the last {MISSED_WINDOW_S:g} s"
    ] = 0.3
    hung_stop_s: Annotated[
        float, _POSITIVE, "a period that does not end; a thread of its own stops the robot"
    ] = 0.5

    def __post_init__(self) -> None:
        check_attributes(self, where="watchdog")
        if self.observation_hold_s > self.observation_stop_s:
            raise ValueError(
                f"observation_hold_s={self.observation_hold_s} is more than observation_stop_s="
                f"{self.observation_stop_s}; a robot holds before it stops"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthSnapshot:
    """What is known at a moment. A `since` is the time at which a problem began, or None without one."""

    sensor_stamps: Mapping[str, float] = field(default_factory=dict)  # newest measurement of each, by name
    stream: StreamHealth = field(default_factory=StreamHealth)
    blind_since: float | None = None
    underrun_since: float | None = None
    failing_since: float | None = None
    failure: str = ""  # what failed last
    refused_since: float | None = None
    waiting_since: float | None = None  # when the oldest unanswered inference was requested
    unreadable_since: float | None = None  # the driver has raised at every look since
    unreadable: str = ""  # what it raised
    missed_share: float = 0.0  # of the last control periods, those that began late or not at all


OK = Verdict(level=Level.OK)


def assess_observation(now: float, health: HealthSnapshot, limits: WatchdogLimits) -> Verdict:
    """Judge what the sensors report; unless this is OK, nothing new is inferred."""
    if health.stream.state_jump is not None:
        return Verdict(level=Level.FAULT, reason=health.stream.state_jump)
    if health.unreadable_since is not None and now - health.unreadable_since > limits.unreadable_fault_s:
        return Verdict(level=Level.FAULT, reason=f"the robot cannot be observed: {health.unreadable}")
    why = "" if health.unreadable_since is None else f": {health.unreadable}"
    if not health.sensor_stamps:
        return Verdict(level=Level.HOLD, reason=f"no observation has arrived{why}")
    stalest, stamp = min(health.sensor_stamps.items(), key=lambda item: item[1])
    age = now - stamp
    if age > limits.observation_hold_s:
        level = Level.STOP if age > limits.observation_stop_s else Level.HOLD
        return Verdict(level=level, reason=f"the newest observation is {age:.2f} s old ({stalest}){why}")
    if health.blind_since is not None:
        level = Level.STOP if now - health.blind_since > limits.blind_stop_s else Level.HOLD
        cameras = [f"{name} is frozen" for name in health.stream.frozen_cameras]
        cameras += [f"{name} is black" for name in health.stream.black_cameras]
        return Verdict(level=level, reason=f"camera {', '.join(cameras)}")
    return OK


def assess_inference(now: float, health: HealthSnapshot, limits: WatchdogLimits) -> Verdict:
    """Judge what comes from the policy, and whether the loop keeps time."""
    verdicts = [OK]
    lasting = (
        (health.failing_since, limits.failing_stop_s, Level.HOLD, f"inference fails: {health.failure}"),
        (health.underrun_since, limits.underrun_stop_s, Level.HOLD, UNDERRUN),
        # OK, so that the next action is tried: it may be a good one.
        (health.refused_since, limits.refused_stop_s, Level.OK, f"refused as unsafe: {health.failure}"),
    )
    for since, stop_s, meanwhile, reason in lasting:
        if since is not None:
            level = Level.STOP if now - since > stop_s else meanwhile
            verdicts.append(Verdict(level=level, reason=reason))
    if health.waiting_since is not None and now - health.waiting_since > limits.silent_stop_s:
        silence = now - health.waiting_since
        verdicts.append(Verdict(level=Level.STOP, reason=f"the policy has not answered for {silence:.2f} s"))
    if health.missed_share >= limits.missed_stop_share:
        reason = (
            f"the loop missed {health.missed_share:.0%} of its control periods in the last "
            f"{MISSED_WINDOW_S:g} s"
        )
        verdicts.append(Verdict(level=Level.STOP, reason=reason))
    return max(verdicts, key=lambda verdict: verdict.level)


def assess(now: float, health: HealthSnapshot, limits: WatchdogLimits) -> Verdict:
    """Return the worst of all verdicts."""
    observation, inference = assess_observation(now, health, limits), assess_inference(now, health, limits)
    return observation if observation.level >= inference.level else inference
