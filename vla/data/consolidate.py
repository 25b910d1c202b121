"""Lays recorded episodes out as LeRobotDataset v3, behind those that are already there.

Finished files are never rewritten: new episodes go to new data, video and episode files, which are built in
`.recording/layout`, flushed and renamed one by one. stats.json, tasks.parquet and meta/vla.json follow;
`meta/info.json` comes last and is the commit: a run that dies before it leaves files that no one counts, and
the next run removes them and starts again from the episodes that are still staged. An episode that cannot be
laid out is set aside (see `staging`), and the others are laid out without it.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64
from tqdm import tqdm

from vla.data import layout, origin, tables
from vla.data.episode_files import EpisodeFiles
from vla.data.layout import (
    ACTION_KEY,
    FILES_PER_CHUNK,
    INDEX_KEYS,
    STATE_KEY,
    DatasetError,
    read_info,
)
from vla.data.staging import read_staged, set_aside, staged_indices, staged_path, waiting_indices
from vla.data.statistics import image_stats_json, numeric_stats_json
from vla.files import atomic_write_bytes, atomic_write_json, publish_file


def consolidate(root: Path) -> None:
    """Move every staged episode into the dataset; the caller holds the lock.

    Raises:
        OSError: the disk is full, for example. The staged episodes are still there: free space, call again.
        DatasetError: a file of the dataset is damaged, or a staged episode is missing.
    """
    info = read_info(root)
    info["vla"] = origin.read_origin(root, info)  # LeRobot leaves it out when it edits a dataset in place
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
    known = _known_files(root)
    try:
        files = EpisodeFiles(
            building,
            info=info,
            tasks=committed.tasks(),
            first_numbers={prefix: committed.next_number(prefix) for prefix in committed.prefixes},
        )
        num_staged = _lay_out_waiting(root, files, num_waiting=len(waiting))
        if not num_staged:
            return
        files.finish()
        written = origin.describe_files(building, sorted(_files_under(building)))
        _publish_tree(building, root)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    histograms = committed.histograms()
    for key, counts in files.histograms.items():
        histograms[key] = histograms.get(key, 0) + counts
    data_numbers = range(files.numbers["data"] + 1)
    atomic_write_json(root / layout.STATS_PATH, _dataset_stats(root, data_numbers, histograms))
    sink = pa.BufferOutputStream()
    pq.write_table(layout.tasks_table(files.tasks), sink, write_page_checksum=True)
    atomic_write_bytes(root / layout.TASKS_PATH, sink.getvalue().to_pybytes())
    info |= {
        "total_episodes": files.num_episodes,
        "total_frames": files.num_frames,
        "total_tasks": len(files.tasks),
        "splits": {"train": f"0:{files.num_episodes}"},
    }
    written |= origin.describe_files(root, [layout.STATS_PATH, layout.TASKS_PATH])
    origin.write_info(root, info, known | written)
    for index in range(info["total_episodes"] - num_staged, info["total_episodes"]):
        staged_path(root, index).unlink()


def _lay_out_waiting(root: Path, files: EpisodeFiles, *, num_waiting: int) -> int:
    """Lay out the staged episodes from `files.num_episodes` on; set those aside that cannot be."""
    first = files.num_episodes
    with tqdm(total=num_waiting, desc="laying out", unit="episode", delay=2.0) as bar:  # not for a few
        while (path := staged_path(root, files.num_episodes)).exists():
            try:
                files.append(read_staged(path, files.spec))
            except DatasetError as error:
                set_aside(root, files.num_episodes, str(error))
            bar.update()
    return files.num_episodes - first


def _known_files(root: Path) -> origin.FileTable:
    """Return the entries of the files that are there, as we wrote them; read for an older recording."""
    names, known = origin.committed_files(root), origin.read_files(root)
    if set(known) <= {layout.INFO_PATH}:
        return origin.describe_files(root, names)
    return {name: known[name] for name in names if name in known}


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
        for number in range(self.next_number("meta/episodes")):
            path = layout.episodes_file(self._root, number)
            columns = tables.histogram_columns(path, keys)
            table = tables.read_table(path, list(columns.values()))
            for key, column in columns.items():
                flat = table[column].combine_chunks().flatten().to_numpy()
                counts[key] = counts.get(key, 0) + flat.reshape(-1, 3, 256).sum(axis=0)
        return counts


def _dataset_stats(
    root: Path, data_numbers: range, histograms: dict[str, Int64[np.ndarray, "3 256"]]
) -> dict[str, Any]:
    """Return stats.json over all episodes, exactly: from the numbers and the pixel counts."""
    keys = [STATE_KEY, ACTION_KEY, *INDEX_KEYS]
    parts: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    for path in (layout.data_file(root, number) for number in data_numbers):
        table = tables.read_table(path, keys)
        for key in keys:
            parts[key].append(tables.number_matrix(path, table, key))
    joined = {key: np.concatenate(matrices) for key, matrices in parts.items()}
    num_frames = len(joined[STATE_KEY])
    return {key: numeric_stats_json(values) for key, values in joined.items()} | {
        key: image_stats_json(counts, num_frames) for key, counts in histograms.items()
    }


def _publish_tree(building: Path, root: Path) -> None:
    """Flush every file under `building` and rename it to the same place under `root`."""
    for name in sorted(_files_under(building)):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        publish_file(building / name, target)


def _files_under(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
