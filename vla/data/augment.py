"""Image augmentation in numpy on uint8 frames: small shifts, brightness, contrast and color balance.

It never mirrors, rotates or crops away: left must stay left, since instructions and actions speak of places.
Every random number comes from the generator handed in, so a resumed run sees the same augmented frames.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Int64, UInt8

from vla.registry import Range, check_attributes


@dataclass(frozen=True, kw_only=True)
class ImageAugmentation:
    """Random per-frame changes that keep the geometry of the scene to within `max_shift` pixels.

    Raises:
        SettingError: a value is not allowed.
    """

    max_shift: Annotated[int, Range(0, 256), "largest shift [pixels]"]
    brightness: Annotated[float, Range(0, 1, open_high=True), "largest relative change"]
    contrast: Annotated[float, Range(0, 1, open_high=True), "largest relative change"]
    color: Annotated[float, Range(0, 1, open_high=True), "largest relative change of a channel"]

    def __post_init__(self) -> None:
        check_attributes(self, where="augmentation")

    def draw(self, *, batch: int, num_images: int, rng: np.random.Generator) -> "DrawnChanges":
        """Draw what is changed in each frame of each sample."""
        tables = self._tables(batch * num_images, rng)
        shifts = rng.integers(-self.max_shift, self.max_shift + 1, size=(batch * num_images, 2))
        return DrawnChanges(
            tables=tables.reshape(batch, num_images, 3, 256), shifts=shifts.reshape(batch, num_images, 2)
        )

    def _tables(self, count: int, rng: np.random.Generator) -> UInt8[np.ndarray, "count 3 256"]:
        """Return look-up tables that apply brightness, contrast and color balance to a channel's values."""
        gain = 1.0 + self.contrast * rng.uniform(-1, 1, size=(count, 1, 1))
        balance = 1.0 + self.color * rng.uniform(-1, 1, size=(count, 3, 1))
        shift = 255.0 * self.brightness * rng.uniform(-1, 1, size=(count, 1, 1))
        values = np.arange(256)[None, None]
        return np.clip((values - 127.5) * gain * balance + 127.5 + shift, 0, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnChanges:
    """What is changed in the frames of a batch; each frame of each sample is changed in its own way.

    Attributes:
        tables: what each value of each channel becomes.
        shifts: rows and columns by which the scene moves up and to the left [pixels].
    """

    tables: UInt8[np.ndarray, "batch images 3 256"]
    shifts: Int64[np.ndarray, "batch images 2"]

    def apply(
        self, images: UInt8[np.ndarray, "batch images h w 3"]
    ) -> UInt8[np.ndarray, "batch images h w 3"]:
        """Return changed copies; what a shift uncovers at the edge repeats the edge."""
        height, width = images.shape[2:4]
        out = np.empty_like(images)
        rows, columns = np.arange(height), np.arange(width)
        flat_in, flat_out = images.reshape(-1, height, width, 3), out.reshape(-1, height, width, 3)
        tables = self.tables.reshape(-1, 3, 256)
        for i, (dy, dx) in enumerate(self.shifts.reshape(-1, 2)):
            frame = flat_in[i]
            if dy:
                frame = frame[np.clip(rows + dy, 0, height - 1)]
            if dx:
                frame = frame[:, np.clip(columns + dx, 0, width - 1)]
            for channel in range(3):
                np.take(tables[i, channel], frame[..., channel], out=flat_out[i, ..., channel], mode="clip")
        return out
