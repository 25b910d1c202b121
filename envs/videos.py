"""Videos and filmstrips of episodes, recorded by replaying the actions that were executed.

An evaluation renders no frame for people. Afterward the chosen episodes are run again from their seeds with
the recorded actions, which gives the same episode without asking the policy, and filmed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from envs.film_files import write_filmstrip, write_video
from envs.workers import MAKE_ENV, Job, WorkerPool, Workspace

_STILL_FRAMES = 8  # how long the end stands still before a video starts again


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording(Job):
    """An episode to film: where it starts, what was done, and where the pictures go."""

    task: str
    env_config: Mapping[str, Any]
    seed: int
    actions: Float32[np.ndarray, "time action"]
    video_path: Path
    filmstrip_path: Path
    every: int = 2  # control periods per video frame

    def describe(self) -> str:
        """Return a short name for messages."""
        return f"video of task {self.task}, seed {self.seed}"

    def run(self, workspace: Workspace, slot: int) -> bool:
        """Film the episode and tell whether it ended in success."""
        env = workspace.env(0, self.env_config)
        env.start_episode(seed=self.seed)
        frames, success = [env.render_video_frame()], False
        for step, action in enumerate(self.actions, start=1):
            success = env.advance(action).success
            if step % self.every == 0 or step == len(self.actions):
                frames.append(env.render_video_frame())
        write_filmstrip(self.filmstrip_path, frames)
        still = frames[-1:] * _STILL_FRAMES
        write_video(self.video_path, frames + still, fps=env.robot_spec.control_hz / self.every)
        return success


def film(recordings: Sequence[Recording], *, num_workers: int, env_factory: str = MAKE_ENV) -> list[bool]:
    """Film episodes in worker processes and return which of them ended in success, in the order given.

    Raises:
        WorkerError: an environment raised, a file could not be written, or a worker died.
    """
    if not recordings:
        return []
    with WorkerPool(num_workers=min(num_workers, len(recordings)), env_factory=env_factory) as pool:
        outcomes: dict[int, bool] = dict(pool.run(recordings))
    return [outcomes[position] for position in range(len(recordings))]
