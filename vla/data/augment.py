"""Image augmentation in numpy on uint8 frames: small shifts, brightness, contrast and color balance.

It never mirrors, rotates or crops away: left must stay left, since instructions and actions speak of places.
Every random number comes from the generator handed in, so a resumed run sees the same augmented frames.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import UInt8

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

    def __call__(
        self, images: UInt8[np.ndarray, "batch images h w 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "batch images h w 3"]:
        """Return changed copies; each frame of each sample is changed in its own way."""
        batch, num_images, height, width, _ = images.shape
        out = np.empty_like(images)
        tables = self._tables(batch * num_images, rng)
        offsets = rng.integers(-self.max_shift, self.max_shift + 1, size=(batch * num_images, 2))
        rows, columns = np.arange(height), np.arange(width)
        flat_in, flat_out = images.reshape(-1, height, width, 3), out.reshape(-1, height, width, 3)
        for i, (dy, dx) in enumerate(offsets):
            frame = flat_in[i]
            if dy:
                frame = frame[np.clip(rows + dy, 0, height - 1)]
            if dx:
                frame = frame[:, np.clip(columns + dx, 0, width - 1)]
            for channel in range(3):
                np.take(tables[i, channel], frame[..., channel], out=flat_out[i, ..., channel], mode="clip")
        return out

    def _tables(self, count: int, rng: np.random.Generator) -> UInt8[np.ndarray, "count 3 256"]:
        """Return look-up tables that apply brightness, contrast and color balance to a channel's values."""
        gain = 1.0 + self.contrast * rng.uniform(-1, 1, size=(count, 1, 1))
        balance = 1.0 + self.color * rng.uniform(-1, 1, size=(count, 3, 1))
        shift = 255.0 * self.brightness * rng.uniform(-1, 1, size=(count, 1, 1))
        values = np.arange(256)[None, None]
        return np.clip((values - 127.5) * gain * balance + 127.5 + shift, 0, 255).astype(np.uint8)
