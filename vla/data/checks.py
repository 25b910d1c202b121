"""What must hold before anything is recorded; each error says what was given and what was wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla.data import layout, origin, tables
from vla.data.layout import DatasetError
from vla.data.staging import EXTRA_TYPES, staged_indices
from vla.spec import RobotSpec, is_utf8

MOST_OUTSIDE = 0.01  # of the values of a channel in an episode may lie outside its range


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


def check_extra(key: str, value: Any) -> None:
    """Raise `DatasetError` unless an extra column may have this name and hold this value."""
    is_fitting = type(value) in EXTRA_TYPES and (
        (type(value) is not int or -(2**63) <= value < 2**63) and (type(value) is not str or is_utf8(value))
    )
    if not is_fitting or not is_utf8(key) or key in layout.EPISODE_COLUMNS or "/" in key or not key:
        raise DatasetError(
            f"extra column {key!r} = {value!r} ({type(value).__name__}) is not allowed: values are bool, "
            "int of 64 bits, float or str in valid UTF-8; names are such text, hold no '/' and are none of "
            f"{list(layout.EPISODE_COLUMNS)}"
        )


def lines_about_ranges(
    spec: RobotSpec, states: Float32[np.ndarray, "N state"], actions: Float32[np.ndarray, "N action"]
) -> list[str]:
    """Return a line for each channel of which more values lie outside its range than chance explains.

    Args:
        spec: declares the ranges.
        states: of an episode, in the units of the spec, as far as the recorder knows.
        actions: of the same.
    """
    lines = []
    for kind, channels, rows in (("state", spec.state, states), ("action", spec.action, actions)):
        for channel, values in zip(channels, rows.T, strict=True):
            slack = 1e-3 * (channel.high - channel.low)
            low, high = channel.low - slack, channel.high + slack
            if np.mean((values < low) | (values > high)) <= MOST_OUTSIDE:
                continue
            radians = np.deg2rad(values)
            is_degrees = channel.unit.startswith("rad") and bool(((radians >= low) & (radians <= high)).all())
            lines.append(
                f"{kind} {channel.name!r} ranges from {values.min():g} to {values.max():g}, its spec says "
                f"[{channel.low:g}, {channel.high:g}] {channel.unit}{': degrees?' if is_degrees else ''}"
            )
    return lines


def require_continuable(root: Path, info: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Check that a dataset was recorded with the spec and settings of `wanted`, both as in info.json.

    Other tools may have edited it in place since, as long as its episodes are ours and its features the same.

    Raises:
        DatasetError: it was not, or is no recording of this program; or another program added episodes.
        SpecMismatch: it is a recording of another robot.
    """
    tables.check_version(root, info)
    if not staged_indices(root):  # else a layout may have been interrupted between its files
        origin.check_files(root)
    ours = origin.read_origin(root, info)
    if ours is None:
        raise DatasetError(f"{root} was not recorded by this program; it can be read but not continued")
    mine = RobotSpec.from_json(wanted["vla"]["robot_spec"])
    mine.require_same(origin.stored_spec(root, ours), mine="this recording", theirs=f"the dataset {root}")
    for key in ("storage", "extra_info"):
        if ours[key] != wanted["vla"][key]:
            raise DatasetError(
                f"{root} was recorded with {key} {ours[key]}, now it is {wanted['vla'][key]}; "
                "give the same, or another directory"
            )
    _require_same_features(root, _declared(info["features"]), _declared(wanted["features"]))
    keys = [key for key, feature in info["features"].items() if feature["dtype"] in layout.STORAGES]
    if info["total_episodes"]:
        for path in sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet")):
            tables.histogram_columns(path, keys)


def _require_same_features(root: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    lines = [f"it has no {key}" for key in now if key not in there]
    lines += [f"it has {key}" for key in there if key not in now]
    lines += [
        f"of {key} it has {_present(there[key], now[key])}, now it would be {_present(now[key], there[key])}"
        for key in now
        if key in there and there[key] != now[key]
    ]
    if lines:
        raise DatasetError(
            f"{root} was recorded with other features (encoder settings, or geometry): {'; '.join(lines)}. "
            "Give the same settings, or another directory"
        )


def _present(feature: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in feature.items() if value != other[name]}


def _declared(features: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must agree before episodes are added: types, shapes, names, and how video was encoded."""
    settings = ("video.codec", "video.pix_fmt", "video.fps", "video.g", "video.crf", "video.preset")
    return {
        key: {
            **{name: feature.get(name) for name in ("dtype", "shape", "names")},
            **{name: (feature.get("info") or {}).get(name) for name in settings},
        }
        for key, feature in features.items()
    }
