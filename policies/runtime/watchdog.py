"""Whether the robot may go on: a pure function of the time, the facts and the limits.

All times are seconds of one monotonic clock. A problem first means HOLD, which ends by itself when the
problem does; one that lasts means STOP, and what cannot be true means FAULT, and these two are for people to
end. It keeps nothing and does nothing.
"""

import enum
from dataclasses import dataclass, field
from typing import Annotated

from policies.runtime.stream import StreamFacts
from vla.registry import Range, check_attributes

_POSITIVE = Range(0, open_low=True)
STARVED = "no action is left to execute"  # the reason when a chunk was used up before the next came


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

    observation_hold_s: Annotated[float, _POSITIVE, "age of the newest observation, to hold"] = 0.25
    observation_stop_s: Annotated[float, _POSITIVE, "age of the newest observation, to stop"] = 1.0
    blind_stop_s: Annotated[float, _POSITIVE, "a camera frozen or black; holds at once"] = 2.0
    starved_stop_s: Annotated[float, _POSITIVE, "no action left to execute; holds at once"] = 0.5
    failing_stop_s: Annotated[
        float, _POSITIVE, "since the first failed inference without a good one after it; holds at once"
    ] = 0.5
    refused_stop_s: Annotated[
        float, _POSITIVE, "the safety filter refuses what comes; each refusal holds by itself"
    ] = 0.5
    silent_stop_s: Annotated[float, _POSITIVE, "an inference that is not answered"] = 2.0
    missed_stop: Annotated[int, Range(1), "control periods missed in a row"] = 5

    def __post_init__(self) -> None:
        check_attributes(self, where="watchdog")
        if self.observation_hold_s > self.observation_stop_s:
            raise ValueError(
                f"observation_hold_s={self.observation_hold_s} is more than observation_stop_s="
                f"{self.observation_stop_s}; a robot holds before it stops"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known at a moment. A `since` is the time at which a problem began, or None without one."""

    observation_stamp: float | None = None  # capture time of the newest good observation
    stream: StreamFacts = field(default_factory=StreamFacts)
    blind_since: float | None = None
    starved_since: float | None = None
    failing_since: float | None = None
    failure: str = ""  # what failed last
    refused_since: float | None = None
    waiting_since: float | None = None  # when the oldest unanswered inference was asked for
    missed_in_a_row: int = 0  # control periods that began late or not at all


OK = Verdict(level=Level.OK)


def assess_observation(now: float, facts: Facts, limits: WatchdogLimits) -> Verdict:
    """Judge what the robot tells of itself; unless this is OK, nothing new is inferred."""
    if facts.stream.state_jump is not None:
        return Verdict(level=Level.FAULT, reason=facts.stream.state_jump)
    if facts.observation_stamp is None:
        return Verdict(level=Level.HOLD, reason="no observation has arrived")
    age = now - facts.observation_stamp
    if age > limits.observation_hold_s:
        level = Level.STOP if age > limits.observation_stop_s else Level.HOLD
        return Verdict(level=level, reason=f"the newest observation is {age:.2f} s old")
    if facts.blind_since is not None:
        level = Level.STOP if now - facts.blind_since > limits.blind_stop_s else Level.HOLD
        cameras = [f"{name} is frozen" for name in facts.stream.frozen_cameras]
        cameras += [f"{name} is black" for name in facts.stream.black_cameras]
        return Verdict(level=level, reason=f"camera {', '.join(cameras)}")
    return OK


def assess_inference(now: float, facts: Facts, limits: WatchdogLimits) -> Verdict:
    """Judge what comes from the policy, and whether the loop keeps time."""
    verdicts = [OK]
    lasting = (
        (facts.failing_since, limits.failing_stop_s, Level.HOLD, f"inference fails: {facts.failure}"),
        (facts.starved_since, limits.starved_stop_s, Level.HOLD, STARVED),
        # OK, so that the next action is tried: it may be a good one.
        (facts.refused_since, limits.refused_stop_s, Level.OK, f"refused as unsafe: {facts.failure}"),
    )
    for since, stop_s, meanwhile, reason in lasting:
        if since is not None:
            level = Level.STOP if now - since > stop_s else meanwhile
            verdicts.append(Verdict(level=level, reason=reason))
    if facts.waiting_since is not None and now - facts.waiting_since > limits.silent_stop_s:
        silence = now - facts.waiting_since
        verdicts.append(Verdict(level=Level.STOP, reason=f"the policy has been silent for {silence:.2f} s"))
    if facts.missed_in_a_row >= limits.missed_stop:
        reason = f"{facts.missed_in_a_row} periods in a row were missed"
        verdicts.append(Verdict(level=Level.STOP, reason=reason))
    return max(verdicts, key=lambda verdict: verdict.level)


def assess(now: float, facts: Facts, limits: WatchdogLimits) -> Verdict:
    """Return the worst of all verdicts."""
    observation, inference = assess_observation(now, facts, limits), assess_inference(now, facts, limits)
    return observation if observation.level >= inference.level else inference
