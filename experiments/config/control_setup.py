"""Builds what the programs that drive robots have in common, from their configuration.

It also knows the course of one run, from the first observation to rest. The parts themselves are in
`policies/runtime`.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from omegaconf import OmegaConf

from experiments.config.robot import ROBOTS
from experiments.config.schema import ControlRun, DelayTableRun, EvaluationRunSettings
from experiments.config.simulation import env_configs
from experiments.config.trained_setting import SETTING, describe, setting_in
from policies.runtime.chunking import make_schedule
from policies.runtime.clock import Clock
from policies.runtime.controller import ArmingRefused, Controller
from policies.runtime.inference import Inference
from policies.runtime.limits import GRIPPER, SafetyLimits
from policies.runtime.observation_buffer import StreamLimits
from policies.runtime.recorder import PeriodRecord, Recorder
from policies.runtime.safety import SafetyFilter
from policies.runtime.states import LATCHED, State
from policies.runtime.watchdog import WatchdogLimits
from policies.serving.access import read_token
from vla.interface import Observation, Policy, Robot
from vla.registry import did_you_mean
from vla.spec import RobotSpec

ARMING_PERIODS = 40  # how long to wait for a live stream of observations
ROBOT_OF_FAMILY = {"tabletop": "sim"}  # whose limits, in conf/robot, are those of a family's arm
RECONNECT_S = 0.2  # how long one inference tries to find its server again


def evaluation_limits(settings: EvaluationRunSettings, family: str) -> SafetyLimits | None:
    """Return the limits that actions of an evaluation have to keep; None where none apply.

    Raises:
        ValueError: the limits of the family's arm are not known.
    """
    if settings.runtime == "simulation":
        return None
    if family not in ROBOT_OF_FAMILY:
        raise ValueError(
            f"evaluation.runtime=robot needs the safety limits of an arm, and those of env.family={family!r} "
            f"are not known; they are for {sorted(ROBOT_OF_FAMILY)}: give evaluation.runtime=simulation"
        )
    text = resources.files("conf").joinpath("robot", f"{ROBOT_OF_FAMILY[family]}.yaml").read_text("utf-8")
    config = OmegaConf.to_object(OmegaConf.create(text))
    assert isinstance(config, dict)
    robot = ROBOTS.build({str(key): value for key, value in config.items() if key != "defaults"})
    return robot.limits if settings.safety else None


def chosen_task(run: ControlRun | DelayTableRun) -> str:
    """Return the task to do.

    Raises:
        ValueError: there is no environment, or it has no such task; the message names the nearest.
    """
    if not run.env:
        raise ValueError(
            f"task is {run.task!r}, but this robot stands in no scene that has tasks: "
            "give instruction=... instead, or choose a scene with env=..."
        )
    if run.task is None:
        return run.tasks[0]
    if run.task not in run.tasks:
        raise ValueError(f"task {run.task!r} is unknown; {did_you_mean(run.task, run.tasks)}")
    return run.task


def task_config(run: ControlRun | DelayTableRun) -> dict[str, Any]:
    """Return the `make_env` configuration of the task to do; nothing for a robot that stands in no scene."""
    if not run.env and run.task is None:
        return {}
    return env_configs(run.env, [chosen_task(run)])[chosen_task(run)]


def describe_setting(run: ControlRun | DelayTableRun, kept: Mapping[str, Any], *, source: str) -> str:
    """Return for the terminal what a policy was trained in, and what is different where it is put to work.

    Args:
        run: the run.
        kept: the provenance of the policy.
        source: where it is.

    Raises:
        ValueError: the run names a task that there is not.
        DamagedFile: what the policy keeps has another form.
    """
    setting = setting_in(kept, source=Path(source))
    task = chosen_task(run) if run.env else None
    others = [] if task is None or setting is None or task in setting.tasks else [task]
    return describe(kept, source=Path(source), env=run.env, tasks=others)


class RemoteForWorker:
    """A remote policy that finds its server again by itself, a short try for each inference.

    It runs in the inference worker, so nobody waits for it. Whether the robot goes on is not its business:
    failed inferences hold and stop the robot, and people arm it again.

    Args:
        url: ``ws://host:port``.
        token: the server's, if it wants one.
        wait_s: how long to wait, when made, for a server that is not there yet [s].
        timeout_s: the longest wait for an answer [s].

    Raises:
        PolicyUnavailable: nobody answers, or not as a policy server does.
    """

    def __init__(self, *, url: str, token: str | None, wait_s: float = 0.0, timeout_s: float = 2.0) -> None:
        from policies.serving.client import RemotePolicy  # here, as it needs websockets

        self._remote = RemotePolicy.open(url, token=token, within_s=wait_s, timeout_s=timeout_s)

    @property
    def robot_spec(self) -> RobotSpec:
        """The robot that the policy was trained for."""
        return self._remote.robot_spec

    @property
    def frame_offsets(self) -> tuple[int, ...]:
        """Which frames the policy looks at."""
        return self._remote.frame_offsets

    @property
    def action_horizon(self) -> int:
        """Number of control periods in a predicted chunk."""
        return self._remote.action_horizon

    @property
    def max_committed(self) -> int:
        """How many committed actions it can be given."""
        return self._remote.max_committed

    @property
    def setting(self) -> Mapping[str, Any] | None:
        """The setting that the policy was trained in, if the server says so."""
        return self._remote.contract.setting

    def predict(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "batch time action"]:
        """Ask the server, after connecting again if need be; errors are those of `RemotePolicy`."""
        if not self._remote.connected:
            self._remote.reconnect(within_s=RECONNECT_S)
        return self._remote.predict(observations)

    def close(self) -> None:
        """Disconnect; an inference under way fails."""
        self._remote.close()


class SlowedPolicy:
    """A policy that takes longer: for showing what delay does, in real time."""

    def __init__(self, policy: Policy, *, delay_s: float) -> None:
        self._policy, self._delay_s = policy, delay_s
        self.robot_spec, self.frame_offsets = policy.robot_spec, policy.frame_offsets
        self.action_horizon = policy.action_horizon

    def predict(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "batch time action"]:
        """Answer as the policy does, later."""
        chunks = self._policy.predict(observations)
        time.sleep(self._delay_s)
        return chunks


class LoadedPolicy(NamedTuple):
    """A policy, how many committed actions it can be given, and the setting that it keeps, by its key."""

    policy: Policy
    max_committed: int
    kept: Mapping[str, Any]


@contextlib.contextmanager
def open_policy(
    *, bundle: str | None, server: str | None, token_env: str, num_threads: int, server_wait_s: float = 0.0
) -> Iterator[LoadedPolicy]:
    """Open a bundle in this process, or connect to a policy server and disconnect finally.

    A server that is not there yet is waited for, so long; no robot has been touched by then.

    Raises:
        ValueError: none or both are given, or the bundle is damaged.
        PolicyUnavailable: the server is not there, or refuses.
    """
    if (bundle is None) == (server is None):
        raise ValueError(f"give either bundle=... or server=..., not bundle={bundle} and server={server}")
    if server is not None:
        token = read_token(environment_variable=token_env, file=None)
        with contextlib.closing(RemoteForWorker(url=server, token=token, wait_s=server_wait_s)) as remote:
            yield LoadedPolicy(remote, remote.max_committed, {SETTING: remote.setting})
        return
    from policies.exported import BundlePolicy

    assert bundle is not None, "checked above"
    loaded = BundlePolicy.load(bundle, num_threads=num_threads)
    yield LoadedPolicy(loaded, loaded.processor.max_committed, loaded.provenance)


def build_controller(
    *,
    robot: Robot,
    policy: Policy,
    inference: Inference,
    limits: SafetyLimits,
    max_committed: int,
    schedule: str,
    execute_horizon: int,
    delta_to_absolute: bool,
    instruction: str,
    watchdog: WatchdogLimits,
    stream: StreamLimits,
    clock: Clock,
    recorder: Recorder | None = None,
) -> Controller:
    """Put a controller together.

    Raises:
        SpecMismatch: policy and robot differ.
        ValueError: `execute_horizon` is beyond the policy's horizon, or a setting makes no sense.
    """
    spec = robot.robot_spec
    policy.robot_spec.require_same(spec, mine="the policy", theirs="the robot")
    if not 1 <= execute_horizon <= policy.action_horizon:
        raise ValueError(
            f"execute_horizon is {execute_horizon}; it must lie in [1, {policy.action_horizon}], "
            "as the policy predicts that many actions"
        )
    grippers = tuple(
        channel.measured_by
        for channel in limits.channels.values()
        if channel.kind == GRIPPER and channel.measured_by is not None
    )
    return Controller(
        robot=robot,
        inference=inference,
        schedule=make_schedule(
            schedule,
            period_s=1.0 / spec.control_hz,
            execute_horizon=1 if schedule == "ensemble" else execute_horizon,  # as ACT does
            num_actions=len(spec.action),
            max_committed=max_committed,
        ),
        safety=SafetyFilter(spec=spec, limits=limits),
        instruction=instruction,
        frame_offsets=policy.frame_offsets,
        clock=clock,
        watchdog=watchdog,
        stream=dataclasses.replace(stream, may_jump=grippers),
        delta_to_absolute=delta_to_absolute,
        recorder=recorder,
    )


def drive(
    controller: Controller,
    *,
    is_over: Callable[[], bool],
    max_periods: int,
    on_period: Callable[[PeriodRecord], None],
) -> None:
    """Arm, start, and run until the task is over or the robot has stopped, then until it is at rest.

    Args:
        controller: IDLE.
        is_over: asked after every period.
        max_periods: after so many the task counts as over.
        on_period: called with the record of every period.

    Raises:
        ArmingRefused: observations did not come, or the robot stands out of its range.
    """
    has_started = False

    def after(record: PeriodRecord) -> bool:
        nonlocal has_started
        on_period(record)
        if not has_started:
            has_started = _try_to_start(controller, is_last_try=record.index >= ARMING_PERIODS)
        elif is_over() or record.index >= max_periods:
            controller.finish()  # changes nothing if it has been stopped
        return not (has_started and controller.state in (State.IDLE, *LATCHED) and controller.is_at_rest)

    controller.run(after)


def _try_to_start(controller: Controller, *, is_last_try: bool) -> bool:
    try:
        controller.arm()
    except ArmingRefused:
        if is_last_try:
            raise
        return False
    controller.start()
    return True
