"""Camera frames as the model takes them: stacked in a fixed order, otherwise untouched."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla.interface import Arrays, ArraySpec, Moments, ObservationError
from vla.processing.checks import require_keys
from vla.processing.moments import Demonstrations
from vla.spec import RobotSpec


class ImageInput:
    """Makes `images`, uint8 [batch image h w 3]: frames oldest first, in each the cameras in spec order.

    Raises:
        ValueError: the cameras differ in size.
    """

    def __init__(self, *, robot_spec: RobotSpec, frame_offsets: Sequence[int]) -> None:
        sizes = sorted({(camera.height, camera.width) for camera in robot_spec.cameras})
        if len(sizes) != 1:
            raise ValueError(
                f"the cameras {robot_spec.camera_names} have the sizes {sizes}; one size is needed"
            )
        self._cameras, self._size = robot_spec.camera_names, sizes[0]
        self._frame_offsets = tuple(frame_offsets)

    @classmethod
    def fit(cls, demonstrations: Demonstrations, *, frame_offsets: Sequence[int]) -> "ImageInput":
        """Take cameras and sizes from the robot spec."""
        return cls(robot_spec=demonstrations.robot_spec, frame_offsets=frame_offsets)

    def specs(self) -> Mapping[str, ArraySpec]:
        """Return the form of `images`."""
        num_images = len(self._frame_offsets) * len(self._cameras)
        return {"images": ArraySpec("uint8", (num_images, *self._size, 3))}

    def encode(self, moments: Moments) -> Arrays:
        """Return the frames of all cameras in one array.

        Raises:
            ObservationError: a camera has another number of frames than the policy looks at.
        """
        for name in self._cameras:
            given = moments.images[name].shape[1]
            if given != len(self._frame_offsets):
                raise ObservationError(
                    f"camera {name!r} has {given} frames, {len(self._frame_offsets)} are needed: those at "
                    f"{self._frame_offsets} control periods before now"
                )
        stacked = np.stack([moments.images[name] for name in self._cameras], axis=2)
        return {"images": stacked.reshape(len(stacked), -1, *self._size, 3)}

    def to_json(self) -> dict[str, Any]:
        """Return the kind alone; the rest is in the robot spec."""
        return {"kind": "images"}

    @classmethod
    def from_json(
        cls, data: dict[str, Any], *, robot_spec: RobotSpec, frame_offsets: Sequence[int]
    ) -> "ImageInput":
        """Rebuild from `to_json`, exactly."""
        require_keys(data, ("kind",), what="image input")
        return cls(robot_spec=robot_spec, frame_offsets=frame_offsets)
