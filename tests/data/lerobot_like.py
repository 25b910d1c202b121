"""Writes datasets as LeRobot 0.4 and 0.6 lay them out, with pyarrow and PyAV alone, to test the reader on.

Compared once with what LeRobot 0.4.4 itself writes: same columns and types. Options cover its variants.
"""

import contextlib
import io
import json
import os
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from data_fixtures import make_spec, picture
from PIL import Image

KEYS = ("observation.images.exterior", "observation.images.wrist")
FPS = 20


@dataclass
class Variant:
    """What differs between versions, converters and options."""

    storage: str = "video"
    codec: str = "libx264"
    lengths: list[int] = field(default_factory=lambda: [6, 9, 4, 7])
    episodes_per_file: int = 2
    task_column: str = "task"  # 0.4 leaves the pandas index unnamed: __index_level_0__
    list_type: str = "fixed"  # fixed, list, or double
    optional: bool = True  # stats.json, splits, robot_type, feature info, meta/episodes/*, frame_index


def write_lerobot(root: Path, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """Write the dataset; return its states and actions."""
    spec, total = make_spec(), sum(variant.lengths)
    rng = np.random.default_rng(0)
    states = rng.normal(size=(total, 3)).astype(np.float32)
    actions = rng.normal(size=(total, 2)).astype(np.float32)
    rows, start = [], 0
    for episode, length in enumerate(variant.lengths):
        number = episode // variant.episodes_per_file
        row = {
            "episode_index": episode,
            "tasks": [f"task {episode % 2}"],
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": number,
            "dataset_from_index": start,
            "dataset_to_index": start + length,
        }
        earlier = sum(variant.lengths[number * variant.episodes_per_file : episode])
        if variant.storage == "video":
            for key in KEYS:
                row |= {
                    f"videos/{key}/chunk_index": 0,
                    f"videos/{key}/file_index": number,
                    f"videos/{key}/from_timestamp": earlier / FPS,
                    f"videos/{key}/to_timestamp": (earlier + length) / FPS,
                }
        if variant.optional:
            row |= {
                "stats/action/min": [0.0, 0.0],
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        rows.append(row)
        start += length
    for number in range(-(-len(rows) // variant.episodes_per_file)):
        chosen = rows[number * variant.episodes_per_file : (number + 1) * variant.episodes_per_file]
        _write_data(root, number, chosen, states, actions, variant)
        if variant.storage == "video":
            for camera, key in enumerate(KEYS):
                _write_video(
                    root / f"videos/{key}/chunk-000/file-{number:03d}.mp4", chosen, spec, camera, variant
                )
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    tasks = pa.table(
        {"task_index": [0, 1], variant.task_column: pa.array(["task 0", "task 1"], pa.large_string())}
    )
    pq.write_table(tasks, root / "meta/tasks.parquet")
    _write_info(root, variant, len(rows), total)
    return states, actions


def _vectors(values: np.ndarray, kind: str) -> pa.Array:
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.array(values.tolist(), pa.list_(pa.float64() if kind == "double" else pa.float32()))


def _write_data(root, number, rows, states, actions, variant):
    path = root / f"data/chunk-000/file-{number:03d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = None
    for row in rows:
        chosen = slice(row["dataset_from_index"], row["dataset_to_index"])
        frame_index, episode = np.arange(row["length"]), row["episode_index"]
        columns = {
            "observation.state": _vectors(states[chosen], variant.list_type),
            "action": _vectors(actions[chosen], variant.list_type),
        }
        if variant.storage == "image":
            for camera, key in enumerate(KEYS):
                cells = [
                    {"bytes": _png(picture(make_spec(), camera, episode, t)), "path": f"frame-{t:06d}.png"}
                    for t in frame_index
                ]
                columns[key] = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        columns["timestamp"] = pa.array((frame_index / FPS).astype(np.float32))
        if variant.optional:
            columns["frame_index"] = pa.array(frame_index)
        columns["episode_index"] = pa.array(np.full(row["length"], episode))
        columns["index"] = pa.array(frame_index + row["dataset_from_index"])
        columns["task_index"] = pa.array(np.full(row["length"], episode % 2))
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="snappy")
        writer.write_table(table)
    assert writer is not None
    writer.close()


@contextlib.contextmanager
def _same_priority():
    """Undo what SVT-AV1 does to a process of root: it makes its caller real-time (FIFO 99)."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _write_video(path, rows, spec, camera, variant):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"g": "2", "crf": "5"}
    if variant.codec == "libsvtav1":
        options = {"g": "2", "crf": "10", "preset": "12", "svtav1-params": "lp=1"}
    with _same_priority(), av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(variant.codec, rate=Fraction(FPS), options=options)
        size = spec.cameras[camera]
        stream.height, stream.width, stream.pix_fmt = size.height, size.width, "yuv420p"
        for row in rows:
            for t in range(row["length"]):
                frame = av.VideoFrame.from_ndarray(
                    picture(spec, camera, row["episode_index"], t), format="rgb24"
                )
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_info(root, variant, num_episodes, total):
    image = {"dtype": variant.storage, "shape": [16, 24, 3], "names": ["height", "width", "channel"]}
    if variant.storage == "video" and variant.optional:
        image["info"] = {"video.codec": "h264", "video.fps": FPS, "video.is_depth_map": False}
    features = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "z"]}},
        "action": {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]},
        **dict.fromkeys(KEYS, image),
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "int64", "shape": [1], "names": None}
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "features": features,
        "total_episodes": num_episodes,
        "total_frames": total,
        "total_tasks": 2,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    if variant.optional:
        info |= {"robot_type": "so100", "splits": {"train": f"0:{num_episodes}"}, "chunks_size": 1000}
        (root / "meta/stats.json").write_text("{}")
    (root / "meta/info.json").write_text(json.dumps(info))


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
