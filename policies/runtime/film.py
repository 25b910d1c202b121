"""A film of a controlled run: small frames of all cameras, some per second, kept in memory."""

from functools import partial

import numpy as np
from jaxtyping import UInt8

from policies.runtime.background import BackgroundWorker
from vla.interface import SensorReading

_MAX_WAITING = 4  # readings that wait to be made small, one of every camera each


class Film:
    """Keeps small frames of all cameras, side by side.

    A thread of its own makes them small, so that the control loop hands over a reading and goes on. A film
    that fails or is full ends no run: what is not kept is counted.

    Args:
        frames_hz: frames kept per second, about.
        max_frames: after which no more are kept; the default is five minutes and 100 MB at most.
        max_height: of a frame [pixels]; larger ones lose rows and columns.

    Attributes:
        frames: the kept frames, and when each was captured, on the clock of the readings [s].
        num_dropped: frames that were not kept.
    """

    def __init__(self, *, frames_hz: float = 5.0, max_frames: int = 1500, max_height: int = 120) -> None:
        self.frames: list[tuple[float, UInt8[np.ndarray, "_ _ 3"]]] = []
        self.num_dropped = 0
        self._interval_s, self._max_frames, self._max_height = 0.9 / frames_hz, max_frames, max_height
        self._due = -float("inf")
        self._worker = BackgroundWorker(name="film", max_waiting=_MAX_WAITING, errors=(Exception,))

    def see(self, reading: SensorReading) -> None:
        """Keep a reading's frames if it is time to. Never waits and never fails."""
        if reading.state_stamp < self._due:
            return
        self._due = reading.state_stamp + self._interval_s
        is_full = len(self.frames) >= self._max_frames
        if is_full or not self._worker.offer(partial(self._keep, reading)):
            self.num_dropped += 1

    def close(self) -> None:
        """Have what waits kept; safe to call more than once."""
        self._worker.close(timeout_s=1.0)

    def _keep(self, reading: SensorReading) -> None:
        small = [image[:: self._step(image), :: self._step(image)] for image in reading.images.values()]
        height = max((len(image) for image in small), default=0)
        if height:
            padded = [np.pad(image, ((0, height - len(image)), (0, 0), (0, 0))) for image in small]
            frame = np.concatenate(padded, axis=1)
            if not self.frames or self.frames[0][1].shape == frame.shape:
                self.frames.append((reading.state_stamp, frame))
            else:
                self.num_dropped += 1

    def _step(self, image: UInt8[np.ndarray, "h w 3"]) -> int:
        return -(-len(image) // self._max_height)
