"""One trial with a Franka arm: from the start of a scene to rest, with or without a fault on the way.

It drives the controller that drives every robot, and reads the answer from the recording. How many trials
there are, and what counts as passed, is for franka_trials.py.
"""

import dataclasses
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.tabletop.live_view import LiveView
from experiments.config.control_setup import RemoteForWorker, build_controller, drive
from experiments.config.schema import FrankaTrialsRun
from experiments.franka.audit import SetpointAudit, audit_setpoints, last_motion_s
from experiments.franka.scene import FrankaInScene, FrankaSetup
from policies.robots.franky_arm import FrankyArm, Setpoint, wait_at_rest
from policies.runtime.clock import Clock
from policies.runtime.inference import ThreadedInference
from policies.runtime.recorder import PeriodRecord, Recorder, Recording, audit_recording, read_recording

MID_MOTION_M = 0.03  # how far the hand has come when a fault is injected,
MID_MOTION_STEP_M = 0.004  # and how far it is commanded to go in that period


FAULT_SECONDS = 5.0  # how long a trial with a fault goes on if nothing stops it


class TrialsFailed(RuntimeError):
    """The arm did not do what it must; the message lists what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSetup:
    """What trials share."""

    run: FrankaTrialsRun
    robot: FrankaSetup
    arm: FrankyArm
    view: LiveView
    clock: Clock
    setpoints: list[Setpoint]  # filled by the arm


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultTimes:
    """When what followed upon a fault [s]; of the controller's clock, rest of the arm's."""

    to_hold_s: float | None  # from the fault to the first period that held; None if none had to
    hold_delay_periods: int | None  # periods from the last executed action to the first that held, less 1
    to_stopped_s: float | None  # from the fault to STOPPED; None if the policy came back in time
    to_rest_s: float | None  # from the fault to the last motion that was measured; None if never STOPPED
    ran_blind: int  # periods in RUNNING without an action to execute: there must be none
    oldest_action_s: float  # age of the oldest action that was executed after the fault


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What one trial came to."""

    seed: int
    instruction: str
    success: bool
    end: str
    seconds: float  # of the controller's clock, from start to end
    realtime_factor: float  # of the arm's clock against the wall's
    chunk_s: float  # how far ahead the policy plans
    missed_periods: int
    recorded_violations: int  # of the limits in the configuration, by commands at control rate
    audit: SetpointAudit  # of every millisecond
    inference_ms: float | None  # median
    fault: str = ""
    times: FaultTimes | None = None

    @property
    def is_within_limits(self) -> bool:
        """Whether nothing that was sent broke a limit."""
        return self.recorded_violations == 0 and self.audit.violations == 0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return dataclasses.asdict(self) | {"setpoint_violations": self.audit.violations}


class FaultInjector:
    """Injects a fault once, when the arm is in the middle of its way."""

    def __init__(self, inject: Callable[[], None], *, arm: FrankyArm, clock: Clock) -> None:
        self._inject, self._arm, self._clock = inject, arm, clock
        self._began_at: np.ndarray | None = None
        self.at_s: float | None = None  # the controller's clock,
        self.arm_at_s = 0.0  # and the arm's

    def watch(self, record: PeriodRecord) -> None:
        """Look at the record of a period, and inject the fault if this is the moment."""
        if self.at_s is not None or record.state != "RUNNING" or record.commanded is None:
            return
        assert record.measured is not None, "running without a state"
        here = np.array(record.measured[:3])
        self._began_at = here if self._began_at is None else self._began_at
        step = float(np.linalg.norm(record.commanded[:3]))
        if np.linalg.norm(here - self._began_at) > MID_MOTION_M and step > MID_MOTION_STEP_M:
            self._inject()
            self.at_s, self.arm_at_s = self._clock.now(), self._arm.newest_time_s


def run_trial(
    setup: TrialSetup,
    *,
    url: str,
    seed: int,
    directory: Path,
    fault: str = "",
    inject: Callable[[], None] = lambda: None,
) -> Trial:
    """Place the arm in the scene of a seed, drive it with the policy at an address, and judge the recording.

    Raises:
        PolicyUnavailable: the policy server is not there.
        FrankaFault: the arm is in error.
        ArmingRefused: the controller never became ready.
    """
    robot = setup.robot.place_in_scene(arm=setup.arm, view=setup.view, seed=seed, clock=setup.clock)
    robot.warm_up()
    setup.setpoints.clear()
    injector = FaultInjector(inject if fault else lambda: None, arm=setup.arm, clock=setup.clock)
    began, arm_began = time.monotonic(), setup.arm.newest_time_s
    chunk_s = _drive_recorded(
        setup, robot, url=url, directory=directory, injector=injector, is_fault=bool(fault)
    )
    wait_at_rest(setup.arm)
    wall_s, arm_s = time.monotonic() - began, setup.arm.newest_time_s - arm_began
    recording = read_recording(directory)
    times = None
    if fault:
        if injector.at_s is None:
            raise ValueError(f"seed {seed}: the arm was never in the middle of its way; {directory} has it")
        rest_s = last_motion_s(setup.setpoints) - injector.arm_at_s
        times = fault_times(recording, injected_at=injector.at_s, to_rest_s=rest_s)
    waits = [one.inference_s for one in recording.periods if one.inference_s is not None]
    last = recording.periods[-1]
    return Trial(
        seed=seed,
        instruction=robot.instruction,
        success=robot.success,
        end=f"{last.state}: {last.reason}" if last.reason else last.state,
        seconds=last.now - next(one.now for one in recording.periods if one.start is not None),
        realtime_factor=arm_s / wall_s,
        chunk_s=chunk_s,
        missed_periods=last.missed,
        recorded_violations=len(audit_recording(recording, setup.robot.limits)),
        audit=audit_setpoints(setup.setpoints),
        inference_ms=1e3 * float(np.median(waits)) if waits else None,
        fault=fault,
        times=times,
    )


def _drive_recorded(
    setup: TrialSetup,
    robot: FrankaInScene,
    *,
    url: str,
    directory: Path,
    injector: FaultInjector,
    is_fault: bool,
) -> float:
    """Drive to the end of the trial, recorded in a directory; return how far ahead the policy plans [s]."""
    limits = setup.robot.limits
    about = {"instruction": robot.instruction, "schedule": setup.run.schedule, "limits": limits.to_json()}
    policy = RemoteForWorker(url=url, token=None)
    with (
        closing(policy),
        Recorder(directory, spec=robot.robot_spec, about=about) as recorder,
        closing(ThreadedInference(policy=policy, clock=setup.clock)) as inference,
    ):
        controller = build_controller(
            robot=robot,
            policy=policy,
            inference=inference,
            limits=limits,
            max_committed=policy.max_committed,
            schedule=setup.run.schedule,
            execute_horizon=setup.run.execute_horizon,
            delta_to_absolute=True,
            instruction=robot.instruction,
            watchdog=setup.run.watchdog,
            stream=setup.run.stream,
            clock=setup.clock,
            recorder=recorder,
        )
        seconds = FAULT_SECONDS if is_fault else setup.run.max_seconds
        drive(
            controller,
            is_over=lambda: robot.is_over and not is_fault,  # a fault is watched to its end
            max_periods=round(seconds / controller.period_s),
            on_period=injector.watch,
        )
        return policy.action_horizon * controller.period_s


def fault_times(recording: Recording, *, injected_at: float, to_rest_s: float) -> FaultTimes:
    """Read from a recording what followed upon a fault, injected at a time of the controller's clock."""
    after = [one for one in recording.periods if one.now > injected_at]
    executed = [one for one in after if one.target is not None]
    holding = next((one for one in after if one.state in ("HOLD", "STOPPED", "FAULT")), None)
    stopped = next((one for one in after if one.state == "STOPPED"), None)
    delay = None
    if holding is not None:
        before = [
            one.index for one in recording.periods if one.target is not None and one.index < holding.index
        ]
        delay = holding.index - before[-1] - 1
    return FaultTimes(
        to_hold_s=None if holding is None else holding.now - injected_at,
        hold_delay_periods=delay,
        to_stopped_s=None if stopped is None else stopped.now - injected_at,
        to_rest_s=None if stopped is None else to_rest_s,
        ran_blind=sum(one.state == "RUNNING" and one.target is None for one in after),
        oldest_action_s=max((one.chunk_age_s or 0.0 for one in executed), default=0.0),
    )
