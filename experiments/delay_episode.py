"""One episode of the delay table, as a job of a worker process.

Time is simulated: an inference takes exactly the delay of its cell. A file of its own, as a worker unpickles
the job and so imports it; what is defined in a program's main module it could not find.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from envs.base import ManipulationEnv
from envs.sim_robot import SimRobot
from envs.workers import Job, Workspace
from experiments.config.control_setup import (
    build_controller,
    drive,
    task_config,
)
from experiments.config.schema import DelayTableRun
from experiments.config.simulated_robot import SimulatedRobot
from experiments.reports.pages import DelayRow
from policies.exported import BundlePolicy
from policies.runtime.clock import SimulatedClock
from policies.runtime.inference import SimulatedInference
from policies.runtime.limits import SafetyLimits
from policies.runtime.recorder import PeriodRecord, Recording, audit_recording
from policies.runtime.watchdog import UNDERRUN
from vla.interface import Policy

START_PERIODS = 10  # beyond an episode's own: the observations that arming takes


class Key(NamedTuple):
    """Which episode."""

    schedule: str
    delay_ms: float
    seed: int


OpenPolicy = Callable[[DelayTableRun, ManipulationEnv], tuple[Policy, int]]


@functools.cache
def _load_bundle(path: str, num_threads: int) -> BundlePolicy:
    return BundlePolicy.load(path, num_threads=num_threads, verify=False)  # the program has


def open_bundle(run: DelayTableRun, env: ManipulationEnv) -> tuple[Policy, int]:
    """Return the policy of the run's bundle, loaded once per process, and its `max_committed`."""
    bundle = _load_bundle(run.bundle, run.num_threads)
    return bundle, bundle.processor.max_committed


@dataclass(frozen=True, kw_only=True, slots=True)
class DelayEpisode(Job):
    """An episode for a worker process; `open_policy` is called there."""

    run_config: DelayTableRun
    key: Key
    open_policy: OpenPolicy = open_bundle

    def describe(self) -> str:
        """Return a short name for messages."""
        return f"episode {self.key}"

    def run(self, workspace: Workspace, slot: int) -> DelayRow:
        """Run the episode."""
        env = workspace.env(slot, task_config(self.run_config))
        policy, max_committed = self.open_policy(self.run_config, env)
        return run_episode(env, policy, self.key, max_committed=max_committed, run=self.run_config)


def run_episode(
    env: ManipulationEnv, policy: Policy, key: Key, *, max_committed: int, run: DelayTableRun
) -> DelayRow:
    """Run one episode in simulated time.

    Raises:
        SpecMismatch: policy and environment differ.
    """
    assert isinstance(run.robot, SimulatedRobot), "main has looked"
    clock, limits = SimulatedClock(), run.robot.limits
    env.start_episode(seed=key.seed)
    robot = SimRobot(env=env, clock=clock, faults=run.robot.faults, seed=key.seed)
    controller = build_controller(
        robot=robot,
        policy=policy,
        inference=SimulatedInference(policy=policy, clock=clock, delay_s=lambda: key.delay_ms / 1e3),
        limits=limits,
        max_committed=max_committed,
        schedule=key.schedule,
        execute_horizon=run.execute_horizon,
        delta_to_absolute=run.delta_to_absolute,
        instruction=robot.instruction,
        watchdog=run.watchdog,
        stream=run.stream,
        clock=clock,
    )
    periods: list[PeriodRecord] = []
    drive(
        controller,
        is_over=lambda: robot.is_over,
        max_periods=env.max_steps + START_PERIODS,
        on_period=periods.append,
    )
    recording = Recording(robot_spec=robot.robot_spec, about={}, periods=periods)
    counts = controller.counts
    acted = [one.state == "RUNNING" and one.target is not None for one in periods]
    first = acted.index(True) if any(acted) else len(periods)
    return DelayRow(
        **key._asdict(),
        success=robot.success,
        periods=len(periods),
        chunks=counts["chunks"],
        holds=counts["times HOLD"],
        dry=sum(event == f"RUNNING -> HOLD: {UNDERRUN}" for one in periods for event in one.events),
        idle=sum(
            not has_acted and one.state in ("RUNNING", "HOLD")
            for one, has_acted in zip(periods[first:], acted[first:], strict=True)
        ),
        clamped=sum(bool(one.clamps) for one in periods),
        largest_jump=_largest_jump(recording, limits),
        violations=len(audit_recording(recording, limits)),
        end=controller.state.value,
    )


def _largest_jump(recording: Recording, limits: SafetyLimits) -> float:
    spec = recording.robot_spec
    sent = [one.commanded for one in recording.periods if one.commanded is not None]
    if len(sent) < 2:
        return 0.0
    share = np.abs(np.diff(np.array(sent), axis=0)) / (spec.action_high - spec.action_low)
    return float(share[:, ~limits.is_gripper].max())
