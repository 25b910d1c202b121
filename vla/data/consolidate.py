"""Lays recorded episodes out as LeRobotDataset v3, behind those that are already there.

Finished files are never rewritten: new episodes go to new data, video and episode files, which are built in
`.recording/layout`, flushed and renamed one by one. `meta/info.json` comes last and is the commit: a run that dies
before it leaves files that no one counts, and the next run removes them and starts again from the episodes that
are still staged. Encoding is over at this point; video packets are copied.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from policies.spec import RobotSpec
from vla.data import layout
from vla.data.layout import ACTION_KEY, FILES_PER_CHUNK, INDEX_KEYS, STATE_KEY, camera_key
from vla.data.staging import EXTRA_TYPES, StagedEpisode, read_staged, staged_indices, staged_path
from vla.data.statistics import image_stats_json, numeric_stats_json
from vla.data.video import VideoJoiner
from vla.files import atomic_write_bytes, atomic_write_json

EPISODES_PER_ROW_GROUP = 10  # LeRobot's metadata buffer


def consolidate(root: Path) -> dict[str, Any]:
    """Move every staged episode into the dataset; the caller holds the lock. Returns the new info.json.

    Raises:
        OSError: the disk is full, for example. The staged episodes are still there: free space, call again.
        DatasetError: a staged episode is damaged.
    """
    info = json.loads((root / layout.INFO_PATH).read_text())
    for index in staged_indices(root):
        if index < info["total_episodes"]:  # laid out already; we died before removing it
            staged_path(root, index).unlink()
    building = root / layout.STAGING / "layout"
    shutil.rmtree(building, ignore_errors=True)
    if not staged_indices(root):
        return info
    committed = _CommittedFiles(root)
    committed.remove_stray_files()
    try:
        builder = _LayoutBuilder(root, building, info, committed)
        for index in staged_indices(root):
            builder.append(index, read_staged(staged_path(root, index), builder.spec))
        builder.finish()
        _publish_tree(building, root)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    stats = _dataset_stats(root, builder, committed.episodes)
    atomic_write_json(root / layout.STATS_PATH, stats)
    sink = pa.BufferOutputStream()
    pq.write_table(layout.tasks_table(builder.tasks), sink)
    atomic_write_bytes(root / layout.TASKS_PATH, sink.getvalue().to_pybytes())
    info |= {
        "total_episodes": builder.num_episodes,
        "total_frames": builder.num_frames,
        "total_tasks": len(builder.tasks),
        "splits": {"train": f"0:{builder.num_episodes}"},
    }
    atomic_write_json(root / layout.INFO_PATH, info)
    for index in staged_indices(root):
        staged_path(root, index).unlink()
    return info


class _CommittedFiles:
    """What info.json vouches for: episode rows, and the number that the next file of each kind gets."""

    def __init__(self, root: Path) -> None:
        self.root = root
        info = json.loads((root / layout.INFO_PATH).read_text())
        files = sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        self.episodes = [row for row in rows if row["episode_index"] < info["total_episodes"]]

    def next_number(self, prefix: str) -> int:
        """Return the first free file number; `prefix` is data, meta/episodes or videos/<camera key>."""
        numbers = [
            row[f"{prefix}/chunk_index"] * FILES_PER_CHUNK + row[f"{prefix}/file_index"]
            for row in self.episodes
        ]
        return max(numbers, default=-1) + 1

    def remove_stray_files(self) -> None:
        """Delete files that an interrupted layout left behind; info.json does not count them."""
        info = json.loads((self.root / layout.INFO_PATH).read_text())
        folders = ["data", "meta/episodes"]
        folders += [
            f"videos/{key}" for key, feature in info["features"].items() if feature["dtype"] == "video"
        ]
        for folder in folders:
            first_free = self.next_number(folder)
            for path in (self.root / folder).glob("chunk-*/file-*"):
                chunk, number = path.parent.name.removeprefix("chunk-"), path.stem.removeprefix("file-")
                if int(chunk) * FILES_PER_CHUNK + int(number) >= first_free:
                    path.unlink()


class _LayoutBuilder:
    """Writes data, video and episode files of new episodes under `building`."""

    def __init__(self, root: Path, building: Path, info: dict[str, Any], committed: _CommittedFiles) -> None:
        self.spec = RobotSpec.from_json(info["vla"]["robot_spec"])
        self.storage = info["vla"]["storage"]
        self.num_episodes, self.num_frames = info["total_episodes"], info["total_frames"]
        self.tasks = _read_tasks(root)[: info["total_tasks"]]
        self._building = building
        self._rate = layout.frame_rate(self.spec.control_hz)
        self._schema = layout.data_schema(self.spec, storage=self.storage)
        self._data_number = committed.next_number("data") - 1
        self._video_numbers = {
            name: committed.next_number(f"videos/{camera_key(name)}") - 1
            for name in (self.spec.camera_names if self.storage == "video" else ())
        }
        self._episodes_number = committed.next_number("meta/episodes")
        self._data_writer: pq.ParquetWriter | None = None
        self._data_path = building
        self._joiners: dict[str, VideoJoiner] = {}
        self.rows: list[dict[str, Any]] = []

    def append(self, index: int, episode: StagedEpisode) -> None:
        """Lay out one episode, whose index must be the next."""
        if index != self.num_episodes:
            raise layout.DatasetError(
                f"recorded episode {self.num_episodes} is missing, episode {index} is there; move the files with "
                f"numbers from {index} on out of {layout.STAGING} to go on without them"
            )
        if episode.task not in self.tasks:
            self.tasks.append(episode.task)
        table = self._data_table(episode)
        number = self._write_data(table)
        length = len(episode.states)
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [episode.task],
            "length": length,
            "data/chunk_index": number // FILES_PER_CHUNK,
            "data/file_index": number % FILES_PER_CHUNK,
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + length,
        }
        for camera in self._video_numbers:
            row |= self._write_video(camera, episode.media[camera][0])
        row |= episode.extra | self._stats_columns(table, episode)
        row["meta/episodes/chunk_index"] = self._episodes_number // FILES_PER_CHUNK
        row["meta/episodes/file_index"] = self._episodes_number % FILES_PER_CHUNK
        self.rows.append(row)
        self.num_episodes += 1
        self.num_frames += length

    def finish(self) -> None:
        """Complete every open file and write the episode rows."""
        if self._data_writer is not None:
            self._data_writer.close()
        for joiner in self._joiners.values():
            joiner.finish()
        table = pa.Table.from_pylist(self.rows, schema=_episodes_schema(self.rows[0]))
        path = layout.episodes_file(self._building, self._episodes_number)
        path.parent.mkdir(parents=True)
        pq.write_table(table, path, row_group_size=EPISODES_PER_ROW_GROUP)

    def _data_table(self, episode: StagedEpisode) -> pa.Table:
        length = len(episode.states)
        frame_index = np.arange(length, dtype=np.int64)
        columns: dict[str, pa.Array] = {
            STATE_KEY: _float_column(episode.states),
            ACTION_KEY: _float_column(episode.actions),
            "timestamp": pa.array((frame_index / float(self._rate)).astype(np.float32)),
            "frame_index": pa.array(frame_index),
            "episode_index": pa.array(np.full(length, self.num_episodes)),
            "index": pa.array(frame_index + self.num_frames),
            "task_index": pa.array(np.full(length, self.tasks.index(episode.task))),
        }
        if self.storage == "image":
            names = pa.array([f"frame-{i:06d}.png" for i in range(length)])
            for camera, pictures in episode.media.items():
                columns[camera_key(camera)] = pa.StructArray.from_arrays(
                    [pa.array(pictures, pa.binary()), names], names=["bytes", "path"]
                )
        return pa.table([columns[name] for name in self._schema.names], schema=self._schema)

    def _write_data(self, table: pa.Table) -> int:
        if self._data_writer is not None:
            if self._data_path.stat().st_size + table.nbytes >= layout.DATA_FILE_BYTES:
                self._data_writer.close()
                self._data_writer = None
        if self._data_writer is None:
            self._data_number += 1
            self._data_path = layout.data_file(self._building, self._data_number)
            self._data_path.parent.mkdir(parents=True, exist_ok=True)
            self._data_writer = pq.ParquetWriter(
                self._data_path, self._schema, compression="snappy", use_dictionary=list(INDEX_KEYS)
            )
        self._data_writer.write_table(table, row_group_size=table.num_rows)
        return self._data_number

    def _write_video(self, camera: str, mp4: bytes) -> dict[str, Any]:
        joiner = self._joiners.get(camera)
        if joiner is not None:
            if joiner.num_bytes + len(mp4) >= layout.VIDEO_FILE_BYTES or not joiner.accepts(mp4):
                joiner.finish()
                joiner = None
        if joiner is None:
            self._video_numbers[camera] += 1
            path = layout.video_file(self._building, camera, self._video_numbers[camera])
            path.parent.mkdir(parents=True, exist_ok=True)
            joiner = self._joiners[camera] = VideoJoiner(path, rate=self._rate)
        start, end = joiner.append(mp4)
        prefix, number = f"videos/{camera_key(camera)}", self._video_numbers[camera]
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
            columns[f"stats/{key}/histogram"] = histogram.ravel().tolist()
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


def _read_tasks(root: Path) -> list[str]:
    path = root / layout.TASKS_PATH
    if not path.exists():
        return []
    table = pq.read_table(path).sort_by("task_index")
    return table["task"].to_pylist()


def _dataset_stats(
    root: Path, builder: _LayoutBuilder, committed_episodes: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return stats.json over all episodes, old and new, exactly: from the numbers and the pixel counts."""
    episodes = committed_episodes + builder.rows
    numbers = sorted({row["data/chunk_index"] * FILES_PER_CHUNK + row["data/file_index"] for row in episodes})
    keys = [STATE_KEY, ACTION_KEY, *INDEX_KEYS]
    table = pa.concat_tables(pq.read_table(layout.data_file(root, n), columns=keys) for n in numbers)
    stats = {}
    for key in keys:
        column = table[key].combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        stats[key] = numeric_stats_json(flat.to_numpy().reshape(len(table), -1))
    for camera in builder.spec.camera_names:
        key = camera_key(camera)
        histogram = np.sum([row[f"stats/{key}/histogram"] for row in episodes], axis=0).reshape(3, 256)
        stats[key] = image_stats_json(histogram, len(table))
    return stats


def _publish_tree(building: Path, root: Path) -> None:
    """Flush every file under `building` and rename it to the same place under `root`."""
    for path in sorted(path for path in building.rglob("*") if path.is_file()):
        target = root / path.relative_to(building)
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(target)
        _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
