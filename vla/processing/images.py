"""Camera frames as the model takes them: at one size, stacked in a fixed order."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla.interface import Arrays, ArraySpec, Moments, ObservationError
from vla.processing.checks import require_keys
from vla.processing.moments import Demonstrations
from vla.resize import Resizing
from vla.spec import RobotSpec


class ImageInput:
    """Makes `images`, uint8 [batch image h w 3]: frames oldest first, in each the cameras in spec order.

    Args:
        robot_spec: its cameras.
        frame_offsets: which frames a policy looks at, in control periods before now.
        resizing: what brings frames to one size; None leaves them as they are.

    Raises:
        ValueError: the cameras differ in size, and nothing resizes them.
    """

    def __init__(
        self, *, robot_spec: RobotSpec, frame_offsets: Sequence[int], resizing: Resizing | None = None
    ) -> None:
        self._cameras, self.resizing = robot_spec.cameras, resizing
        self._frame_offsets = tuple(frame_offsets)
        sizes = sorted({(camera.height, camera.width) for camera in robot_spec.cameras})
        if resizing is not None:
            sizes = [(resizing.height, resizing.width)]
        if len(sizes) != 1:
            raise ValueError(
                f"the cameras {robot_spec.camera_names} have the sizes {sizes} (height, width), and "
                "the policy sees one; give data.image_size=96, say, or choose cameras of one size with "
                "data.cameras"
            )
        self._size = sizes[0]

    @classmethod
    def fit(cls, demonstrations: Demonstrations, *, frame_offsets: Sequence[int]) -> "ImageInput":
        """Take cameras from the robot spec, and the resizing from the demonstrations."""
        return cls(
            robot_spec=demonstrations.robot_spec,
            frame_offsets=frame_offsets,
            resizing=demonstrations.resizing,
        )

    def specs(self) -> Mapping[str, ArraySpec]:
        """Return the form of `images`."""
        num_images = len(self._frame_offsets) * len(self._cameras)
        return {"images": ArraySpec("uint8", (num_images, *self._size, 3))}

    def encode(self, moments: Moments) -> Arrays:
        """Return the frames of all cameras in one array, resized if they are not yet.

        Raises:
            ObservationError: a camera has another number of frames than the policy looks at, or frames of
                another size than the camera's and the policy's.
        """
        frames = []
        for camera in self._cameras:
            images = moments.images[camera.name]
            if images.shape[1] != len(self._frame_offsets):
                raise ObservationError(
                    f"camera {camera.name!r} has {images.shape[1]} frames, {len(self._frame_offsets)} are "
                    f"needed: those at {self._frame_offsets} control periods before now"
                )
            if self.resizing is not None and images.shape[2:4] == (camera.height, camera.width):
                images = self.resizing.apply(images)
            if images.shape[2:4] != self._size:
                raise ObservationError(
                    f"camera {camera.name!r} has frames of {images.shape[2]}x{images.shape[3]} (height x "
                    f"width); {camera.height}x{camera.width} are needed"
                )
            frames.append(images)
        stacked = np.stack(frames, axis=2)
        return {"images": stacked.reshape(len(stacked), -1, *self._size, 3)}

    def to_json(self) -> dict[str, Any]:
        """Return kind and resizing; the rest is in the robot spec."""
        if self.resizing is None:
            return {"kind": "images"}
        return {"kind": "images", "resizing": self.resizing.to_json()}

    @classmethod
    def from_json(
        cls, data: dict[str, Any], *, robot_spec: RobotSpec, frame_offsets: Sequence[int]
    ) -> "ImageInput":
        """Rebuild from `to_json`, exactly."""
        require_keys(data, ("kind", "resizing") if "resizing" in data else ("kind",), what="image input")
        resizing = Resizing.from_json(data["resizing"]) if "resizing" in data else None
        return cls(robot_spec=robot_spec, frame_offsets=frame_offsets, resizing=resizing)
