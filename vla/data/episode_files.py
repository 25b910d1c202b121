"""Writes the data, video and episode files of a LeRobotDataset v3, rolling over to new ones as LeRobot does.

Data files roll at 100 MB, video files at 200 MB, always between episodes; a row group holds one episode.
Encoding is over at this point; video packets are copied.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from vla.data import layout
from vla.data.geometry import geometry_fields, to_arrow
from vla.data.layout import (
    ACTION_KEY,
    FILES_PER_CHUNK,
    INDEX_KEYS,
    STATE_KEY,
    DatasetError,
    camera_key,
)
from vla.data.staging import EXTRA_TYPES, StagedEpisode
from vla.data.statistics import image_stats_json, numeric_stats_json
from vla.data.video import VideoJoiner, count_frames
from vla.spec import RobotSpec

EPISODES_PER_ROW_GROUP = 10  # LeRobot's metadata buffer


class EpisodeFiles:
    """Appends episodes to new data, video and episode files under `building`.

    Args:
        building: directory that gets the tree of a dataset.
        info: info.json of the dataset so far.
        tasks: its instructions so far, by task_index.
        first_numbers: the first free file number for data, meta/episodes and videos/<camera key>.
    """

    def __init__(
        self, building: Path, *, info: dict[str, Any], tasks: list[str], first_numbers: dict[str, int]
    ) -> None:
        self.spec = RobotSpec.from_json(info["vla"]["robot_spec"])
        self.storage = info["vla"]["storage"]
        self.num_episodes, self.num_frames = info["total_episodes"], info["total_frames"]
        self.tasks = list(tasks)
        self.numbers = {prefix: number - 1 for prefix, number in first_numbers.items()}  # of the newest files
        self.numbers["meta/episodes"] += 1
        self.histograms: dict[str, Int64[np.ndarray, "3 256"]] = {}  # pixel counts by camera key
        self._building = building.absolute()  # "a:b" alone is a URI to pyarrow and FFmpeg
        self._rate = layout.frame_rate(self.spec.control_hz)
        self._geometry_fields = geometry_fields(info)
        self._schema = layout.data_schema(self.spec, storage=self.storage, further=self._geometry_fields)
        self._data_writer: pq.ParquetWriter | None = None
        self._data_path = building
        self._joiners: dict[str, VideoJoiner] = {}
        self._rows: list[dict[str, Any]] = []
        self._extra_names: list[str] = []

    def append(self, episode: StagedEpisode) -> None:
        """Lay out the next episode.

        Raises:
            DatasetError: the episode cannot be laid out; nothing was written.
            OSError: the disk is full, for example.
        """
        table = self._checked_table(episode)
        if episode.task not in self.tasks:
            self.tasks.append(episode.task)
        number = self._write_data(table)
        length = len(episode.states)
        row: dict[str, Any] = {
            "episode_index": self.num_episodes,
            "tasks": [episode.task],
            "length": length,
            "data/chunk_index": number // FILES_PER_CHUNK,
            "data/file_index": number % FILES_PER_CHUNK,
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + length,
        }
        if self.storage == "video":
            for camera, (mp4,) in episode.media.items():
                row |= self._write_video(camera, mp4)
        self._extra_names = list(episode.extra)
        row |= episode.extra | self._stats_columns(table, episode)
        row["meta/episodes/chunk_index"] = self.numbers["meta/episodes"] // FILES_PER_CHUNK
        row["meta/episodes/file_index"] = self.numbers["meta/episodes"] % FILES_PER_CHUNK
        self._rows.append(row)
        self.num_episodes += 1
        self.num_frames += length

    def finish(self) -> None:
        """Complete every open file and write the episode rows."""
        if self._data_writer is not None:
            self._data_writer.close()
        for joiner in self._joiners.values():
            joiner.finish()
        table = pa.Table.from_pylist(self._rows, schema=_episodes_schema(self._rows[0]))
        path = layout.episodes_file(self._building, self.numbers["meta/episodes"])
        path.parent.mkdir(parents=True)
        pq.write_table(table, path, row_group_size=EPISODES_PER_ROW_GROUP, write_page_checksum=True)

    def _checked_table(self, episode: StagedEpisode) -> pa.Table:
        """Return the rows of data/, after checking whatever could fail once files are being written."""
        length = len(episode.states)
        if not length or len(episode.actions) != length:
            raise DatasetError(f"it has {length} states and {len(episode.actions)} actions")
        for camera, media in episode.media.items():
            count = len(media)
            if self.storage == "video":
                count = count_frames(media[0]) if count == 1 else 0
            if count != length:
                raise DatasetError(f"camera {camera!r} has {count} frames and the episode {length} states")
        recorded, wanted = sorted(episode.geometry), sorted(field.name for field in self._geometry_fields)
        if recorded != wanted:
            raise DatasetError(f"it has the geometry {recorded}, the dataset {wanted}")
        if self._rows:
            before = {key: type(self._rows[0].get(key)).__name__ for key in self._extra_names}
            now = {key: type(value).__name__ for key, value in episode.extra.items()}
            if before != now:
                raise DatasetError(f"its extra columns {now} differ from those of earlier episodes, {before}")
        try:
            for value in episode.extra.values():
                pa.array([value], EXTRA_TYPES[type(value)])
            pa.array([episode.task], pa.string())
            return self._data_table(episode)
        except (pa.ArrowException, ValueError, TypeError, KeyError, OverflowError) as error:
            raise DatasetError(f"it does not fit the format: {error}") from error

    def _data_table(self, episode: StagedEpisode) -> pa.Table:
        length = len(episode.states)
        task_index = self.tasks.index(episode.task) if episode.task in self.tasks else len(self.tasks)
        frame_index = np.arange(length, dtype=np.int64)
        columns: dict[str, pa.Array] = {
            STATE_KEY: _float_column(episode.states),
            ACTION_KEY: _float_column(episode.actions),
            "timestamp": pa.array((frame_index / float(self._rate)).astype(np.float32)),
            "frame_index": pa.array(frame_index),
            "episode_index": pa.array(np.full(length, self.num_episodes)),
            "index": pa.array(frame_index + self.num_frames),
            "task_index": pa.array(np.full(length, task_index)),
        }
        if self.storage == "image":
            names = pa.array([f"frame-{i:06d}.png" for i in range(length)])
            for camera, pictures in episode.media.items():
                columns[camera_key(camera)] = pa.StructArray.from_arrays(
                    [pa.array(pictures, pa.binary()), names], names=["bytes", "path"]
                )
        columns |= {key: to_arrow(values) for key, values in episode.geometry.items()}
        return pa.table([columns[name] for name in self._schema.names], schema=self._schema)

    def _write_data(self, table: pa.Table) -> int:
        writer = self._data_writer
        if writer and self._data_path.stat().st_size + table.nbytes >= layout.DATA_FILE_BYTES:
            writer.close()
            self._data_writer = None
        if self._data_writer is None:
            self.numbers["data"] += 1
            self._data_path = layout.data_file(self._building, self.numbers["data"])
            self._data_path.parent.mkdir(parents=True, exist_ok=True)
            self._data_writer = pq.ParquetWriter(
                self._data_path,
                self._schema,
                compression="snappy",
                use_dictionary=False,
                write_page_checksum=True,
            )
        self._data_writer.write_table(table, row_group_size=table.num_rows)
        return self.numbers["data"]

    def _write_video(self, camera: str, mp4: bytes) -> dict[str, Any]:
        prefix, joiner = f"videos/{camera_key(camera)}", self._joiners.get(camera)
        if joiner and (joiner.num_bytes + len(mp4) >= layout.VIDEO_FILE_BYTES or not joiner.accepts(mp4)):
            joiner.finish()
            joiner = None
        if joiner is None:
            self.numbers[prefix] += 1
            path = layout.video_file(self._building, camera, self.numbers[prefix])
            path.parent.mkdir(parents=True, exist_ok=True)
            joiner = self._joiners[camera] = VideoJoiner(path, rate=self._rate)
        start, end = joiner.append(mp4)
        number = self.numbers[prefix]
        return {
            f"{prefix}/chunk_index": number // FILES_PER_CHUNK,
            f"{prefix}/file_index": number % FILES_PER_CHUNK,
            f"{prefix}/from_timestamp": start,
            f"{prefix}/to_timestamp": end,
        }

    def _stats_columns(self, table: pa.Table, episode: StagedEpisode) -> dict[str, Any]:
        numeric = {STATE_KEY: episode.states, ACTION_KEY: episode.actions}
        numeric |= {key: table[key].to_numpy()[:, None] for key in INDEX_KEYS}
        columns = {}
        for key, values in numeric.items():
            columns |= {f"stats/{key}/{name}": value for name, value in numeric_stats_json(values).items()}
        for camera, histogram in episode.histograms.items():
            key = camera_key(camera)
            stats = image_stats_json(histogram, len(episode.states))
            columns |= {f"stats/{key}/{name}": value for name, value in stats.items()}
            self.histograms[key] = self.histograms.get(key, 0) + histogram
            columns[layout.histogram_column(key)] = histogram.ravel().tolist()
        return columns


def _float_column(values: np.ndarray) -> pa.Array:
    """Turn [T, D] into a column of fixed-size lists, or of plain numbers when D is 1."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).ravel())
    return flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _episodes_schema(row: dict[str, Any]) -> pa.Schema:
    """Return the column types of meta/episodes; lists of numbers are double but for counts."""
    fields = []
    for name, value in row.items():
        if name == "tasks":
            kind = pa.list_(pa.string())
        elif name.endswith(("/count", "/histogram")):
            kind = pa.list_(pa.int64())
        elif name.startswith("stats/"):
            nested = isinstance(value[0], list)
            kind = pa.list_(pa.list_(pa.list_(pa.float64()))) if nested else pa.list_(pa.float64())
        else:
            kind = EXTRA_TYPES[type(value)]
        fields.append(pa.field(name, kind))
    return pa.schema(fields)
