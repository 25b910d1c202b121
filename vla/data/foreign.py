"""A robot spec for datasets that LeRobot wrote, as far as their metadata tells.

Call it on purpose: units are unknown there, and ranges are those that occur in the data.
"""

from pathlib import Path
from typing import Any

import numpy as np

from vla.data import tables
from vla.data.layout import (
    ACTION_KEY,
    DATA_PATH,
    IMAGE_PREFIX,
    STATE_KEY,
    STORAGES,
    DatasetError,
    camera_size,
    is_depth,
    read_info,
)
from vla.spec import CameraSpec, Channel, RobotSpec


def derive_robot_spec(root: Path | str, *, action_convention: str, gripper_sign: str) -> RobotSpec:
    """Return the spec of a LeRobotDataset v3 that stores none.

    Cameras are the features `observation.images.<camera>`, depth excepted; channels are named by the
    features, with the unit ``"1"`` and the smallest and largest value that occurs as range (a constant gets
    +-0.5).

    Args:
        root: the directory that holds `meta/`.
        action_convention: one of `vla.spec.ACTION_CONVENTIONS`; the dataset does not tell.
        gripper_sign: one of `vla.spec.GRIPPER_SIGNS`.

    Raises:
        DatasetError: state, action or cameras are missing, or the data is damaged.
    """
    root = Path(root)
    info = read_info(root)
    tables.check_version(root, info)
    features: dict[str, Any] = info["features"]
    missing = [key for key in (STATE_KEY, ACTION_KEY) if len(features.get(key, {}).get("shape", ())) != 1]
    cameras = _cameras(root, features)
    if missing or not cameras:
        raise DatasetError(
            f"{root} has no vector {missing} or no camera {IMAGE_PREFIX}*; its features are "
            f"{sorted(features)}"
        )
    episodes = tables.read_episodes(root, info["total_episodes"])
    files = tables.data_files(root, episodes, info.get("data_path") or DATA_PATH)
    provisional = RobotSpec(
        name=str(info.get("robot_type") or "unknown"),
        cameras=cameras,
        state=_channels(features[STATE_KEY], None),
        action=_channels(features[ACTION_KEY], None),
        control_hz=float(info["fps"]),
        action_convention=action_convention,
        gripper_sign=gripper_sign,
    )
    numbers = tables.read_numbers(files, info["total_episodes"], provisional, float(info["fps"]))
    return RobotSpec(
        name=provisional.name,
        cameras=cameras,
        state=_channels(features[STATE_KEY], numbers.states),
        action=_channels(features[ACTION_KEY], numbers.actions),
        control_hz=provisional.control_hz,
        action_convention=action_convention,
        gripper_sign=gripper_sign,
    )


def _cameras(root: Path, features: dict[str, Any]) -> tuple[CameraSpec, ...]:
    """Return the cameras that are no depth cameras."""
    cameras = []
    for key, feature in features.items():
        if not key.startswith(IMAGE_PREFIX) or feature["dtype"] not in STORAGES or is_depth(feature):
            continue
        size = camera_size(feature)
        if size is None or size[2] != 3:
            raise DatasetError(
                f"{root}: {key} has shape {feature.get('shape')}; want height, width and 3 color channels"
            )
        try:
            cameras.append(CameraSpec(name=key.removeprefix(IMAGE_PREFIX), height=size[0], width=size[1]))
        except ValueError as error:
            raise DatasetError(f"{root}: feature {key!r}: {error}") from error
    return tuple(cameras)


def _channels(feature: dict[str, Any], values: np.ndarray | None) -> tuple[Channel, ...]:
    """Name the channels of a feature and take their ranges from `values` [N, D]; +-1 without."""
    size = feature["shape"][0]
    names = feature.get("names")
    if isinstance(names, dict):  # older recorders nest them: {"motors": [...]}
        names = next(iter(names.values()), None)
    if not isinstance(names, list) or len(names) != size:
        names = [str(i) for i in range(size)]
    lows = np.full(size, -1.0) if values is None else values.min(axis=0).astype(float)
    highs = np.full(size, 1.0) if values is None else values.max(axis=0).astype(float)
    constant = lows >= highs
    lows, highs = np.where(constant, lows - 0.5, lows), np.where(constant, highs + 0.5, highs)
    return tuple(
        Channel(name=str(name), unit="1", low=float(low), high=float(high))
        for name, low, high in zip(names, lows, highs, strict=True)
    )
