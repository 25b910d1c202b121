"""Videos and filmstrips of episodes, recorded by replaying the actions that were executed.

An evaluation renders no frame for people. Afterward the chosen episodes are run again from their seeds with
the recorded actions, which gives the same episode without asking the policy, and filmed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from envs.film_files import write_filmstrip, write_video
from envs.workers import MAKE_ENV, Job, WorkerPool, Workspace

_STILL_FRAMES = 8  # how long the end stands still before a video starts again
Frames = Sequence[UInt8[np.ndarray, "h w 3"]]


class Seen(NamedTuple):
    """What a replay shows: frames for people, whether it ended in success, frames per second."""

    frames: Frames
    success: bool
    fps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _PastEpisode(Job):
    """An episode that was played: where it starts and what was done."""

    task: str
    env_config: Mapping[str, Any]
    seed: int
    actions: Float32[np.ndarray, "time action"]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the environment's reset
    every: int = 2  # control periods per video frame

    def describe(self) -> str:
        """Return a short name for messages."""
        return f"video of task {self.task}, seed {self.seed}"

    def see(self, workspace: Workspace) -> Seen:
        """Execute the actions again and return what was seen."""
        env = workspace.env(0, self.env_config)
        env.start_episode(seed=self.seed, options=dict(self.options))
        frames, success = [env.render_video_frame()], False
        for step, action in enumerate(self.actions, start=1):
            success = env.advance(action).success
            if step % self.every == 0 or step == len(self.actions):
                frames.append(env.render_video_frame())
        return Seen(frames=frames, success=success, fps=env.robot_spec.control_hz / self.every)


class Replay(_PastEpisode):
    """An episode whose frames are wanted."""

    def run(self, workspace: Workspace, slot: int) -> Seen:
        """Return what was seen."""
        return self.see(workspace)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording(_PastEpisode):
    """An episode to film: what to see again, and where the pictures go."""

    video_path: Path
    filmstrip_path: Path

    def run(self, workspace: Workspace, slot: int) -> bool:
        """Film the episode and tell whether it ended in success."""
        seen = self.see(workspace)
        write_filmstrip(self.filmstrip_path, seen.frames)
        write_video(self.video_path, with_still_end(seen.frames), fps=seen.fps)
        return seen.success


def with_still_end(frames: Frames) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Return the frames of a video whose end stands still for a while."""
    return [*frames, *[frames[-1]] * _STILL_FRAMES]


def replay(replays: Sequence[Replay], *, num_workers: int, env_factory: str = MAKE_ENV) -> list[Seen]:
    """See episodes again in worker processes, and return what each shows, in the order given.

    Raises:
        WorkerError: an environment raised, or a worker died.
    """
    return _outcomes(replays, num_workers=num_workers, env_factory=env_factory)


def film(recordings: Sequence[Recording], *, num_workers: int, env_factory: str = MAKE_ENV) -> list[bool]:
    """Film episodes in worker processes and return which of them ended in success, in the order given.

    Raises:
        WorkerError: an environment raised, a file could not be written, or a worker died.
    """
    return _outcomes(recordings, num_workers=num_workers, env_factory=env_factory)


def _outcomes(jobs: Sequence[Job], *, num_workers: int, env_factory: str) -> list[Any]:
    if not jobs:
        return []
    with WorkerPool(num_workers=min(num_workers, len(jobs)), env_factory=env_factory) as pool:
        outcomes: dict[int, Any] = dict(pool.run(jobs))
    return [outcomes[position] for position in range(len(jobs))]
