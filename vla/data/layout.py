"""LeRobotDataset v3 on disk: file names, declared features, and the pandas trap of tasks.parquet.

Both the writer and the reader take their names from here. It builds and parses plain dictionaries and Arrow
schemas; of the files it opens info.json alone.

    meta/info.json   meta/stats.json   meta/tasks.parquet   meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet    videos/<camera key>/chunk-000/file-000.mp4

Our own additions: the key `vla` in info.json (robot spec, storage, recording settings) and its copy
`meta/vla.json`, extra episode columns (seed, task_name, success), `vla/<camera key>/histogram`, columns of
data/ with what a simulator measured (geometry.py), and `.recording/` while open. LeRobot checks every column
under `stats/`, so none of ours may stand there.
"""

import json
import re
import string
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from vla.errors import VLAError
from vla.files import DamagedFile, read_json_object
from vla.spec import RobotSpec

CODEBASE_VERSION = "v3.0"
VLA_SCHEMA_VERSION = 1
STATE_KEY = "observation.state"
ACTION_KEY = "action"
IMAGE_PREFIX = "observation.images."
INDEX_KEYS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
EPISODE_COLUMNS = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index")
STORAGES = ("video", "image")
PIXEL_FORMATS = ("yuv420p", "yuv444p")
FILES_PER_CHUNK = 1000
DATA_FILE_BYTES = 100 * 2**20  # LeRobot's data_files_size_in_mb
VIDEO_FILE_BYTES = 200 * 2**20  # LeRobot's video_files_size_in_mb
STAGING = ".recording"
_SHORT_FORM = re.compile(r"0?\d{0,2}d?")  # of a number in a file pattern

INFO_PATH = "meta/info.json"
ORIGIN_PATH = "meta/vla.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


class DatasetError(VLAError):
    """A dataset is damaged, incomplete, empty or of another kind; the message names the file and the cure."""


def camera_key(camera: str) -> str:
    """Return the feature name under which LeRobot keeps a camera."""
    return IMAGE_PREFIX + camera


def histogram_column(key: str) -> str:
    """Return the column of meta/episodes that holds the pixel counts of a camera, given its feature name."""
    return f"vla/{key}/histogram"


def data_file(root: Path, number: int) -> Path:
    """Return the path of data file `number`, counted from 0 across chunks."""
    return root / DATA_PATH.format(chunk_index=number // FILES_PER_CHUNK, file_index=number % FILES_PER_CHUNK)


def episodes_file(root: Path, number: int) -> Path:
    """Return the path of episode metadata file `number`, counted from 0 across chunks."""
    return root / EPISODES_PATH.format(
        chunk_index=number // FILES_PER_CHUNK, file_index=number % FILES_PER_CHUNK
    )


def video_file(root: Path, camera: str, number: int) -> Path:
    """Return the path of video file `number` of a camera, counted from 0 across chunks."""
    return root / VIDEO_PATH.format(
        video_key=camera_key(camera),
        chunk_index=number // FILES_PER_CHUNK,
        file_index=number % FILES_PER_CHUNK,
    )


def path_from_pattern(root: Path, pattern: str, fields: Mapping[str, Any]) -> Path:
    """Return the file that `data_path` or `video_path` of info.json names.

    Raises:
        DatasetError: the pattern has other fields, or leads out of the dataset.
    """
    try:
        for _, field, form, conversion in string.Formatter().parse(pattern):
            if field is None:
                continue
            if field not in fields or conversion or not _SHORT_FORM.fullmatch(form or ""):
                raise ValueError(field)
        name = PurePosixPath(pattern.format_map(fields))
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise DatasetError(
            f"{root}/{INFO_PATH} has the file pattern {pattern!r}; it may use the fields {sorted(fields)}, "
            "numbers of up to 99 digits"
        ) from error
    if name.is_absolute() or ".." in name.parts or "\\" in str(name) or "\0" in str(name):
        raise DatasetError(f"{root}/{INFO_PATH} has the file pattern {pattern!r}, which leads elsewhere")
    return root / name


def frame_rate(control_hz: float) -> Fraction:
    """Return the rate in frames/s as a small fraction, which video time bases need.

    Raises:
        ValueError: the rate is no ratio of small integers, so frame times would drift.
    """
    rate = Fraction(control_hz).limit_denominator(1001)
    if abs(float(rate) - control_hz) > 1e-9 * control_hz:
        raise ValueError(
            f"control_hz {control_hz} is no ratio of integers up to 1001; choose a rate like 20 or 12.5"
        )
    return rate


def json_rate(control_hz: float) -> int | float:
    """Return the rate as LeRobot writes it: an int whenever it is whole."""
    return int(control_hz) if float(control_hz).is_integer() else float(control_hz)


def camera_size(feature: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Return height, width and number of channels of a camera's feature; None if its shape is of no image.

    LeRobot's converters write channels first or last, and say which in `names`.
    """
    shape, names = list(feature.get("shape") or ()), feature.get("names")
    if len(shape) == 2:
        shape = [*shape, 1]
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        return None
    first = names[0] if isinstance(names, list) and names else None
    if first in ("channel", "channels") or (shape[0] in (1, 3) and shape[2] not in (1, 3)):
        shape = [*shape[1:], shape[0]]
    return shape[0], shape[1], shape[2]


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Tell whether a camera's feature is a depth map: marked so by a key of LeRobot's, or of one channel."""
    info, older = feature.get("info") or {}, feature.get("video_info") or {}
    marks = (info.get("is_depth_map"), info.get("video.is_depth_map"), older.get("video.is_depth_map"))
    size = camera_size(feature)
    return any(marks) or (size is not None and size[2] == 1)


def camera_feature(
    height: int, width: int, *, storage: str, control_hz: float, encoder: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the `features` entry of one camera; `encoder` holds the settings pix_fmt, g, crf and preset."""
    feature: dict[str, Any] = {
        "dtype": storage,
        "shape": [height, width, 3],
        "names": ["height", "width", "channel"],
    }
    if storage == "video":
        feature["info"] = {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": encoder["pix_fmt"],
            "video.is_depth_map": False,
            "video.fps": json_rate(control_hz),
            "video.channels": 3,
            "has_audio": False,
            "video.g": encoder["g"],
            "video.crf": encoder["crf"],
            "video.preset": encoder["preset"],
            "video.video_backend": "pyav",
        }
    return feature


def declare_features(
    spec: RobotSpec,
    *,
    storage: str,
    encoder: Mapping[str, Any],
    further: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return info.json's `features`: the user's first, then the five index columns, in LeRobot's order.

    `further` are those that are neither state, action nor camera.
    """
    features: dict[str, Any] = {
        STATE_KEY: {"dtype": "float32", "shape": [len(spec.state)], "names": list(spec.state_names)},
        ACTION_KEY: {"dtype": "float32", "shape": [len(spec.action)], "names": list(spec.action_names)},
    }
    for camera in spec.cameras:
        features[camera_key(camera.name)] = camera_feature(
            camera.height, camera.width, storage=storage, control_hz=spec.control_hz, encoder=encoder
        )
    features |= {key: dict(feature) for key, feature in further.items()}
    for key in INDEX_KEYS:
        dtype = "float32" if key == "timestamp" else "int64"
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def new_info(
    spec: RobotSpec,
    *,
    storage: str,
    encoder: Mapping[str, Any],
    extra_info: Mapping[str, Any],
    further: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return info.json of a dataset without episodes; for `further` see `declare_features`."""
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": spec.name,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": DATA_FILE_BYTES // 2**20,
        "video_files_size_in_mb": VIDEO_FILE_BYTES // 2**20,
        "fps": json_rate(spec.control_hz),
        "splits": {"train": "0:0"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if storage == "video" else None,
        "features": declare_features(spec, storage=storage, encoder=encoder, further=further),
        "vla": {
            "schema_version": VLA_SCHEMA_VERSION,
            "robot_spec": spec.to_json(),
            "storage": storage,
            "extra_info": dict(extra_info),
        },
    }


def numeric_type(width: int) -> pa.DataType:
    """Return the column type of a float feature; LeRobot keeps features of shape (1,) as plain scalars."""
    return pa.float32() if width == 1 else pa.list_(pa.float32(), width)


def data_schema(spec: RobotSpec, *, storage: str, further: Sequence[pa.Field]) -> pa.Schema:
    """Return the schema of the data files; for `further` see `declare_features`."""
    fields = [
        pa.field(STATE_KEY, numeric_type(len(spec.state))),
        pa.field(ACTION_KEY, numeric_type(len(spec.action))),
    ]
    if storage == "image":
        picture = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
        fields += [pa.field(camera_key(name), picture) for name in spec.camera_names]
    fields += further
    fields += [pa.field(key, pa.float32() if key == "timestamp" else pa.int64()) for key in INDEX_KEYS]
    return pa.schema(fields)


def tasks_table(tasks: list[str]) -> pa.Table:
    """Return tasks.parquet: `task` must be the pandas index, or LeRobot returns integers for instructions."""

    def column(name: str, kind: str, dtype: str) -> dict[str, Any]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.3.3",
    }
    table = pa.table(
        {
            "task_index": pa.array(range(len(tasks)), pa.int64()),
            "task": pa.array(tasks, pa.string()),
        }
    )
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def read_info(root: Path) -> dict[str, Any]:
    """Return info.json.

    Raises:
        DatasetError: it is missing or no JSON object.
    """
    path = root / INFO_PATH
    if not path.is_file():
        raise DatasetError(
            f"{root} is no LeRobotDataset: {path} is missing; give the directory that holds meta/"
        )
    try:
        return read_json_object(path)
    except DamagedFile as error:
        raise DatasetError(str(error)) from error
