"""Runs a policy in many environments at once: workers simulate while the policy thinks about a batch.

What lies between policy and environment are the very parts that drive robots (policies/runtime): frame
history, chunk queue and schedule and, if limits are given, deltas that count from the commanded position and
the safety filter. Time is simulated, and an inference takes none of it. A frame is rendered
only if some decision looks at it, by the policy's `frame_offsets`; before the start of the episode the first
frame stands in. What an episode looks like depends on its request alone, never on the number of workers or on
what else is running.
"""

import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from envs.base import ManipulationEnv, StepOutcome
from envs.episode_request import EpisodeRequest
from envs.workers import MAKE_ENV, Job, WorkerPool, Workspace, max_envs
from policies.runtime.chunk_queue import ChunkQueue
from policies.runtime.chunking import SCHEDULES, PlannedAction, make_schedule
from policies.runtime.delta_to_absolute import DeltaToAbsolute
from policies.runtime.execution import ActionExecutor
from policies.runtime.inference import InferenceResult
from policies.runtime.limits import SafetyLimits
from policies.runtime.observation_buffer import FrameHistory
from policies.runtime.safety import SafetyFilter
from policies.runtime.watchdog import Level, WatchdogLimits, assess_inference
from vla.interface import Observation, Policy, SensorReading
from vla.spec import RobotSpec

_SPARE_ENVS = 2  # per worker: kept alive next to those in use, so that a change of task costs less


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeResult:
    """How an episode went. Its `actions`, executed from the same seed, give the same episode again."""

    request: EpisodeRequest
    instruction: str  # of the goal that decides about success
    given_instruction: str  # what the policy got
    success: bool
    steps: int
    num_clipped: int  # actions that exceeded the limits of the environment or of the safety filter
    stop_reason: str  # why the watchdog ended the episode; empty if it did not
    wall_s: float  # from the request to the end, waiting included
    actions: Float32[np.ndarray, "time action"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Road:
    """How predicted chunks become what the environment executes: arguments of `run_episodes`."""

    frame_offsets: tuple[int, ...]
    execute_horizon: int
    schedule: str
    ensemble_decay: float
    max_committed: int
    limits: SafetyLimits | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Progress:
    """What a worker answers: an observation that wants actions, or the end of the episode."""

    observation: Observation | None
    robot_spec: RobotSpec | None  # with the first observation
    instruction: str
    given_instruction: str
    success: bool
    steps: int
    num_clipped: int
    stop_reason: str
    actions: Float32[np.ndarray, "time action"] | None  # all that were executed, at the end


class _BatchedInference:
    """The `Inference` of an episode whose policy runs in another process, in batches: at most one request."""

    has_died = False

    def __init__(self) -> None:
        self.observation: Observation | None = None  # that waits for an answer
        self._num_requests = 0
        self._results: list[InferenceResult] = []

    @property
    def waiting_since(self) -> float | None:
        """When the unanswered request was made, or None."""
        return None if self.observation is None else self.observation.stamp

    def submit(self, observation: Observation) -> int:
        """Ask for a chunk and return the request's number."""
        self.observation = observation
        self._num_requests += 1
        return self._num_requests

    def answer(self, actions: Float32[np.ndarray, "time action"]) -> None:
        """Take in the chunk of the request; no simulated time has passed."""
        assert self.observation is not None, "nothing was requested"
        stamp, self.observation = self.observation.stamp, None
        self._results.append(
            InferenceResult(
                seq=self._num_requests,
                stamp=stamp,
                submitted_at=stamp,
                finished_at=stamp,
                actions=actions,
            )
        )

    def poll(self) -> list[InferenceResult]:
        """Return the answer if it has come since the last call."""
        results, self._results = self._results, []
        return results

    def close(self) -> None:
        """Forget the request."""
        self.observation = None


class _RunningEpisode:
    """The worker's side of an episode: the environment, and what lies between it and the policy."""

    def __init__(self, *, env: ManipulationEnv, given_instruction: str, road: _Road) -> None:
        spec = env.robot_spec
        self._env, self._given_instruction, self._road = env, given_instruction, road
        self._period_s = 1.0 / spec.control_hz
        self._safety = None if road.limits is None else SafetyFilter(spec=spec, limits=road.limits)
        absolute = np.ones(len(spec.action), bool) if self._safety is None else self._safety.absolute
        deltas = DeltaToAbsolute(spec=spec, absolute=absolute)
        self._history = FrameHistory(spec=spec, frame_offsets=road.frame_offsets)
        self._inference = _BatchedInference()
        self._queue = ChunkQueue(
            inference=self._inference,
            schedule=make_schedule(
                road.schedule,
                period_s=self._period_s,
                execute_horizon=road.execute_horizon,
                num_actions=len(spec.action),
                max_committed=road.max_committed,
                ensemble_decay=road.ensemble_decay,
            ),
            instruction=given_instruction,
            num_actions=len(spec.action),
            deltas=deltas,
            require_sane=_accept_all if self._safety is None else self._safety.require_sane,
        )
        self._executor = None
        if self._safety is not None:
            self._safety.reset(env.read_state())
            self._executor = ActionExecutor(queue=self._queue, deltas=deltas, safety=self._safety)
        self._queue.start(0.0)
        self._actions: list[Float32[np.ndarray, " action"]] = []
        self._num_clamped = 0
        self._stop_reason = ""

    def run(self, answer: Float32[np.ndarray, "time action"] | None) -> _Progress:
        """Run, after an answer to the last observation, until a chunk is requested or the episode ends."""
        outcome: StepOutcome | None = None
        if answer is None:
            self._begin_period()
        else:
            self._inference.answer(answer)
        while self._inference.observation is None:
            outcome = self._finish_period()
            if outcome is None or outcome.terminated or outcome.truncated:
                break
            self._begin_period()
        observation = self._inference.observation
        return _Progress(
            observation=observation,
            robot_spec=self._env.robot_spec if answer is None else None,
            instruction=self._env.instruction,
            given_instruction=self._given_instruction,
            success=outcome is not None and outcome.success,
            steps=self._env.num_steps,
            num_clipped=self._env.num_clipped + self._num_clamped,
            stop_reason=self._stop_reason,
            actions=self._executed() if observation is None else None,
        )

    def _begin_period(self) -> None:
        """Render if a decision looks at this period, and request a chunk if one is due."""
        now = self._now
        if self._is_looked_at(now):
            names = self._env.robot_spec.camera_names
            self._history.add(
                SensorReading(
                    images={name: self._env.render_camera(name) for name in names},
                    image_stamps=dict.fromkeys(names, now),
                    state=self._env.read_state(),
                    state_stamp=now,
                )
            )
        if self._executor is not None:
            self._executor.begin_period(now)
        self._queue.request(self._history)

    def _finish_period(self) -> StepOutcome | None:
        """Execute what is due; None if the watchdog has ended the episode instead."""
        now = self._now
        self._queue.collect(now, is_active=True)
        planned = self._queue.next_action(now)
        if self._executor is None:
            assert planned is not None, "without limits every chunk is executed"
            action = planned.action
            self._queue.note_execution(now)
        else:
            action = self._safe_action(now, planned)
        if action is None:
            return None
        self._actions.append(action.copy())
        return self._env.advance(action)

    def _safe_action(
        self, now: float, planned: PlannedAction | None
    ) -> Float32[np.ndarray, " action"] | None:
        """Return what the controller of a robot would send; None where it would stop the robot."""
        assert self._executor is not None, "there are limits"
        assert self._safety is not None, "there are limits"
        verdict = assess_inference(now, self._queue.health, WatchdogLimits())
        if verdict.level >= Level.STOP:
            self._stop_reason = verdict.reason
            return None
        if verdict.level is Level.HOLD or planned is None:
            self._queue.drop_plan(now)
            return self._safety.hold().action
        execution = self._executor.execute(planned, now=now, state=self._env.read_state())
        self._num_clamped += bool(execution.command.clamps or execution.refusal)
        return execution.command.action

    @property
    def _now(self) -> float:
        return self._env.num_steps * self._period_s

    def _is_looked_at(self, now: float) -> bool:
        """Whether a decision looks at this period: this one, or one that is expected."""
        road = self._road
        if self._env.num_steps == 0 or self._queue.wants_chunk(now):
            return True
        if self._executor is not None and len(road.frame_offsets) > 1:
            return True  # a refused action makes the next decision come sooner than expected
        return any(
            (self._env.num_steps + offset) % road.execute_horizon == 0 for offset in road.frame_offsets
        )

    def _executed(self) -> Float32[np.ndarray, "time action"]:
        width = len(self._env.robot_spec.action)
        return np.stack(self._actions) if self._actions else np.zeros((0, width), np.float32)


def _accept_all(_actions: Float32[np.ndarray, "time action"]) -> None:
    """Without limits no chunk is refused."""


def _given_instruction(env: ManipulationEnv, mode: str) -> str:
    if mode == "blank":
        return ""
    return env.swapped_instruction() if mode == "swapped" else env.instruction


@dataclass(frozen=True, kw_only=True, slots=True)
class _StartEpisode(Job):
    request: EpisodeRequest
    road: _Road

    def describe(self) -> str:
        return f"{self.request.describe()}, reset"

    def run(self, workspace: Workspace, slot: int) -> _Progress:
        env = workspace.env(slot, self.request.env_config)
        env.start_episode(seed=self.request.seed, options=dict(self.request.options))
        episode = _RunningEpisode(
            env=env, given_instruction=_given_instruction(env, self.request.instruction_mode), road=self.road
        )
        workspace.running[slot] = episode
        return episode.run(None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _ContinueEpisode(Job):
    request: EpisodeRequest
    step: int
    actions: Float32[np.ndarray, "time action"]

    def describe(self) -> str:
        return f"{self.request.describe()}, from step {self.step}"

    def run(self, workspace: Workspace, slot: int) -> _Progress:
        episode: _RunningEpisode = workspace.running[slot]
        return episode.run(self.actions)


@dataclass(kw_only=True)
class _LiveEpisode:
    """The parent's side of an episode that a worker holds."""

    request: EpisodeRequest
    started_s: float
    step: int = 0  # of the observation that waits

    def result(self, progress: _Progress) -> EpisodeResult:
        """Return the finished episode."""
        assert progress.actions is not None, "the episode has ended"
        return EpisodeResult(
            request=self.request,
            instruction=progress.instruction,
            given_instruction=progress.given_instruction,
            success=progress.success,
            steps=progress.steps,
            num_clipped=progress.num_clipped,
            stop_reason=progress.stop_reason,
            wall_s=time.monotonic() - self.started_s,
            actions=progress.actions,
        )


class _Rollout:
    """Keeps the slots of a pool busy with episodes and feeds them the policy's actions."""

    def __init__(
        self, *, policy: Policy, requests: Sequence[EpisodeRequest], road: _Road, pool: WorkerPool
    ) -> None:
        self._policy, self._pool, self._road = policy, pool, road
        self._queue = deque(requests)
        self._live: dict[int, _LiveEpisode] = {}

    def run(self) -> Iterator[EpisodeResult]:
        """Yield results as episodes end.

        The policy acts as soon as half of the episodes wait: its batches are large, and the other half keeps
        the workers busy meanwhile.
        """
        for slot in range(self._pool.num_slots):
            self._start_next(slot)
        waiting: dict[int, Observation] = {}
        while self._live:
            for slot, _, progress in self._pool.completed():
                if progress.robot_spec is not None:
                    self._check_spec(self._live[slot].request, progress.robot_spec)
                if progress.observation is not None:
                    self._live[slot].step = progress.steps
                    waiting[slot] = progress.observation
                else:
                    ended = self._live.pop(slot)
                    self._start_next(slot)
                    yield ended.result(progress)
            if 2 * len(waiting) >= len(self._live) > 0:
                self._act(waiting)
                waiting = {}

    def _start_next(self, slot: int) -> None:
        if not self._queue:
            return
        request = self._queue.popleft()
        self._live[slot] = _LiveEpisode(request=request, started_s=time.monotonic())
        self._pool.submit(slot, _StartEpisode(request=request, road=self._road))

    def _check_spec(self, request: EpisodeRequest, spec: RobotSpec) -> None:
        self._policy.robot_spec.require_same(
            spec, mine="the policy", theirs=f"the environment of {request.describe()}"
        )

    def _act(self, waiting: Mapping[int, Observation]) -> None:
        chunks = np.asarray(self._policy.predict(list(waiting.values())), dtype=np.float32)
        expected = (len(waiting), self._policy.action_horizon, len(self._policy.robot_spec.action))
        if chunks.shape != expected:
            raise ValueError(
                f"the policy returned actions of shape {chunks.shape} for {len(waiting)} observations; "
                f"expected {expected} (batch, time, action)"
            )
        for (slot, _), chunk in zip(waiting.items(), chunks, strict=True):
            live = self._live[slot]
            if not np.isfinite(chunk).all():
                raise ValueError(
                    f"the policy returned NaN or infinity in {live.request.describe()}, step {live.step}"
                )
            job = _ContinueEpisode(request=live.request, step=live.step, actions=chunk)
            self._pool.submit(slot, job)


def run_episodes(
    policy: Policy,
    requests: Sequence[EpisodeRequest],
    *,
    execute_horizon: int,
    num_workers: int,
    envs_per_worker: int = 4,
    schedule: str = "sync",
    ensemble_decay: float | None = None,
    max_committed: int = 0,
    limits: SafetyLimits | None = None,
    env_factory: str = MAKE_ENV,
) -> Generator[EpisodeResult, None, None]:
    """Run episodes and yield each as it ends, in no fixed order.

    Which observations share a batch depends on timing, so equal runs need a policy whose answer to an
    observation does not depend on the rest of the batch. Measured: `VLAModel` in fp32 on a CPU is such a one.

    Args:
        policy: called in this process, with all observations that wait at the moment.
        requests: the episodes; sort them by environment, as changing it costs time.
        execute_horizon: control periods from one decision to the next, at most `policy.action_horizon`.
        num_workers: simulating processes; about one a core.
        envs_per_worker: environments that each holds, so that it simulates some while others wait.
        schedule: which action of which chunk is executed; one of `policies.runtime.chunking.SCHEDULES`.
        ensemble_decay: a number makes the schedule that of the mean of all chunks that cover a period, as
            `temporal_ensemble` weighs them.
        max_committed: how many committed actions the policy can be given, for the schedule "rtc".
        limits: of the robot whose safety filter and delta conversion every action passes; None for neither.
            An action that is refused holds the arm, and refusals that last end the episode, as on a robot.
        env_factory: ``module:function`` that makes an environment from `env_config`.

    Raises:
        ValueError: `execute_horizon`, `schedule`, `frame_offsets` or `limits` make no sense, or the policy
            returns no valid chunk.
        SpecMismatch: the policy was made for another robot than the environment's.
        WorkerError: an environment raised or a worker died; the message tells task, seed and traceback.
    """
    offsets = tuple(policy.frame_offsets)
    _require_sensible(policy, execute_horizon=execute_horizon, frame_offsets=offsets, limits=limits)
    road = _Road(
        frame_offsets=offsets,
        execute_horizon=execute_horizon,
        schedule=_schedule(schedule, ensemble_decay),
        ensemble_decay=0.01 if ensemble_decay is None else ensemble_decay,
        max_committed=max_committed,
        limits=limits,
    )
    if not requests:
        return
    num_workers = min(num_workers, len(requests))
    slots = max_envs(envs_per_worker)
    pool = WorkerPool(
        num_workers=num_workers,
        slots_per_worker=slots,
        envs_per_worker=slots + _SPARE_ENVS,
        env_factory=env_factory,
    )
    with pool:
        yield from _Rollout(policy=policy, requests=requests, road=road, pool=pool).run()


def _require_sensible(
    policy: Policy, *, execute_horizon: int, frame_offsets: tuple[int, ...], limits: SafetyLimits | None
) -> None:
    if not 1 <= execute_horizon <= policy.action_horizon:
        raise ValueError(
            f"execute_horizon is {execute_horizon}; it must lie in [1, {policy.action_horizon}], "
            "as the policy predicts that many actions"
        )
    is_falling = list(frame_offsets) == sorted(set(frame_offsets), reverse=True)
    if not frame_offsets or frame_offsets[-1] < 0 or not is_falling:
        raise ValueError(f"frame_offsets are {frame_offsets}; give them oldest first, for example (4, 0)")
    if limits is not None:
        limits.require_fitting(policy.robot_spec)


def _schedule(name: str, ensemble_decay: float | None) -> str:
    """Return the schedule to use: a decay asks for the ensemble."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is unknown; choose from {SCHEDULES}")
    if ensemble_decay is None:
        return name
    if name not in ("sync", "ensemble"):
        raise ValueError(f"ensemble_decay is {ensemble_decay}, but the schedule {name!r} averages no chunks")
    return "ensemble"
