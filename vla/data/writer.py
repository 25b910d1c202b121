"""Records episodes as LeRobotDataset v3, in a streaming way: video is encoded while the robot moves.

`save_episode` makes the episode durable in one file under `.recording/`; `close` lays all of them out as v3.
A process that is killed keeps every saved episode, and the next `DatasetWriter` on the same directory
resumes. Nothing here reads frames back.
"""

import errno
import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from vla.data import layout, origin, tables
from vla.data.checks import (
    check_extra,
    check_image,
    check_recordable,
    check_vector,
    lines_about_ranges,
    require_continuable,
)
from vla.data.consolidate import consolidate
from vla.data.geometry import check_views, declare_geometry, geometry_columns
from vla.data.layout import DatasetError, read_info
from vla.data.staging import (
    Extra,
    StagedEpisode,
    read_header,
    set_aside,
    staged_path,
    waiting_indices,
    write_staged,
)
from vla.data.statistics import image_histogram
from vla.data.video import VideoEncoder
from vla.disk_faults import DiskFault, naming, writing
from vla.files import DirectoryLock
from vla.geometry import GeometrySpec, ViewGeometry, stacked_views
from vla.spec import RobotSpec, is_utf8

_LOG = logging.getLogger(__name__)
PRESET = "fast"
PNG_COMPRESS_LEVEL = 1


class DatasetWriter:
    """Writes one dataset; `add_frame` for every control period, then `save_episode`, finally `close`.

    Args:
        root: directory of the dataset; a new one, an empty one, or one that this class began.
        robot_spec: what is recorded. Stored, and compared on resuming.
        storage: ``"video"`` (H.264, small, slightly lossy) or ``"image"`` (PNG in parquet, lossless).
        geometry: what is recorded of each camera's view besides pictures; None for nothing.
        extra_info: JSON-ready facts for people and programs, such as env config and render settings.
        crf: x264 quality, 0 (lossless) to 51; for video storage.
        keyframe_interval: a key frame at least every so many frames; 2 as in LeRobot.
        pixel_format: ``"yuv420p"`` as in LeRobot, which blurs colors by two pixels, or ``"yuv444p"``, which
            does not: at 96 px the worst 1 % of values is then off by 10 levels instead of 25.

    Raises:
        DirectoryInUse: another process is writing there.
        DatasetError: the directory holds something else, or a dataset of another spec, storage or extra_info.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        robot_spec: RobotSpec,
        storage: str = "video",
        geometry: GeometrySpec | None = None,
        extra_info: Mapping[str, Any] | None = None,
        crf: int = 18,
        keyframe_interval: int = 2,
        pixel_format: str = "yuv420p",
    ) -> None:
        self.root = Path(root)
        self._closed = self._has_warned = False
        self.robot_spec, self.storage, self.geometry = robot_spec, storage, geometry
        self._encoder_settings = {
            "crf": crf,
            "g": keyframe_interval,
            "preset": PRESET,
            "pix_fmt": pixel_format,
        }
        check_recordable(robot_spec, storage=storage, pixel_format=pixel_format)
        wanted = layout.new_info(
            robot_spec,
            storage=storage,
            encoder=self._encoder_settings,
            extra_info=extra_info or {},
            further=declare_geometry(geometry, robot_spec),
        )
        wanted = json.loads(json.dumps(wanted, allow_nan=False))  # as it will be read back
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        self._lock = DirectoryLock(self.root)
        try:
            self._open(wanted)
        except BaseException:
            self._lock.release()
            raise
        self._start_episode()

    def _open(self, wanted: dict[str, Any]) -> None:
        """Begin a dataset, or check that the one that is there may be continued, and count its episodes."""
        info_path = self.root / layout.INFO_PATH
        if info_path.exists():
            info = read_info(self.root)
            if _holds_nothing(self.root, info):  # begun by a command that failed: its settings bind nobody
                origin.write_info(self.root, wanted, {})
            else:
                require_continuable(self.root, info, wanted)
        else:
            foreign = sorted(path.name for path in self.root.iterdir() if path.name not in (".lock", "meta"))
            if foreign:
                raise DatasetError(
                    f"{self.root} is no dataset but holds {foreign[:5]}; give an empty or new directory"
                )
            (self.root / "meta").mkdir(exist_ok=True)
            origin.write_info(self.root, wanted, {})
        (self.root / layout.STAGING).mkdir(exist_ok=True)
        _remove_temporary_files(self.root)
        self.episode_extras, self.num_frames = _recorded(self.root)
        self.num_episodes = len(self.episode_extras)

    @property
    def episode_length(self) -> int:
        """Number of frames added since the last saved or discarded episode."""
        return len(self._states)

    def add_frame(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        action: np.ndarray,
        *,
        views: Mapping[str, ViewGeometry] | None = None,
    ) -> None:
        """Add one control period: what was seen, and what was then commanded.

        Args:
            images: uint8 [h w 3] RGB for every camera of the spec, at its size.
            state: float [state], in the units of the spec.
            action: float [action], in the units of the spec.
            views: what was measured in each camera's view, where geometry is recorded.

        Raises:
            DatasetError: something is missing, misshapen, or not finite. Nothing was added; the frames
                of this episode so far are kept.
        """
        self._require_open()
        if self._finished is not None:
            raise DatasetError(
                f"saving episode {self.num_episodes} failed; save or discard it before adding frames"
            )
        for camera in self.robot_spec.cameras:
            check_image(camera.name, (camera.height, camera.width, 3), images)
        unknown = sorted(set(images) - set(self.robot_spec.camera_names))
        if unknown:
            raise DatasetError(
                f"images of unknown cameras {unknown}; the robot spec has "
                f"{list(self.robot_spec.camera_names)}"
            )
        where = f"frame {self.episode_length} of episode {self.num_episodes}"
        state = check_vector("state", state, self.robot_spec.state_names, where)
        action = check_vector("action", action, self.robot_spec.action_names, where)
        check_views(views, self.geometry, self.robot_spec)
        for name in self.robot_spec.camera_names:
            if self.storage == "video":
                self._encoders[name].add(images[name])
            else:
                self._pictures[name].append(_encode_png(images[name]))
            self._histograms[name] += image_histogram(images[name])
        for name, view in (views or {}).items():
            self._views[name].append(view)
        self._states.append(state)
        self._actions.append(action)

    def save_episode(self, task: str, extra: Mapping[str, Any] | None = None) -> None:
        """Finish the episode; when this returns, it is on disk.

        Args:
            task: the instruction, as the policy will read it.
            extra: values for additional columns of meta/episodes (seed, task_name, success); bool, int, float
                or str, the same names and types for every episode of the dataset.

        Raises:
            DatasetError: there are no frames, the instruction is empty, or `extra` does not fit. The
                episode is still open: correct the arguments and call again.
            DiskFault: the disk is full, for example. Nothing that was saved is lost and the episode is still
                in memory: free space and call again, or stop and resume later.
        """
        self._require_open()
        if not self._states:
            raise DatasetError(f"episode {self.num_episodes} has no frames; call add_frame first")
        if not task.strip():
            raise DatasetError(
                f"episode {self.num_episodes} has an empty instruction; give the task in words"
            )
        if not is_utf8(task):
            raise DatasetError(
                f"the instruction {task!r} of episode {self.num_episodes} is no valid UTF-8 text"
            )
        episode = StagedEpisode(
            task=task,
            extra=self._check_extra(extra or {}),
            states=np.stack(self._states),
            actions=np.stack(self._actions),
            media=self._finished_media(),
            histograms=self._histograms,
            geometry={} if self.geometry is None else geometry_columns(stacked_views(self._views)),
        )
        try:
            write_staged(staged_path(self.root, self.num_episodes), episode)
        except OSError as error:
            advice = "the disk is full; free space" if error.errno == errno.ENOSPC else "cure the cause"
            reason = os.strerror(error.errno or 0)
            raise DiskFault(
                error.errno,
                f"episode {self.num_episodes} of {self.root} could not be saved ({reason}): {advice} "
                f"and call save_episode again, or start the recording again; the {self.num_episodes} "
                "episodes before it are safe",
            ) from error
        self.episode_extras.append(episode.extra)
        self.num_episodes += 1
        self.num_frames += len(episode.states)
        self._start_episode()
        self._warn_of_ranges(episode)

    def _warn_of_ranges(self, episode: StagedEpisode) -> None:
        """Name, once for a writer, the channels whose values do not fit the robot spec."""
        if self._has_warned:
            return
        lines = lines_about_ranges(self.robot_spec, episode.states, episode.actions)
        if lines:
            self._has_warned = True
            _LOG.warning(
                "%s: values of episode %d do not fit the robot spec: %s. Record in the units of the spec, or "
                "correct it in a file (robot_file=...); training refuses actions outside their range",
                self.root,
                self.num_episodes - 1,
                "; ".join(lines),
            )

    def discard_episode(self) -> None:
        """Forget the frames since the last saved episode."""
        self._require_open()
        for encoder in self._encoders.values():
            encoder.discard()
        self._start_episode()

    def close(self) -> None:
        """Lay all saved episodes out as LeRobotDataset v3; frames without `save_episode` are forgotten.

        Raises:
            DiskFault: the disk is full, for example; all saved episodes are kept. Free space, then call
                `finish_recording`.
        """
        if self._closed:
            return
        self.discard_episode()
        self._closed = True
        try:
            _finish(self.root)
            self.episode_extras, self.num_frames = _recorded(self.root)  # less what was set aside
            self.num_episodes = len(self.episode_extras)
        finally:
            self._lock.release()

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError as later:
            if error is None:
                raise
            _LOG.warning("the saved episodes are kept, but not laid out yet: %s", later)  # `error` says why

    def _require_open(self) -> None:
        if self._closed:
            raise DatasetError(f"the writer of {self.root} is closed; make a new one to add episodes")

    def _start_episode(self) -> None:
        self._states: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._views: dict[str, list[ViewGeometry]] = {name: [] for name in self.robot_spec.camera_names}
        self._pictures: dict[str, list[bytes]] = {name: [] for name in self.robot_spec.camera_names}
        self._histograms = {name: np.zeros((3, 256), dtype=np.int64) for name in self.robot_spec.camera_names}
        self._finished: dict[str, list[bytes]] | None = None
        self._encoders: dict[str, VideoEncoder] = {}
        if self.storage == "video":
            rate = layout.frame_rate(self.robot_spec.control_hz)
            for camera in self.robot_spec.cameras:
                self._encoders[camera.name] = VideoEncoder(
                    height=camera.height,
                    width=camera.width,
                    rate=rate,
                    crf=self._encoder_settings["crf"],
                    keyframe_interval=self._encoder_settings["g"],
                    preset=PRESET,
                    pixel_format=self._encoder_settings["pix_fmt"],
                )

    def _finished_media(self) -> dict[str, list[bytes]]:
        """Return mp4 or PNG bytes by camera; kept, so that a failed save can be repeated."""
        if self._finished is None:
            if self.storage == "video":
                self._finished = {name: [encoder.finish()] for name, encoder in self._encoders.items()}
            else:
                self._finished = self._pictures
        return self._finished

    def _check_extra(self, extra: Mapping[str, Any]) -> Extra:
        plain = {
            key: value.item() if isinstance(value, np.generic) else value for key, value in extra.items()
        }
        for key, value in plain.items():
            check_extra(key, value)
        if self.episode_extras:
            before = {key: type(value).__name__ for key, value in self.episode_extras[0].items()}
            now = {key: type(value).__name__ for key, value in plain.items()}
            if before != now:
                raise DatasetError(
                    f"the extra columns {now} differ from those of earlier episodes, {before}; all must agree"
                )
        return plain


def finish_recording(root: Path | str) -> None:
    """Lay out the saved episodes of a recording that was interrupted; harmless on a finished dataset.

    Raises:
        DirectoryInUse: the recording still runs.
    """
    with DirectoryLock(Path(root)):
        _finish(Path(root))


def _finish(root: Path) -> None:
    with naming(root, anything=True):
        _remove_temporary_files(root)
        consolidate(root)
    staging = root / layout.STAGING
    if staging.is_dir() and not any(staging.iterdir()):  # else episodes were set aside there
        staging.rmdir()


def _remove_temporary_files(root: Path) -> None:
    """Delete what a killed process was about to rename; the caller holds the lock."""
    for folder in (root / "meta", root / layout.STAGING):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()


def _holds_nothing(root: Path, info: Mapping[str, Any]) -> bool:
    """Tell whether a dataset that this program began has no episode, not even one that was set aside."""
    is_ours = origin.read_origin(root, info) is not None
    return is_ours and not info["total_episodes"] and not any((root / layout.STAGING).rglob("episode-*"))


def _recorded(root: Path) -> tuple[list[Extra], int]:
    """Return the extra columns of all saved episodes and the number of their frames."""
    info = read_info(root)
    extras: list[Extra] = []
    if info["total_episodes"]:
        episodes = tables.read_episodes(root, info["total_episodes"])
        extras = episodes.select(tables.extra_columns(episodes)).to_pylist() or [{}] * len(episodes)
    num_frames = info["total_frames"]
    waiting_indices(root, info["total_episodes"])
    while (path := staged_path(root, index := len(extras))).exists():
        try:
            extra, length = read_header(path)
        except DatasetError as error:
            set_aside(root, index, str(error))
            continue
        extras.append(extra)
        num_frames += length
    return extras, num_frames


def _encode_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=PNG_COMPRESS_LEVEL)
    return buffer.getvalue()
