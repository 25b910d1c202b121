"""Videos and filmstrips of episodes, recorded by replaying the actions that were executed.

An evaluation renders no frame for people. Afterward the chosen episodes are run again from their seeds with
the recorded actions, which gives the same episode without asking the policy, and filmed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from envs.workers import MAKE_ENV, Job, WorkerPool, Workspace
from vla.files import staged_file

_STILL_FRAMES = 8  # how long the end stands still before a video starts again
_FILMSTRIP_FRAMES = 6
_FILMSTRIP_GAP_PX = 4


def write_video(path: Path | str, frames: Iterable[UInt8[np.ndarray, "h w 3"]], *, fps: float) -> None:
    """Write an H.264 MP4 that browsers play; odd sizes lose a row or a column, as yuv420p needs even ones.

    Raises:
        ValueError: there are no frames.
        OSError: the file cannot be written.
    """
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError(f"no frames for {path}")
    height, width = (size - size % 2 for size in first.shape[:2])
    with (
        staged_file(Path(path)) as staging,
        av.open(str(staging), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "25", "preset": "veryfast", "threads": "1"}
        for frame in (first, *pictures):
            even = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())


def write_filmstrip(path: Path, frames: Sequence[UInt8[np.ndarray, "h w 3"]]) -> None:
    """Write a picture of up to six frames side by side, evenly spread from the first to the last.

    Raises:
        ValueError: there are no frames.
    """
    if not frames:
        raise ValueError(f"no frames for {path}")
    count = min(_FILMSTRIP_FRAMES, len(frames))
    chosen = [frames[round(i)] for i in np.linspace(0, len(frames) - 1, count)]
    gap = np.full((chosen[0].shape[0], _FILMSTRIP_GAP_PX, 3), 255, np.uint8)
    parts = [part for frame in chosen for part in (frame, gap)][:-1]
    with staged_file(path) as staging:
        Image.fromarray(np.concatenate(parts, axis=1)).save(staging, format="JPEG", quality=85)


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
