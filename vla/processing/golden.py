"""Observations in one file: what an export is tried on, in a checkpoint and in a bundle. No pickles."""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla.files import require_regular
from vla.interface import Arrays, Observation, ObservationError
from vla.spec import RobotSpec

MOST_BYTES = 2**30  # 16 moments of three cameras of 1280x720 have a quarter of it
# What zipfile and numpy raise for what is no archive of arrays, encrypted, or packed in another way.
_ARCHIVE_ERRORS = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
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
    """Return all arrays of an .npz file; sizes are checked before anything is unpacked.

    Raises:
        ObservationError: it cannot be read, is no regular file, or unpacks to more than `MOST_BYTES`.
    """
    try:
        require_regular(path)
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
            if total > MOST_BYTES:
                raise ValueError(f"it unpacks to {total} bytes; at most {MOST_BYTES} are read")
            return {
                member.filename.removesuffix(".npy"): _read_array(archive.read(member))
                for member in archive.infolist()
            }
    except _ARCHIVE_ERRORS as error:
        raise ObservationError(f"{path} cannot be read: {error}") from error


def _read_array(content: bytes) -> np.ndarray:
    """Return the array of an .npy file, if its header announces as many bytes as there are."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    announced = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and announced != len(content) - file.tell():
        raise ValueError(
            f"an array of {announced} bytes is announced, {len(content) - file.tell()} are there"
        )
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


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
