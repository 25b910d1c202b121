"""What must hold before anything is recorded; each error says what was given and what was wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla.data import layout
from vla.data.layout import DatasetError
from vla.spec import RobotSpec


def check_recordable(spec: RobotSpec, *, storage: str, pixel_format: str) -> None:
    """Raise `DatasetError` if a robot cannot be recorded in this storage."""
    if storage not in layout.STORAGES:
        raise DatasetError(f"storage {storage!r} is none of {layout.STORAGES}")
    if pixel_format not in layout.PIXEL_FORMATS:
        raise DatasetError(f"pixel_format {pixel_format!r} is none of {layout.PIXEL_FORMATS}")
    if not (spec.cameras and spec.state and spec.action):
        raise DatasetError(
            f"robot spec {spec.name!r} needs at least one camera, state channel and action channel"
        )
    odd = [camera for camera in spec.cameras if camera.height % 2 or camera.width % 2]
    if storage == "video" and pixel_format == "yuv420p" and odd:
        raise DatasetError(f"H.264 needs even frame sizes, not {odd}; change the size or use storage='image'")


def check_image(name: str, shape: tuple[int, int, int], images: Mapping[str, np.ndarray]) -> None:
    """Raise `DatasetError` unless the camera's image is there, uint8, and of `shape` (height, width, 3)."""
    if name not in images:
        raise DatasetError(f"no image of camera {name!r}; there are images of {sorted(images)}")
    image = images[name]
    if image.shape != shape or image.dtype != np.uint8:
        raise DatasetError(
            f"the image of camera {name!r} is {image.dtype}{list(image.shape)}; the robot spec says "
            f"uint8{list(shape)} (height, width, channel)"
        )


def check_vector(kind: str, values: np.ndarray, names: tuple[str, ...], where: str) -> np.ndarray:
    """Return the vector as float32 [len(names)]; `where` says in the error which frame it belongs to.

    Raises:
        DatasetError: wrong shape, not floating, NaN or infinite.
    """
    vector = np.asarray(values)
    if vector.shape != (len(names),) or vector.dtype.kind != "f":
        raise DatasetError(
            f"the {kind} of {where} is {vector.dtype}{list(vector.shape)}; the robot spec says "
            f"float[{len(names)}]: {list(names)}"
        )
    vector = vector.astype(np.float32)
    for name, value in zip(names, vector, strict=True):
        if not np.isfinite(value):
            raise DatasetError(f"the {kind} of {where} has {name} = {value}; it must be finite")
    return vector


def require_continuable(root: Path, info: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise unless info.json is that of a recording with the same spec and settings as `wanted`."""
    if "vla" not in info:
        raise DatasetError(f"{root} was not recorded by this program; it can be read but not continued")
    if info["vla"] == wanted["vla"] and info["features"] == wanted["features"]:
        return
    mine, theirs = (
        RobotSpec.from_json(wanted["vla"]["robot_spec"]),
        RobotSpec.from_json(info["vla"]["robot_spec"]),
    )
    mine.require_same(theirs, mine="this recording", theirs=f"the dataset {root}")
    for key in ("storage", "extra_info"):
        if info["vla"][key] != wanted["vla"][key]:
            raise DatasetError(
                f"{root} was recorded with {key} {info['vla'][key]}, now it is {wanted['vla'][key]}; "
                "give the same, or another directory"
            )
    raise DatasetError(
        f"{root} was recorded with other features (encoder settings?): {info['features']} against "
        f"{wanted['features']}; give the same encoder settings, or another directory"
    )
