"""The parquet side of reading LeRobotDataset v3: episodes, instructions and numbers, checked and as arrays.

It accepts what LeRobot and its converters were seen to write: several files, list or fixed-size-list or plain
columns, float64, and an instruction index called `task` or unnamed. It decodes no images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Float64, Int64, Shaped

from vla.data.layout import (
    ACTION_KEY,
    EPISODE_COLUMNS,
    STATE_KEY,
    TASKS_PATH,
    DatasetError,
    camera_key,
    camera_size,
    histogram_column,
    path_from_pattern,
)
from vla.spec import RobotSpec

MOST_ROWS_A_BYTE = 100
MOST_FPS, MOST_SIZE = 10_000, 1_000_000  # of a feature along an axis
MOST_TASKS = 1_000_000
_CURE = "restore it from a copy, or record or download the dataset again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """The numeric columns of all data files, N rows."""

    states: Float32[np.ndarray, "N state"]
    actions: Float32[np.ndarray, "N action"]
    timestamps: Float64[np.ndarray, " N"]  # from the start of the episode [s]
    episode_index: Int64[np.ndarray, " N"]
    task_index: Int64[np.ndarray, " N"]
    rows_per_file: list[int]


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file.

    Raises:
        DatasetError: it is missing, truncated or damaged.
    """
    if not path.is_file():
        raise DatasetError(f"file {path} is missing; {_CURE}")
    try:
        file = pq.ParquetFile(path.absolute(), page_checksum_verification=True)  # "a:b" alone is a URI to it
    except (pa.ArrowException, OSError) as error:
        require_readable(error)
        raise DatasetError(f"file {path} is truncated or damaged ({error}); {_CURE}") from error
    if file.metadata.num_rows > MOST_ROWS_A_BYTE * path.stat().st_size:
        file.close()
        raise DatasetError(f"file {path} claims {file.metadata.num_rows} rows in few bytes; {_CURE}")
    return file


def require_readable(error: Exception) -> None:
    """Raise an error again that is the disk's (no permission, too many files open), not the file's."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read columns of a parquet file.

    Raises:
        DatasetError: it is missing, truncated or damaged, or lacks a column.
    """
    with open_parquet(path) as file:
        missing = [name for name in columns or () if name not in file.schema_arrow.names]
        if missing:
            raise DatasetError(f"file {path} lacks the columns {missing}; it has {file.schema_arrow.names}")
        try:
            return file.read(columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            require_readable(error)
            raise DatasetError(f"file {path} is damaged ({error}); {_CURE}") from error


def check_version(root: Path, info: dict[str, Any]) -> None:
    """Raise `DatasetError` unless info.json is that of format v3 and has the keys that reading needs."""
    version = str(info.get("codebase_version"))
    if not version.startswith("v3."):
        raise DatasetError(
            f"{root} has format {version!r}; this program reads v3.0. LeRobot 0.6 converts v2.1 "
            "datasets with `python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=<user>/<name> "
            "--root=<directory> --push-to-hub=false`"
        )
    missing = [key for key in ("features", "fps", "total_episodes") if key not in info]
    if missing:
        raise DatasetError(f"{root}/meta/info.json lacks {missing}; {_CURE}")
    features, fps = info["features"], info["fps"]
    wrong = [] if isinstance(features, dict) else ["'features' is no table"]
    wrong += [
        f"feature {key!r} is {str(feature)[:80]}"
        for key, feature in (features.items() if not wrong else ())
        if not _is_feature(feature)
    ]
    if type(fps) not in (int, float) or not 0 < fps <= MOST_FPS:
        wrong.append(f"'fps' is {fps!r}")
    wrong += [
        f"{key!r} is {info[key]!r}"
        for key in ("total_episodes", "total_frames", "total_tasks")
        if key in info and (type(info[key]) is not int or info[key] < 0)
    ]
    wrong += [
        f"{key!r} is {info[key]!r}"
        for key in ("data_path", "video_path")
        if not isinstance(info.get(key, ""), str | None)
    ]
    if wrong:
        raise DatasetError(f"{root}/meta/info.json is of another form: {'; '.join(wrong[:3])}; {_CURE}")


def _is_feature(feature: Any) -> bool:
    """Tell whether an entry of info.json's `features` has the form that reading relies on."""
    if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
        return False
    shape = feature.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size <= MOST_SIZE for size in shape):
        return False
    return all(isinstance(feature.get(key) or {}, dict) for key in ("info", "video_info"))


def feature_faults(info: Mapping[str, Any], spec: RobotSpec) -> list[str]:
    """Return a line for each camera, size, dimension and rate in which info.json and the spec differ."""
    features, faults = info["features"], []
    for key, channels in ((STATE_KEY, spec.state), (ACTION_KEY, spec.action)):
        shape = features.get(key, {}).get("shape")
        if shape is None or list(shape) != [len(channels)]:
            faults.append(f"{key} has shape {shape}, the spec {[len(channels)]}")
    for camera in spec.cameras:
        feature, wanted = features.get(camera_key(camera.name), {}), (camera.height, camera.width, 3)
        if camera_size(feature) != wanted:
            faults.append(f"{camera_key(camera.name)} has {feature.get('shape')}, the spec {list(wanted)}")
    if float(info["fps"]) != spec.control_hz:
        faults.append(f"fps is {info['fps']}, control_hz {spec.control_hz}")
    return faults


def check_features(root: Path, info: Mapping[str, Any], spec: RobotSpec) -> None:
    """Raise `DatasetError` unless the dataset has the cameras, sizes, dimensions and rate of the spec."""
    faults = feature_faults(info, spec)
    if faults:
        listing = "\n  ".join(faults)
        raise DatasetError(
            f"{root} does not fit robot spec {spec.name!r}; it has the features "
            f"{sorted(info['features'])}:\n  {listing}"
        )


def read_episodes(root: Path, total_episodes: int) -> pa.Table:
    """Return meta/episodes without its statistics and pixel counts, one row per episode, in order.

    Raises:
        DatasetError: files or rows are missing.
    """
    folder = root / "meta/episodes"
    paths = sorted(folder.glob("chunk-*/file-*.parquet"))
    if not paths:
        raise DatasetError(f"{folder} holds no chunk-*/file-*.parquet; {_CURE}")
    parts = []
    for path in paths:
        with open_parquet(path) as file:
            names = [name for name in file.schema_arrow.names if not name.startswith(("stats/", "vla/"))]
        parts.append(read_table(path, names))
    try:
        episodes = pa.concat_tables(parts, promote_options="permissive").sort_by("episode_index")
    except pa.ArrowException as error:
        raise DatasetError(f"the files in {folder} do not fit together ({error})") from error
    numbers = _integers(folder, episodes, "episode_index")
    if not np.array_equal(numbers[:total_episodes], np.arange(min(total_episodes, len(numbers) + 1))):
        raise DatasetError(
            f"{folder} describes {len(numbers)} episodes, meta/info.json says {total_episodes}, numbered "
            f"from 0; one of them is incomplete: {_CURE}"
        )
    episodes = episodes.slice(0, total_episodes).combine_chunks()
    for name in episodes.column_names:
        if name == "length" or name.endswith(("/chunk_index", "/file_index")):
            _integers(folder, episodes, name)
        elif name.endswith("/from_timestamp"):
            finite_numbers(folder, episodes, name)
    return episodes


def histogram_columns(path: Path, keys: Sequence[str]) -> dict[str, str]:
    """Return the columns with the pixel counts of cameras in a file of meta/episodes, by feature name.

    Raises:
        DatasetError: they are missing, so another program wrote this file.
    """
    with open_parquet(path) as file:
        names, there = file.schema_arrow.names, {}
    for key in keys:
        older = f"stats/{key}/histogram"  # until LeRobot's editor was seen to refuse it
        there[key] = next((name for name in (histogram_column(key), older) if name in names), None)
    missing = [key for key in keys if there[key] is None]
    if missing:
        raise DatasetError(
            f"{path} holds episodes of another program, without the pixel counts of {missing}. The dataset "
            "can be read but not continued: record into another directory, and train on both or merge them"
        )
    return there


def extra_columns(episodes: pa.Table) -> list[str]:
    """Return the names of columns that format v3 does not define."""
    return [name for name in episodes.column_names if "/" not in name and name not in EPISODE_COLUMNS]


def read_instructions(root: Path) -> list[str]:
    """Return the instructions of tasks.parquet by task_index; indices without a line give an empty string.

    The text stands in a column `task`, or `__index_level_0__` when the pandas index had no name.
    """
    table = read_table(root / TASKS_PATH)
    texts = [
        field.name
        for field in table.schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    name = next((name for name in ("task", "__index_level_0__") if name in texts), None)
    if name is None or "task_index" not in table.column_names:
        raise DatasetError(
            f"{root / TASKS_PATH} has the columns {table.column_names}; it needs task_index and the text "
            "`task`"
        )
    numbers = _integers(root / TASKS_PATH, table, "task_index")
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < MOST_TASKS:
        raise DatasetError(f"{root / TASKS_PATH} has task_index outside [0, {MOST_TASKS}); {_CURE}")
    by_index = dict(zip(numbers.tolist(), table[name].to_pylist(), strict=True))
    return [by_index.get(index) or "" for index in range(max(by_index, default=-1) + 1)]


def data_files(root: Path, episodes: pa.Table, pattern: str) -> list[Path]:
    """Return the data files in order; those that meta/episodes names, or all that there are."""
    names = ("data/chunk_index", "data/file_index")
    if all(name in episodes.column_names for name in names):
        pairs = zip(*(episodes[name].to_pylist() for name in names), strict=True)
        return [
            path_from_pattern(root, pattern, {"chunk_index": chunk, "file_index": file})
            for chunk, file in dict.fromkeys(pairs)
        ]
    paths = sorted((root / "data").glob("chunk-*/file-*.parquet"))
    if not paths:
        raise DatasetError(f"{root / 'data'} holds no chunk-*/file-*.parquet; {_CURE}")
    return paths


def read_numbers(paths: Sequence[Path], total_episodes: int, spec: RobotSpec, fps: float) -> Numbers:
    """Load the numeric columns of all data files and check them.

    Raises:
        DatasetError: a file is damaged, out of order, or holds NaN or infinite states or actions.
    """
    columns = [STATE_KEY, ACTION_KEY, "episode_index", "task_index"]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in [*columns, "timestamp"]}
    rows_per_file = []
    for path in paths:
        with open_parquet(path) as file:
            with_time = "timestamp" in file.schema_arrow.names
        table = read_table(path, [*columns, "timestamp"] if with_time else columns)
        episode_index = _integers(path, table, "episode_index")
        rows_per_file.append(len(table))
        parts["episode_index"].append(episode_index)
        parts["task_index"].append(_integers(path, table, "task_index"))
        for key, names in ((STATE_KEY, spec.state_names), (ACTION_KEY, spec.action_names)):
            parts[key].append(_float_matrix(path, table, key, names, episode_index))
        if with_time:
            parts["timestamp"].append(_times(path, table))
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items() if arrays}
    episode_index = joined["episode_index"]
    falling = np.flatnonzero(np.diff(episode_index) < 0)
    if falling.size:
        raise DatasetError(
            f"the rows of {[str(path) for path in paths]} are out of order: episode_index falls behind row "
            f"{falling[0]}; {_CURE}"
        )
    if "timestamp" not in joined or len(joined["timestamp"]) != len(episode_index):
        starts = np.searchsorted(episode_index, episode_index, side="left")
        joined["timestamp"] = (np.arange(len(episode_index)) - starts) / float(fps)
    count = int(np.searchsorted(episode_index, total_episodes))
    return Numbers(
        states=joined[STATE_KEY][:count],
        actions=joined[ACTION_KEY][:count],
        timestamps=joined["timestamp"][:count],
        episode_index=episode_index[:count],
        task_index=joined["task_index"][:count],
        rows_per_file=rows_per_file,
    )


def episode_bounds(
    root: Path, episodes: pa.Table, episode_index: Int64[np.ndarray, " N"]
) -> tuple[Int64[np.ndarray, " E"], Int64[np.ndarray, " E"]]:
    """Return the first frame and the length of every episode, counted from the data itself.

    Raises:
        DatasetError: an episode has another length than meta/episodes says.
    """
    count = len(episodes)
    starts = np.searchsorted(episode_index, np.arange(count), side="left").astype(np.int64)
    lengths = np.searchsorted(episode_index, np.arange(count), side="right").astype(np.int64) - starts
    expected = episodes["length"].to_numpy() if "length" in episodes.column_names else lengths
    wrong = np.flatnonzero((lengths != expected) | (lengths == 0))
    if wrong.size:
        i = int(wrong[0])
        raise DatasetError(
            f"episode {i} of {root} has {lengths[i]} frames in data/ but {expected[i]} in meta/episodes; "
            f"{_CURE}"
        )
    return starts, lengths


def _integers(path: Path, table: pa.Table, key: str) -> np.ndarray:
    column = table[key]
    if column.null_count or not pa.types.is_integer(column.type):
        raise DatasetError(
            f"column {key} of {path} is {column.type} with {column.null_count} nulls; want int64"
        )
    return column.to_numpy().astype(np.int64)


def _times(path: Path, table: pa.Table) -> Float64[np.ndarray, " rows"]:
    """Return the column `timestamp` [s]; what is missing is NaN, which whoever needs it refuses."""
    column = table["timestamp"]
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise DatasetError(f"column timestamp of {path} is {column.type}; want float32")
    return column.to_numpy().astype(np.float64)


def finite_numbers(path: Path, table: pa.Table, key: str) -> Float64[np.ndarray, " rows"]:
    """Return a column of finite numbers.

    Raises:
        DatasetError: there are nulls, NaN, infinities or something else than numbers.
    """
    values = number_matrix(path, table, key).astype(np.float64).ravel()
    if not np.isfinite(values).all():
        raise DatasetError(f"column {key} of {path} holds NaN or infinity; {_CURE}")
    return values


def number_matrix(path: Path, table: pa.Table, key: str) -> Shaped[np.ndarray, "rows dims"]:
    """Return a column of numbers, or of lists of equally many numbers, nested or not; one row per frame.

    Raises:
        DatasetError: there are nulls, something else than numbers, or rows of several lengths.
    """
    column = table[key].combine_chunks()
    values = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    num_nulls = values.null_count
    while _is_list(values.type):
        is_ragged = not pa.types.is_fixed_size_list(values.type) and len(values.value_lengths().unique()) > 1
        if is_ragged:
            raise DatasetError(
                f"column {key} of {path} has rows of several lengths; want vectors of one length"
            )
        values = values.flatten()
        num_nulls += values.null_count
    is_number = pa.types.is_floating(values.type) or pa.types.is_integer(values.type)
    if num_nulls or not is_number:
        raise DatasetError(
            f"column {key} of {path} is {column.type} with {num_nulls} nulls; want numbers, such as float32"
        )
    return values.to_numpy(zero_copy_only=False).reshape(len(table), len(values) // max(len(table), 1))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _float_matrix(
    path: Path, table: pa.Table, key: str, names: Sequence[str], episode_index: np.ndarray
) -> np.ndarray:
    """Return a column of numbers as float32 [rows, len(names)], which must be finite."""
    matrix = number_matrix(path, table, key).astype(np.float32)
    if not len(table):
        return matrix.reshape(0, len(names))
    if matrix.shape != (len(table), len(names)):
        raise DatasetError(
            f"column {key} of {path} has {matrix.shape[1]} numbers a row; expected {len(names)}: "
            f"{list(names)}"
        )
    bad = np.argwhere(~np.isfinite(matrix))
    if bad.size:
        row, channel = bad[0]
        episode = int(episode_index[row])
        frame = int(row) - int(np.argmax(episode_index == episode))
        raise DatasetError(
            f"{key} of {path} is {matrix[row, channel]} in {names[channel]!r} at frame {frame} of episode "
            f"{episode} ({len(bad)} such values); record that episode again or remove it"
        )
    return matrix
