"""Observations in one file: what an export is tried on, in a checkpoint and in a bundle. No pickles."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla.interface import Arrays, Observation, ObservationError
from vla.spec import RobotSpec

IMAGE_PREFIX = "image."  # the frames of camera c are the array image.c


def write_observations(path: Path, observations: Sequence[Observation], more: Arrays | None = None) -> None:
    """Write observations, all of one robot, and further arrays to an .npz file.

    Raises:
        OSError: the disk is full or read-only.
    """
    arrays = {
        IMAGE_PREFIX + name: np.stack([observation.images[name] for observation in observations])
        for name in observations[0].images
    }
    counts = [len(observation.committed) for observation in observations]
    committed = np.zeros((len(counts), max(counts), observations[0].committed.shape[1]), dtype=np.float32)
    for row, observation in zip(committed, observations, strict=True):
        row[: len(observation.committed)] = observation.committed
    arrays["state"] = np.stack([observation.state for observation in observations])
    arrays["instruction"] = np.array([observation.instruction for observation in observations])
    arrays["committed"], arrays["num_committed"] = committed, np.array(counts, dtype=np.int64)
    both = sorted(set(arrays) & set(more or {}))
    assert not both, f"{both} are names of an observation's arrays"
    with path.open("xb") as file:
        np.savez_compressed(file, **arrays, **(more or {}))  # pyright: ignore[reportArgumentType]


def observation_arrays(spec: RobotSpec) -> tuple[str, ...]:
    """Return the names of the arrays that observations are kept in."""
    images = (IMAGE_PREFIX + name for name in spec.camera_names)
    return (*images, "state", "instruction", "committed", "num_committed")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an .npz file.

    Raises:
        ObservationError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ObservationError(f"{path} cannot be read: {error}") from error


def observations_from(
    arrays: Mapping[str, np.ndarray], *, spec: RobotSpec, num_frames: int, source: Path
) -> list[Observation]:
    """Return the observations among arrays that `read_arrays` returned.

    Raises:
        ObservationError: an array is missing or of another form than robot and history need.
    """
    num_samples = len(arrays["state"]) if "state" in arrays and arrays["state"].ndim else 0
    forms: dict[str, tuple[str, tuple[Any, ...]]] = {
        "state": ("float32", (num_samples, len(spec.state))),
        "instruction": ("str", (num_samples,)),
        "num_committed": ("int64", (num_samples,)),
        **{
            IMAGE_PREFIX + camera.name: ("uint8", (num_samples, num_frames, camera.height, camera.width, 3))
            for camera in spec.cameras
        },
    }
    lacking = sorted(set(observation_arrays(spec)) - set(arrays))
    if lacking or not num_samples:
        raise ObservationError(f"{source} lacks {lacking or 'observations'}; it holds {sorted(arrays)}")
    for name, (kind, shape) in forms.items():
        array = arrays[name]
        found = "str" if array.dtype.kind == "U" else str(array.dtype)
        if (found, array.shape) != (kind, shape):
            raise ObservationError(
                f"{source}: {name} is {found}{list(array.shape)} instead of {kind}{list(shape)}"
            )
    return [
        Observation(
            images={name: arrays[IMAGE_PREFIX + name][i] for name in spec.camera_names},
            state=arrays["state"][i],
            instruction=str(arrays["instruction"][i]),
            committed=arrays["committed"][i, : arrays["num_committed"][i]],
            stamp=0.0,
        )
        for i in range(num_samples)
    ]
