"""Runs a policy in many environments at once: workers simulate while the policy thinks about a batch.

An episode is a sequence of decisions. At each the policy sees an observation and returns a chunk of actions,
of which the environment executes `execute_horizon`. A frame is rendered only if some decision looks at it, by
the policy's `frame_offsets`; before the start of the episode the first frame stands in. What an episode looks
like depends on its request alone, never on the number of workers or on what else is running.

This file knows no files and no statistics; evaluation.py does.
"""

import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from envs.base import ManipulationEnv, StepOutcome
from envs.chunk_plan import ChunkPlan
from envs.workers import MAKE_ENV, Job, WorkerPool, Workspace, max_envs
from vla.interface import Observation, Policy
from vla.spec import RobotSpec

CONDITIONS = ("right", "blank", "swapped")  # what the policy is told; the goal is always the original one

_SPARE_ENVS = 2  # per worker: kept alive besides those in use, so that a change of task costs less


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeRequest:
    """Which episode to run: everything that its course depends on, the policy apart."""

    task: str  # a name for people and files; the environment follows from env_config
    env_config: Mapping[str, Any]
    seed: int
    condition: str = "right"

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition {self.condition!r} is none of {CONDITIONS}")

    def describe(self) -> str:
        """Return a short name for messages."""
        return f"task {self.task}, seed {self.seed}, condition {self.condition}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeResult:
    """How an episode went. Its `actions`, executed from the same seed, give the same episode again."""

    request: EpisodeRequest
    instruction: str  # of the goal that decides about success
    given_instruction: str  # what the policy was told
    success: bool
    steps: int
    num_clipped: int  # actions that exceeded their limits
    wall_s: float  # from the request to the end, waiting included
    actions: Float32[np.ndarray, "time action"]


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


@dataclass(kw_only=True)
class _RunningEpisode:
    """The worker's side of an episode: the environment and the frames that coming decisions look at."""

    env: ManipulationEnv
    frame_offsets: tuple[int, ...]
    execute_horizon: int
    given_instruction: str
    step: int = 0
    frames: dict[int, dict[str, UInt8[np.ndarray, "h w 3"]]] = field(default_factory=dict)  # by step

    def render_if_needed(self) -> None:
        """Render now if a decision, made every `execute_horizon` steps, looks at this step."""
        looked_at = any((self.step + offset) % self.execute_horizon == 0 for offset in self.frame_offsets)
        if self.step == 0 or looked_at:
            names = self.env.robot_spec.camera_names
            self.frames[self.step] = {name: self.env.render_camera(name) for name in names}

    def observe(self) -> Observation:
        """Return what the policy sees at a decision, and forget frames that are too old for the next."""
        steps = [max(self.step - offset, 0) for offset in self.frame_offsets]
        names = self.env.robot_spec.camera_names
        images = {name: np.stack([self.frames[step][name] for step in steps]) for name in names}
        oldest = self.step + self.execute_horizon - self.frame_offsets[0]
        self.frames = {step: frame for step, frame in self.frames.items() if step == 0 or step >= oldest}
        return Observation(
            images=images,
            state=self.env.read_state(),
            instruction=self.given_instruction,
            committed=np.zeros((0, len(self.env.robot_spec.action)), np.float32),
            stamp=time.monotonic(),
        )

    def advance(self, actions: Float32[np.ndarray, "time action"]) -> StepOutcome:
        """Execute actions until they or the episode end; return the last outcome."""
        outcome = None
        for action in actions:
            outcome = self.env.advance(action)
            self.step += 1
            if outcome.terminated or outcome.truncated:
                break
            self.render_if_needed()
        assert outcome is not None, "a chunk of no actions"
        return outcome

    def progress(self, outcome: StepOutcome | None) -> _Progress:
        """Return the answer to the parent; no outcome means that the episode starts."""
        ended = outcome is not None and (outcome.terminated or outcome.truncated)
        return _Progress(
            observation=None if ended else self.observe(),
            robot_spec=self.env.robot_spec if outcome is None else None,
            instruction=self.env.instruction,
            given_instruction=self.given_instruction,
            success=outcome is not None and outcome.success,
            steps=self.step,
            num_clipped=self.env.num_clipped,
        )


def _told(env: ManipulationEnv, condition: str) -> str:
    if condition == "blank":
        return ""
    return env.swapped_instruction() if condition == "swapped" else env.instruction


@dataclass(frozen=True, kw_only=True, slots=True)
class _StartEpisode(Job):
    request: EpisodeRequest
    frame_offsets: tuple[int, ...]
    execute_horizon: int

    def describe(self) -> str:
        return f"{self.request.describe()}, reset"

    def run(self, workspace: Workspace, slot: int) -> _Progress:
        env = workspace.env(slot, self.request.env_config)
        env.start_episode(seed=self.request.seed)
        episode = _RunningEpisode(
            env=env,
            frame_offsets=self.frame_offsets,
            execute_horizon=self.execute_horizon,
            given_instruction=_told(env, self.request.condition),
        )
        workspace.running[slot] = episode
        episode.render_if_needed()
        return episode.progress(None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _ContinueEpisode(Job):
    request: EpisodeRequest
    step: int
    actions: Float32[np.ndarray, "time action"]

    def describe(self) -> str:
        return f"{self.request.describe()}, from step {self.step}"

    def run(self, workspace: Workspace, slot: int) -> _Progress:
        episode: _RunningEpisode = workspace.running[slot]
        return episode.progress(episode.advance(self.actions))


@dataclass(kw_only=True)
class _LiveEpisode:
    """The parent's side of an episode that a worker holds."""

    request: EpisodeRequest
    started_s: float
    plan: ChunkPlan

    def result(self, progress: _Progress, action_dim: int) -> EpisodeResult:
        """Return the finished episode; actions that were sent but not executed are left out."""
        return EpisodeResult(
            request=self.request,
            instruction=progress.instruction,
            given_instruction=progress.given_instruction,
            success=progress.success,
            steps=progress.steps,
            num_clipped=progress.num_clipped,
            wall_s=time.monotonic() - self.started_s,
            actions=self.plan.sent(action_dim)[: progress.steps],
        )


class _Rollout:
    """Keeps the slots of a pool busy with episodes and feeds them the policy's actions."""

    def __init__(
        self,
        *,
        policy: Policy,
        requests: Sequence[EpisodeRequest],
        execute_horizon: int,
        ensemble_decay: float | None,
        pool: WorkerPool,
    ) -> None:
        self._policy, self._pool, self._execute_horizon = policy, pool, execute_horizon
        self._ensemble_decay = ensemble_decay
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
                    waiting[slot] = progress.observation
                else:
                    action_dim = len(self._policy.robot_spec.action)
                    ended = self._live.pop(slot)
                    self._start_next(slot)
                    yield ended.result(progress, action_dim)
            if 2 * len(waiting) >= len(self._live) > 0:
                self._act(waiting)
                waiting = {}

    def _start_next(self, slot: int) -> None:
        if not self._queue:
            return
        request = self._queue.popleft()
        plan = ChunkPlan(count=self._execute_horizon, ensemble_decay=self._ensemble_decay)
        self._live[slot] = _LiveEpisode(request=request, started_s=time.monotonic(), plan=plan)
        offsets = tuple(self._policy.frame_offsets)
        job = _StartEpisode(request=request, frame_offsets=offsets, execute_horizon=self._execute_horizon)
        self._pool.submit(slot, job)

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
            step = live.plan.num_sent
            if not np.isfinite(chunk).all():
                raise ValueError(
                    f"the policy returned NaN or infinity in {live.request.describe()}, step {step}"
                )
            actions = live.plan.add(chunk)
            self._pool.submit(slot, _ContinueEpisode(request=live.request, step=step, actions=actions))


def run_episodes(
    policy: Policy,
    requests: Sequence[EpisodeRequest],
    *,
    execute_horizon: int,
    num_workers: int,
    envs_per_worker: int = 4,
    ensemble_decay: float | None = None,
    env_factory: str = MAKE_ENV,
) -> Generator[EpisodeResult, None, None]:
    """Run episodes and yield each as it ends, in no fixed order.

    Which observations share a batch depends on timing, so equal runs need a policy whose answer to an
    observation does not depend on the rest of the batch. Measured: `VLAModel` in fp32 on a CPU is such a one.

    Args:
        policy: called in this process, with all observations that wait at the moment.
        requests: the episodes; sort them by environment, as changing it costs time.
        execute_horizon: actions executed of each predicted chunk, at most `policy.action_horizon`.
        num_workers: simulating processes; about one a core.
        envs_per_worker: environments that each holds, so that it simulates some while others wait.
        ensemble_decay: None executes the newest chunk; a number the mean of all chunks that cover a period,
            as `temporal_ensemble` weighs them.
        env_factory: ``module:function`` that makes an environment from `env_config`.

    Raises:
        ValueError: `execute_horizon` or `frame_offsets` make no sense, or the policy returns no valid chunk.
        SpecMismatch: the policy was made for another robot than the environment's.
        WorkerError: an environment raised or a worker died; the message tells task, seed and traceback.
    """
    if not 1 <= execute_horizon <= policy.action_horizon:
        raise ValueError(
            f"execute_horizon is {execute_horizon}; it must lie in [1, {policy.action_horizon}], "
            "as the policy predicts that many actions"
        )
    offsets = tuple(policy.frame_offsets)
    if not offsets or offsets[-1] < 0 or list(offsets) != sorted(set(offsets), reverse=True):
        raise ValueError(f"frame_offsets are {offsets}; give them oldest first, for example (4, 0)")
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
        rollout = _Rollout(
            policy=policy,
            requests=requests,
            execute_horizon=execute_horizon,
            ensemble_decay=ensemble_decay,
            pool=pool,
        )
        yield from rollout.run()
