"""Opens LeRobotDataset v3, ours or LeRobot's: numbers as arrays loaded once, frames decoded on demand.

Form, numbers and small files are checked when it is opened, video and pictures against the hashes that this
program wrote by `content_hash`, so a damaged dataset fails before a training run starts. Quantiles are
recomputed, as those in LeRobot's stats.json are averages over episodes.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Int64, UInt8

from vla.data import origin, tables
from vla.data.file_hashes import hash_files
from vla.data.layout import (
    ACTION_KEY,
    DATA_PATH,
    INFO_PATH,
    ORIGIN_PATH,
    STATE_KEY,
    VIDEO_PATH,
    DatasetError,
    camera_key,
    path_from_pattern,
    read_info,
)
from vla.data.picture_files import decode_picture
from vla.data.staging import staged_indices
from vla.data.statistics import numeric_statistics
from vla.data.video import check_mp4, decode_frames
from vla.resize import Resizing
from vla.spec import CameraSpec, RobotSpec

TOLERANCE_IN_PERIODS = 0.25  # a frame counts as the one at a timestamp within this share of a frame period


class Dataset:
    """A LeRobotDataset v3, read-only: N frames in E episodes.

    Args:
        root: the directory that holds `meta/`.
        robot_spec: needed for datasets that LeRobot wrote, which do not say what their numbers mean (see
            `vla.data.foreign.derive_robot_spec`); taken in place of the stored one in our own datasets.
        cameras: the recorded cameras to use, in this order; None for all. Others are never looked at.

    Raises:
        DatasetError: files are missing, truncated or inconsistent, numbers are not finite, or there is no
            episode.
        ValueError: a camera was not recorded.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        robot_spec: RobotSpec | None = None,
        cameras: Sequence[str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.info = read_info(self.root)
        tables.check_version(self.root, self.info)
        _refuse_unfinished(self.root, self.info["total_episodes"])
        origin.check_files(self.root)
        self.robot_spec = _agree_on_spec(self.root, self.info, robot_spec)
        if cameras is not None:
            self.robot_spec = self.robot_spec.seeing(cameras)
        if self.info["total_episodes"] == 0:
            raise DatasetError(f"{self.root} is empty: it has no episode; record some first")
        self.episodes = tables.read_episodes(self.root, self.info["total_episodes"])
        self._load_numbers()
        self.instructions = tables.read_instructions(self.root)
        absent = set(np.unique(self.task_index).tolist()) - set(range(len(self.instructions)))
        if absent:
            raise DatasetError(
                f"{self.root}: task_index {sorted(absent)} in data/ has no line in meta/tasks.parquet, "
                f"which has {len(self.instructions)}; restore that file"
            )
        self._videos = {
            camera: self._video_paths(camera)
            for camera in self.robot_spec.camera_names
            if self.storage(camera) == "video"
        }
        for path in dict.fromkeys(path for paths in self._videos.values() for path in paths):
            check_mp4(path)

    @property
    def num_frames(self) -> int:
        """N, over all episodes."""
        return len(self.states)

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.episode_starts)

    @property
    def episode_extra(self) -> dict[str, list[Any]]:
        """The additional episode columns (seed, task_name, success), each [E]; empty in LeRobot's own."""
        return {name: self.episodes[name].to_pylist() for name in tables.extra_columns(self.episodes)}

    def storage(self, camera: str) -> str:
        """Return ``"video"`` or ``"image"``."""
        return self.info["features"][camera_key(camera)]["dtype"]

    def statistics(self) -> dict[str, dict[str, Float[np.ndarray, " dims"]]]:
        """Return exact min, max, mean, std, q01, q10, q50, q90, q99 of `observation.state` and `action`."""
        return {STATE_KEY: numeric_statistics(self.states), ACTION_KEY: numeric_statistics(self.actions)}

    def content_hash(self, *, memory_dir: Path | None = None) -> str:
        """Return a sha256 over names, sizes and bytes of all files that shape what is read.

        These are info.json (with meta/vla.json where it is in use) and every parquet and mp4 file.

        Args:
            memory_dir: directory that remembers the hashes of files, so that they are read once and not at
                every start; see `vla.data.file_hashes` for when they are trusted.

        Raises:
            DatasetError: a file that this program wrote is damaged.
        """
        names = self._content_names()
        hashes = hash_files(self.root, names, memory_dir)
        origin.require_hashes(self.root, hashes)
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name} {(self.root / name).stat().st_size}\n".encode())
            digest.update(bytes.fromhex(hashes[name]))
        return digest.hexdigest()

    def report_unverified(self) -> None:
        """Log one line if files lack a hash of the program that wrote them, as those of LeRobot do."""
        origin.report_unverified(self.root, self._content_names())

    def _content_names(self) -> list[str]:
        """Return the relative POSIX paths of all files that shape what is read, sorted."""
        paths = [self.root / INFO_PATH, *self.data_files]
        paths += [path for of_camera in self._videos.values() for path in of_camera]
        if "vla" not in self.info and (self.root / ORIGIN_PATH).is_file():  # the robot spec is there
            paths.append(self.root / ORIGIN_PATH)
        for folder in ("meta", "data", "videos"):
            paths += [path for path in (self.root / folder).rglob("*") if path.suffix in (".parquet", ".mp4")]
        return [path.relative_to(self.root).as_posix() for path in sorted(set(paths))]

    def frames(
        self, camera: str, start: int, stop: int, *, resizing: Resizing | None = None
    ) -> UInt8[np.ndarray, "frames h w 3"]:
        """Decode the frames `start` to `stop` (exclusive, counted over the whole dataset) of one camera.

        Args:
            camera: one of the robot spec.
            start: first frame.
            stop: the one after the last.
            resizing: what is done to each frame.

        Raises:
            DatasetError: a file is damaged or a frame is missing.
            ValueError: the camera or the range does not exist.
        """
        if camera not in self.robot_spec.camera_names:
            raise ValueError(f"camera {camera!r} is none of {list(self.robot_spec.camera_names)}")
        if not 0 <= start < stop <= self.num_frames:
            raise ValueError(f"frames [{start}, {stop}) do not lie within [0, {self.num_frames})")
        spec = next(spec for spec in self.robot_spec.cameras if spec.name == camera)
        resizing = resizing or Resizing(height=spec.height, width=spec.width, mode="stretch")
        images = np.empty((stop - start, resizing.height, resizing.width, 3), dtype=np.uint8)
        if self.storage(camera) == "video":
            self._read_video(spec, start, images, resizing)
        else:
            self._read_pictures(spec, start, images, resizing)
        return images

    def _load_numbers(self) -> None:
        self.data_files = tables.data_files(self.root, self.episodes, self.info.get("data_path") or DATA_PATH)
        numbers = tables.read_numbers(
            self.data_files, self.info["total_episodes"], self.robot_spec, float(self.info["fps"])
        )
        self.states: Float32[np.ndarray, "N state"] = numbers.states
        self.actions: Float32[np.ndarray, "N action"] = numbers.actions
        self.task_index: Int64[np.ndarray, " N"] = numbers.task_index
        self.episode_index: Int64[np.ndarray, " N"] = numbers.episode_index
        self._timestamps = numbers.timestamps
        self._rows_per_file = numbers.rows_per_file
        self.episode_starts, self.episode_lengths = tables.episode_bounds(
            self.root, self.episodes, self.episode_index
        )
        for array in (self.states, self.actions, self.task_index, self.episode_index):
            array.setflags(write=False)

    def _video_paths(self, camera: str) -> list[Path]:
        """Return the video file of every episode."""
        key, pattern = camera_key(camera), self.info.get("video_path") or VIDEO_PATH
        names = (f"videos/{key}/chunk_index", f"videos/{key}/file_index", f"videos/{key}/from_timestamp")
        missing = [name for name in names if name not in self.episodes.column_names]
        if missing:
            raise DatasetError(f"{self.root}/meta/episodes lacks the columns {missing} of a video camera")
        chunks, files = (self.episodes[name].to_pylist() for name in names[:2])
        return [
            path_from_pattern(
                self.root, pattern, {"video_key": key, "chunk_index": chunk, "file_index": file}
            )
            for chunk, file in zip(chunks, files, strict=True)
        ]

    def _read_video(self, camera: CameraSpec, start: int, images: np.ndarray, resizing: Resizing) -> None:
        """Fill `images`; neighboring episodes in one file are decoded in one pass."""
        offsets = self.episodes[f"videos/{camera_key(camera.name)}/from_timestamp"].to_numpy()
        paths = self._videos[camera.name]
        stop = start + len(images)
        period = 1.0 / float(self.info["fps"])
        begin = start
        while begin < stop:
            first = last = int(self.episode_index[begin])
            while (
                last + 1 < self.num_episodes
                and self.episode_starts[last + 1] < stop
                and paths[last + 1] == paths[first]
                and offsets[last + 1] > offsets[last]
            ):
                last += 1
            end = min(stop, int(self.episode_starts[last] + self.episode_lengths[last]))
            times = offsets[self.episode_index[begin:end]] + self._timestamps[begin:end]
            decoded = decode_frames(
                paths[first],
                times,
                height=camera.height,
                width=camera.width,
                tolerance_s=TOLERANCE_IN_PERIODS * period,
            )
            for place, image in enumerate(decoded, start=begin - start):
                images[place] = resizing.apply(image)
            begin = end

    def _read_pictures(self, camera: CameraSpec, start: int, images: np.ndarray, resizing: Resizing) -> None:
        """Fill `images` from the row groups that hold them."""
        key, stop, row = camera_key(camera.name), start + len(images), 0
        size = (camera.height, camera.width)
        for path, num_rows in zip(self.data_files, self._rows_per_file, strict=True):
            if row < stop and row + num_rows > start:
                with tables.open_parquet(path) as file:
                    position = row
                    for group in range(file.num_row_groups):
                        length = file.metadata.row_group(group).num_rows
                        if position < stop and position + length > start:
                            column = _read_pictures_column(path, file, group, key)
                            for i in range(max(start, position), min(stop, position + length)):
                                picture = column[i - position].as_py()
                                images[i - start] = resizing.apply(_decode_picture(path, i, picture, size))
                        position += length
            row += num_rows


def _read_pictures_column(path: Path, file: pq.ParquetFile, group: int, key: str) -> pa.ChunkedArray:
    try:
        return file.read_row_group(group, columns=[f"{key}.bytes"])[key]
    except (pa.ArrowException, OSError, KeyError) as error:
        tables.require_readable(error)
        raise DatasetError(f"data file {path} is damaged ({error}); restore it from a copy") from error


def _decode_picture(path: Path, index: int, picture: Any, size: tuple[int, int]) -> np.ndarray:
    content = picture.get("bytes") if isinstance(picture, dict) else None
    if not isinstance(content, bytes):
        raise DatasetError(f"data file {path} holds no image bytes for frame {index}; embed the images in it")
    return decode_picture(content, where=f"the image of frame {index} in {path}", size=size)


def _refuse_unfinished(root: Path, total_episodes: int) -> None:
    waiting = len([index for index in staged_indices(root) if index >= total_episodes])
    if waiting:
        raise DatasetError(
            f"the recording of {root} is running or was interrupted: {waiting} finished episodes are not "
            "laid out yet. Resume it, or call vla.data.writer.finish_recording on it"
        )


def _agree_on_spec(root: Path, info: dict[str, Any], given: RobotSpec | None) -> RobotSpec:
    """Return the robot spec: the one given, or the one that our datasets store."""
    if given is not None:
        tables.check_features(root, info, given)
        return given
    how = f"give robot_file=<file>; `python -m experiments.check dataset={root}` drafts one"
    ours = origin.read_origin(root, info)
    if ours is None:
        raise DatasetError(
            f"{root} was not written by this program and does not say what its numbers mean; {how}"
        )
    stored = origin.stored_spec(root, ours)
    if "vla" not in info and (faults := tables.feature_faults(info, stored)):
        raise DatasetError(
            f"another tool has changed {root}, and the robot spec in {ORIGIN_PATH} no longer fits: "
            f"{'; '.join(faults)}; {how}"
        )
    tables.check_features(root, info, stored)
    return stored
