"""Frames of any camera at the one size that a policy sees: the same function in training and on the robot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla.registry import Choices, Range, check_attributes, check_settings

RESIZE_MODES = ("pad", "stretch")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resizing:
    """The size that frames are brought to, and how."""

    height: Annotated[int, Range(1, 8192), "of the result [pixels]"]
    width: Annotated[int, Range(1, 8192), "of the result [pixels]"]
    mode: Annotated[
        str, Choices(*RESIZE_MODES), "pad keeps the aspect ratio and fills with black; stretch does not"
    ]

    def __post_init__(self) -> None:
        check_attributes(self, where="resizing")

    def apply(self, frames: UInt8[np.ndarray, "*batch h w 3"]) -> UInt8[np.ndarray, "*batch new_h new_w 3"]:
        """Return frames at the size; those that have it already are returned as they are."""
        if frames.shape[-3:-1] == (self.height, self.width):
            return frames
        flat = frames.reshape(-1, *frames.shape[-3:])
        resized = np.empty((len(flat), self.height, self.width, 3), dtype=np.uint8)
        for i, frame in enumerate(flat):
            resized[i] = resize_image(frame, height=self.height, width=self.width, mode=self.mode)
        return resized.reshape(*frames.shape[:-3], self.height, self.width, 3)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {"height": self.height, "width": self.width, "mode": self.mode}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Resizing":
        """Rebuild from `to_json`.

        Raises:
            ValueError: a key is missing or unknown, or a value makes no sense.
        """
        return cls(**check_settings(cls, data, where="resizing"))


def resize_image(
    image: UInt8[np.ndarray, "h w 3"], *, height: int, width: int, mode: str
) -> UInt8[np.ndarray, "new_h new_w 3"]:
    """Return the image at another size, bilinearly, averaging where it shrinks.

    `stretch` changes the aspect ratio; `pad` keeps it and fills with black, as openpi's `resize_with_pad`.

    Raises:
        ValueError: `mode` is none of `RESIZE_MODES`.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"resize mode {mode!r} is none of {RESIZE_MODES}")
    if image.shape[:2] == (height, width):
        return image
    if mode == "stretch":
        return _scaled(image, height=height, width=width)
    scale = min(height / image.shape[0], width / image.shape[1])
    inner_height = min(height, max(1, int(image.shape[0] * scale)))
    inner_width = min(width, max(1, int(image.shape[1] * scale)))
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    inner = _scaled(image, height=inner_height, width=inner_width)
    canvas[top : top + inner_height, left : left + inner_width] = inner
    return canvas


def _scaled(image: np.ndarray, *, height: int, width: int) -> np.ndarray:
    scaled = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled, dtype=np.uint8)
