"""Videos and filmstrips as files. Apart from videos.py, as a robot's computer has no simulator."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla.files import staged_file

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
