"""One finished episode in one file: what a recording keeps until `close` lays it out as LeRobotDataset v3.

An episode that cannot be laid out is moved to `.recording/rejected/` with the reason next to it, and those
behind it move up by one number; nothing that was saved is ever deleted.

A single file is written, flushed and renamed, so an episode is saved wholly or not at all. The file is
parquet of one row with page checksums; it holds numbers as little-endian bytes, and mp4 or PNG bytes a
camera.
"""

import itertools
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from vla.data.layout import STAGING, DatasetError
from vla.files import atomic_write_bytes, atomic_write_text
from vla.spec import RobotSpec

# What may hold the value of an extra column; JSON and Arrow agree on these.
EXTRA_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
Extra = dict[str, bool | int | float | str]
REJECTED = "rejected"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedEpisode:
    """A finished episode: T frames."""

    task: str  # the instruction
    extra: Extra  # extra columns of meta/episodes
    states: Float32[np.ndarray, "time state"]
    actions: Float32[np.ndarray, "time action"]
    media: dict[str, list[bytes]]  # by camera: one mp4 file (video storage), or T PNG files
    histograms: dict[str, Int64[np.ndarray, "3 256"]]  # by camera: counts of the values of every channel
    geometry: dict[str, np.ndarray]  # further columns of data/ by feature name, see vla/data/geometry.py


def staged_path(root: Path, episode_index: int) -> Path:
    """Return where the episode waits for `close`."""
    return root / STAGING / f"episode-{episode_index:06d}.parquet"


def staged_indices(root: Path) -> list[int]:
    """Return the indices of the waiting episodes, ascending."""
    return sorted(
        int(path.stem.removeprefix("episode-")) for path in (root / STAGING).glob("episode-*.parquet")
    )


def waiting_indices(root: Path, first: int) -> list[int]:
    """Return the indices of staged episodes from `first` on, which must follow each other.

    Gaps that `set_aside` left when it was interrupted are closed; the caller holds the lock.

    Raises:
        DatasetError: one is missing among them.
    """
    waiting = [index for index in staged_indices(root) if index >= first]
    wanted = list(range(first, first + len(waiting)))
    if waiting == wanted:
        return waiting
    num_missing = waiting[-1] - first + 1 - len(waiting)
    if num_missing > len(list((root / STAGING / REJECTED).glob("episode-*.parquet"))):
        raise DatasetError(
            f"{root / STAGING} holds the episodes {waiting}, but they should be numbered from {first} "
            "without a gap; restore the missing one, or move those behind the gap elsewhere"
        )
    for index, free in zip(waiting, wanted, strict=True):
        staged_path(root, index).rename(staged_path(root, free))
    return wanted


def set_aside(root: Path, index: int, reason: str) -> None:
    """Move a staged episode to `.recording/rejected/`, log why, and close the gap in the numbers."""
    folder = root / STAGING / REJECTED
    folder.mkdir(exist_ok=True)
    name = staged_path(root, index).stem
    target = next(
        path
        for i in itertools.count(1)
        if not (path := folder / (f"{name}.parquet" if i == 1 else f"{name}-{i}.parquet")).exists()
    )
    atomic_write_text(target.with_suffix(".txt"), reason + "\n")
    staged_path(root, index).rename(target)
    _LOG.warning(
        "episode %d of %s cannot be laid out (%s); it is set aside in %s, and the episodes behind it move up",
        index,
        root,
        reason,
        target,
    )
    for later in [number for number in staged_indices(root) if number > index]:
        staged_path(root, later).rename(staged_path(root, later - 1))


def write_staged(path: Path, episode: StagedEpisode) -> None:
    """Save an episode durably.

    Raises:
        OSError: the disk is full, for example; nothing was written.
    """
    cameras = list(episode.media)
    header = {
        "task": episode.task,
        "extra": episode.extra,
        "cameras": cameras,
        "num_frames": len(episode.states),
    }
    if episode.geometry:
        header["geometry"] = {key: values.dtype.str for key, values in episode.geometry.items()}
    row = {
        "episode": json.dumps(header),
        "states": episode.states.astype("<f4").tobytes(),
        "actions": episode.actions.astype("<f4").tobytes(),
        **{f"media/{name}": episode.media[name] for name in cameras},
        **{f"histogram/{name}": episode.histograms[name].astype("<i8").tobytes() for name in cameras},
        **{key: values.tobytes() for key, values in episode.geometry.items()},
    }
    types = {name: pa.large_list(pa.large_binary()) for name in row if name.startswith("media/")}
    columns = {
        name: pa.array([value], types.get(name, pa.string() if name == "episode" else pa.large_binary()))
        for name, value in row.items()
    }
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns), sink, compression="none", use_dictionary=False, write_page_checksum=True
    )
    atomic_write_bytes(path, sink.getvalue().to_pybytes())


def read_header(path: Path) -> tuple[Extra, int]:
    """Return the extra columns and the number of frames of a staged episode, without loading its frames.

    Raises:
        DatasetError: the file is damaged.
    """
    header = _header(path, _read_row(path, ["episode"]))
    return header["extra"], header["num_frames"]


def _header(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    try:
        header = json.loads(row["episode"])
    except ValueError as error:
        raise DatasetError(f"recorded episode {path} is damaged ({error})") from error
    missing = [name for name in ("task", "extra", "cameras", "num_frames") if name not in header]
    if missing:
        raise DatasetError(f"recorded episode {path} is damaged (its header lacks {missing})")
    return header


def read_staged(path: Path, spec: RobotSpec) -> StagedEpisode:
    """Load a staged episode.

    Raises:
        DatasetError: the file is damaged.
    """
    row = _read_row(path, None)
    header = _header(path, row)
    parts = [f"{part}/{name}" for name in spec.camera_names for part in ("media", "histogram")]
    geometry = header.get("geometry", {})
    missing = [name for name in ("states", "actions", *parts, *geometry) if name not in row]
    if missing or sorted(header["cameras"]) != sorted(spec.camera_names):
        raise DatasetError(
            f"recorded episode {path} has the cameras {header['cameras']} and lacks {missing}; the robot "
            f"spec has the cameras {list(spec.camera_names)}"
        )
    try:
        return StagedEpisode(
            task=header["task"],
            extra=header["extra"],
            states=np.frombuffer(row["states"], "<f4").reshape(-1, len(spec.state)).astype(np.float32),
            actions=np.frombuffer(row["actions"], "<f4").reshape(-1, len(spec.action)).astype(np.float32),
            media={name: row[f"media/{name}"] for name in header["cameras"]},
            histograms={
                name: np.frombuffer(row[f"histogram/{name}"], "<i8").reshape(3, 256).astype(np.int64)
                for name in header["cameras"]
            },
            geometry={
                key: np.frombuffer(row[key], dtype).reshape(header["num_frames"], -1)
                for key, dtype in geometry.items()
            },
        )
    except (ValueError, TypeError) as error:
        raise DatasetError(f"recorded episode {path} does not fit the robot spec ({error})") from error


def _read_row(path: Path, columns: list[str] | None) -> dict[str, Any]:
    try:
        with pq.ParquetFile(path.absolute(), page_checksum_verification=True) as file:
            return file.read(columns=columns).to_pylist()[0]
    except (pa.ArrowException, OSError, IndexError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the file's
            raise
        raise DatasetError(f"recorded episode {path} is damaged ({error})") from error
