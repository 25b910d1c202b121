"""Records demonstrations of scripted experts in worker processes.

The expert is disturbed in a share of the episodes: what is executed is its action plus a disturbance, what is
recorded is the action it meant, so a policy that learns from it has seen how to come back to the path. The
disturbance, like the scene, follows from the episode's seed. Only episodes that succeed are handed over. The
caller writes what it yields.

An expert may also take over where a policy has led (DAgger, arXiv:1011.0686): the actions that the policy
executed are executed again from the same seed, without drawing anything, and what is recorded begins there.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from envs.base import ManipulationEnv
from envs.disturbance import Disturbance
from envs.workers import MAKE_ENV, Job, WorkerPool, Workspace
from vla.geometry import ViewGeometry, stacked_views
from vla.spec import RobotSpec

_JOBS_QUEUED = 2  # per worker: it goes on while the parent writes
_JOBS_AHEAD = 5  # per worker: episodes in memory, as they are handed over in the order of the seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class DemonstrationEpisode:
    """One successful demonstration: at each time what was seen and the action that the expert meant."""

    task: str
    seed: int
    instruction: str
    robot_spec: RobotSpec
    images: Mapping[str, UInt8[np.ndarray, "time h w 3"]]  # by camera, before the action of the same time
    states: Float32[np.ndarray, "time state"]
    actions: Float32[np.ndarray, "time action"]
    success: bool
    noisy: bool  # whether the expert was disturbed
    taken_over_at: int = 0  # control periods that a policy had acted for before
    geometry: Mapping[str, ViewGeometry] = field(default_factory=dict)  # by camera, where it is recorded


@dataclass(frozen=True, kw_only=True, slots=True)
class TakeOver:
    """Where an expert takes over from a policy: after actions that were executed from a seed.

    With `own` it is no expert who finishes: these actions, which the policy executed next, are recorded.
    """

    task: str
    seed: int
    lead: Float32[np.ndarray, "led action"]
    own: Float32[np.ndarray, "left action"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Demonstrate(Job):
    task: str
    env_config: Mapping[str, Any]
    seed: int
    disturbance: Disturbance
    extra_steps: int
    lead: Float32[np.ndarray, "led action"] | None = None  # what is executed before the expert begins
    own: Float32[np.ndarray, "left action"] | None = None  # what is executed and recorded in its place
    geometry: bool = False  # whether the view of each camera is measured, too

    def describe(self) -> str:
        return f"demonstration of task {self.task}, seed {self.seed}"

    def run(self, workspace: Workspace, slot: int) -> DemonstrationEpisode | None:
        """Return the demonstration, or nothing when the expert failed."""
        env = workspace.env(0, self.env_config)  # jobs of a worker take turns: one environment per task
        env.start_episode(seed=self.seed)
        self._follow_lead(env)
        spec = env.robot_spec
        disturbances = self.disturbance.of_episode(spec, seed=self.seed)
        noisy = disturbances is not None
        images: dict[str, list[np.ndarray]] = {name: [] for name in spec.camera_names}
        views: dict[str, list[ViewGeometry]] = {name: [] for name in spec.camera_names if self.geometry}
        states, actions = [], []
        success, steps_left = False, env.max_steps if self.own is None else len(self.own)
        while steps_left > 0:
            for name in spec.camera_names:
                if self.geometry:
                    frame, view = _drawn_and_measured(env, name)
                    views[name].append(view)
                else:
                    frame = env.render_camera(name)
                images[name].append(frame)
            states.append(env.read_state())
            meant = env.expert_action() if self.own is None else self.own[len(actions)]
            clean = np.clip(meant, spec.action_low, spec.action_high)
            actions.append(clean)
            executed = clean if disturbances is None else clean + next(disturbances)
            outcome = env.advance(np.clip(executed, spec.action_low, spec.action_high))
            steps_left -= 1
            if outcome.success and not success:
                success, steps_left = True, self.extra_steps if self.own is None else 0
                disturbances = None
        if not success:
            return None
        return DemonstrationEpisode(
            task=self.task,
            seed=self.seed,
            instruction=env.instruction,
            robot_spec=spec,
            images={name: np.stack(frames) for name, frames in images.items()},
            states=np.stack(states),
            actions=np.stack(actions),
            success=True,
            noisy=noisy,
            taken_over_at=0 if self.lead is None else len(self.lead),
            geometry=stacked_views(views),
        )

    def _follow_lead(self, env: ManipulationEnv) -> None:
        for action in () if self.lead is None else self.lead:
            if env.advance(action).success:
                raise RuntimeError(
                    f"{self.describe()}: the actions that led to the take-over reach the goal when they are "
                    "executed again; the environment has changed since, so record them anew"
                )


def _drawn_and_measured(env: ManipulationEnv, camera: str) -> tuple[np.ndarray, ViewGeometry]:
    drawn = env.render_with_geometry(camera)
    if drawn is None:
        raise ValueError(f"{type(env).__name__} measures no geometry; it needs a method render_with_geometry")
    return drawn


def collect_episodes(
    env_configs: Mapping[str, Mapping[str, Any]],
    seeds_by_task: Mapping[str, Sequence[int]],
    *,
    disturbance: Disturbance,
    num_workers: int,
    extra_steps: int = 0,
    geometry: bool = False,
    on_failure: Callable[[str, int], None] | None = None,
    env_factory: str = MAKE_ENV,
) -> Generator[DemonstrationEpisode, None, None]:
    """Record one demonstration per seed; tasks take turns, and the order does not depend on the workers.

    Args:
        env_configs: environment configuration by task.
        seeds_by_task: seeds of the episodes by task, a subset of the tasks of `env_configs`.
        disturbance: of the expert.
        num_workers: recording processes; about one a core.
        extra_steps: control periods to record after success, undisturbed.
        geometry: whether to measure depth and points in each picture.
        on_failure: called with task and seed of each episode in which the expert failed.
        env_factory: ``module:function`` that makes an environment from a configuration.

    Raises:
        ValueError: a task has no configuration, or `extra_steps` is negative.
        WorkerError: an environment raised or a worker died; the message tells task and seed.
    """
    unknown = sorted(set(seeds_by_task) - set(env_configs))
    if unknown:
        raise ValueError(f"tasks {unknown} have seeds but no env config; there are {sorted(env_configs)}")
    if extra_steps < 0:
        raise ValueError(f"extra_steps is {extra_steps}; it must be at least 0")
    jobs = [
        _Demonstrate(
            task=task,
            env_config=env_configs[task],
            seed=seed,
            disturbance=disturbance,
            extra_steps=extra_steps,
            geometry=geometry,
        )
        for task, seed in _taking_turns(seeds_by_task)
    ]
    yield from _in_order(jobs, num_workers, len(env_configs), env_factory, on_failure)


def collect_takeovers(
    env_configs: Mapping[str, Mapping[str, Any]],
    takeovers: Sequence[TakeOver],
    *,
    num_workers: int,
    extra_steps: int = 0,
    geometry: bool = False,
    on_failure: Callable[[str, int], None] | None = None,
    env_factory: str = MAKE_ENV,
) -> Generator[DemonstrationEpisode, None, None]:
    """Record how experts finish what a policy began, in the order given; see `collect_episodes`.

    Args:
        env_configs: environment configuration by task.
        takeovers: where they begin.
        num_workers: recording processes; about one a core.
        extra_steps: control periods to record after success.
        geometry: whether to measure depth and points in each picture.
        on_failure: called with task and seed where the expert did not reach the goal in the time of a whole
            episode; nothing of it is handed over.
        env_factory: ``module:function`` that makes an environment from a configuration.

    Raises:
        WorkerError: an environment raised, a worker died, or the lead reaches the goal by itself.
    """
    jobs = [
        _Demonstrate(
            task=one.task,
            env_config=env_configs[one.task],
            seed=one.seed,
            disturbance=Disturbance(),
            extra_steps=extra_steps,
            lead=one.lead,
            own=one.own,
            geometry=geometry,
        )
        for one in takeovers
    ]
    yield from _in_order(jobs, num_workers, len(env_configs), env_factory, on_failure)


def _taking_turns(seeds_by_task: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, int]]:
    for index in range(max(map(len, seeds_by_task.values()), default=0)):
        for task, seeds in seeds_by_task.items():
            if index < len(seeds):
                yield task, seeds[index]


def _in_order(
    jobs: Sequence[_Demonstrate],
    num_workers: int,
    num_tasks: int,
    env_factory: str,
    on_failure: Callable[[str, int], None] | None,
) -> Generator[DemonstrationEpisode, None, None]:
    """Run the jobs on all workers and yield in the order of the jobs, few of them ahead of time."""
    num_workers = min(num_workers, len(jobs))
    if num_workers < 1:
        return
    finished: dict[int, DemonstrationEpisode | None] = {}  # by position in `jobs`, of those not yielded yet
    pool = WorkerPool(
        num_workers=num_workers,
        slots_per_worker=_JOBS_QUEUED,
        envs_per_worker=num_tasks,
        env_factory=env_factory,
    )
    num_yielded = 0
    with pool:
        for position, result in pool.run(jobs, max_ahead=num_workers * _JOBS_AHEAD):
            finished[position] = result
            while num_yielded in finished:
                job, episode = jobs[num_yielded], finished.pop(num_yielded)
                num_yielded += 1
                if episode is not None:
                    yield episode
                elif on_failure is not None:
                    on_failure(job.task, job.seed)
