"""Lays recorded episodes out as LeRobotDataset v3, behind those that are already there.

Finished files are never rewritten: new episodes go to new data, video and episode files, which are built in
`.recording/layout`, flushed and renamed one by one. `meta/info.json` comes last and is the commit: a run that
dies before it leaves files that no one counts, and the next run removes them and starts again from the
episodes that are still staged.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from vla.data import layout, tables
from vla.data.episode_files import EpisodeFiles
from vla.data.layout import ACTION_KEY, FILES_PER_CHUNK, INDEX_KEYS, STATE_KEY, read_info
from vla.data.staging import read_staged, staged_indices, staged_path, waiting_indices
from vla.data.statistics import image_stats_json, numeric_stats_json
from vla.files import atomic_write_bytes, atomic_write_json, publish_file


def consolidate(root: Path) -> None:
    """Move every staged episode into the dataset; the caller holds the lock.

    Raises:
        OSError: the disk is full, for example. The staged episodes are still there: free space, call again.
        DatasetError: a staged episode or a file of the dataset is damaged.
    """
    info = read_info(root)
    for index in staged_indices(root):
        if index < info["total_episodes"]:  # laid out already; we died before removing it
            staged_path(root, index).unlink()
    waiting = waiting_indices(root, info["total_episodes"])
    if not waiting:
        return
    building = root / layout.STAGING / "layout"
    shutil.rmtree(building, ignore_errors=True)
    committed = _Committed(root, info)
    committed.remove_stray_files()
    try:
        files = EpisodeFiles(
            building,
            info=info,
            tasks=committed.tasks(),
            first_numbers={prefix: committed.next_number(prefix) for prefix in committed.prefixes},
        )
        for index in waiting:
            files.append(read_staged(staged_path(root, index), files.spec))
        files.finish()
        _publish_tree(building, root)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    histograms = committed.histograms()
    for key, counts in files.histograms.items():
        histograms[key] = histograms.get(key, 0) + counts
    data_numbers = range(files.numbers["data"] + 1)
    atomic_write_json(root / layout.STATS_PATH, _dataset_stats(root, data_numbers, histograms))
    sink = pa.BufferOutputStream()
    pq.write_table(layout.tasks_table(files.tasks), sink)
    atomic_write_bytes(root / layout.TASKS_PATH, sink.getvalue().to_pybytes())
    info |= {
        "total_episodes": files.num_episodes,
        "total_frames": files.num_frames,
        "total_tasks": len(files.tasks),
        "splits": {"train": f"0:{files.num_episodes}"},
    }
    atomic_write_json(root / layout.INFO_PATH, info)
    for index in waiting:
        staged_path(root, index).unlink()


class _Committed:
    """What info.json vouches for: the files of its episodes, their tasks and pixel counts."""

    def __init__(self, root: Path, info: dict[str, Any]) -> None:
        self._root, self._info = root, info
        videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
        self.prefixes = ["data", "meta/episodes", *(f"videos/{key}" for key in videos)]
        self._episodes = (
            tables.read_episodes(root, info["total_episodes"]) if info["total_episodes"] else None
        )

    def next_number(self, prefix: str) -> int:
        """Return the first free file number; `prefix` is data, meta/episodes or videos/<camera key>."""
        if self._episodes is None:
            return 0
        chunks, files = (
            self._episodes[f"{prefix}/{name}"].to_numpy() for name in ("chunk_index", "file_index")
        )
        return int((chunks * FILES_PER_CHUNK + files).max()) + 1

    def remove_stray_files(self) -> None:
        """Delete files that an interrupted layout left behind; info.json does not count them."""
        for prefix in self.prefixes:
            for path in (self._root / prefix).glob("chunk-*/file-*"):
                match = re.fullmatch(
                    r"chunk-(\d+)/file-(\d+)\.(parquet|mp4)", f"{path.parent.name}/{path.name}"
                )
                if match and int(match[1]) * FILES_PER_CHUNK + int(match[2]) >= self.next_number(prefix):
                    path.unlink()

    def tasks(self) -> list[str]:
        """Return the instructions of the dataset so far, by task_index."""
        if self._episodes is None:
            return []
        return tables.read_instructions(self._root)[: self._info["total_tasks"]]

    def histograms(self) -> dict[str, Int64[np.ndarray, "3 256"]]:
        """Return the pixel counts of all episodes, by camera key."""
        counts: dict[str, np.ndarray] = {}
        if self._episodes is None:
            return counts
        keys = [key for key, feature in self._info["features"].items() if feature["dtype"] in layout.STORAGES]
        columns = {f"stats/{key}/histogram": key for key in keys}
        for number in range(self.next_number("meta/episodes")):
            table = tables.read_table(layout.episodes_file(self._root, number), list(columns))
            for column, key in columns.items():
                flat = table[column].combine_chunks().flatten().to_numpy()
                counts[key] = counts.get(key, 0) + flat.reshape(-1, 3, 256).sum(axis=0)
        return counts


def _dataset_stats(
    root: Path, data_numbers: range, histograms: dict[str, Int64[np.ndarray, "3 256"]]
) -> dict[str, Any]:
    """Return stats.json over all episodes, exactly: from the numbers and the pixel counts."""
    keys = [STATE_KEY, ACTION_KEY, *INDEX_KEYS]
    table = pa.concat_tables(
        tables.read_table(layout.data_file(root, number), keys) for number in data_numbers
    ).combine_chunks()
    stats = {}
    for key in keys:
        column = table[key].combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        stats[key] = numeric_stats_json(flat.to_numpy().reshape(len(table), -1))
    return stats | {key: image_stats_json(counts, len(table)) for key, counts in histograms.items()}


def _publish_tree(building: Path, root: Path) -> None:
    """Flush every file under `building` and rename it to the same place under `root`."""
    for path in sorted(path for path in building.rglob("*") if path.is_file()):
        target = root / path.relative_to(building)
        target.parent.mkdir(parents=True, exist_ok=True)
        publish_file(path, target)
