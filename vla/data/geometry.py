"""Depth and points of each camera's view as further columns of data/, where a simulator recorded them.

A camera `front` has `geometry.depth.front`, uint16 of all cells row by row [mm], and `geometry.points.front`,
float32 with column, row and visibility of each point in turn (see `vla.geometry`). The features of info.json
say which points there are. The names do not begin with "observation.", as LeRobot's policies would take them
for the robot's state.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, UInt16

from vla.data import tables
from vla.data.layout import INFO_PATH, DatasetError
from vla.data.reader import Dataset
from vla.errors import did_you_mean
from vla.geometry import GeometrySpec, ViewGeometry
from vla.spec import RobotSpec

DEPTH_PREFIX, POINTS_PREFIX = "geometry.depth.", "geometry.points."
_PARTS = ("column", "row", "visibility")
_TYPES: Mapping[str, pa.DataType] = {"uint16": pa.uint16(), "float32": pa.float32()}

Columns = dict[str, np.ndarray]  # by feature name; one row per frame


def declare_geometry(geometry: GeometrySpec | None, robot_spec: RobotSpec) -> dict[str, dict[str, Any]]:
    """Return the entries of info.json's `features`; none where nothing is recorded."""
    if geometry is None:
        return {}
    names = [f"{point}/{part}" for point in geometry.points for part in _PARTS]
    features: dict[str, dict[str, Any]] = {}
    for camera in robot_spec.camera_names:
        features[DEPTH_PREFIX + camera] = {"dtype": "uint16", "shape": [geometry.cells**2], "names": None}
        if names:
            features[POINTS_PREFIX + camera] = {"dtype": "float32", "shape": [len(names)], "names": names}
    return features


def is_geometry(key: str) -> bool:
    """Whether a feature of info.json is one of these."""
    return key.startswith((DEPTH_PREFIX, POINTS_PREFIX))


def recorded_geometry(info: Mapping[str, Any], robot_spec: RobotSpec) -> GeometrySpec | None:
    """Return what was recorded of the cameras of a robot spec; None where there is nothing.

    Raises:
        DatasetError: a feature has another form.
    """
    features = info["features"]
    keys = [DEPTH_PREFIX + camera for camera in robot_spec.camera_names]
    if not any(key in features for key in keys):
        return None
    found = {
        (math.prod(features.get(DEPTH_PREFIX + camera, {}).get("shape", [])), _names(features, camera))
        for camera in robot_spec.camera_names
    }
    num_cells, names = next(iter(found))
    points = tuple(name.rpartition("/")[0] for name in names[:: len(_PARTS)])
    spec = GeometrySpec(points=points, cells=math.isqrt(num_cells))
    declared = declare_geometry(spec, robot_spec)
    if len(found) > 1 or any(not _agrees(features.get(key), entry) for key, entry in declared.items()):
        raise DatasetError(
            f"{INFO_PATH} declares geometry in another form than this program writes: "
            f"{ {key: feature for key, feature in features.items() if is_geometry(key)} }"
        )
    return spec


def _names(features: Mapping[str, Any], camera: str) -> tuple[str, ...]:
    return tuple(map(str, features.get(POINTS_PREFIX + camera, {}).get("names") or ()))


def _agrees(feature: Mapping[str, Any] | None, declared: Mapping[str, Any]) -> bool:
    return feature is not None and all(feature.get(key) == value for key, value in declared.items())


def geometry_fields(info: Mapping[str, Any]) -> list[pa.Field]:
    """Return the fields of the data files, in the order of info.json."""
    return [
        pa.field(key, pa.list_(_TYPES[feature["dtype"]], feature["shape"][0]))
        for key, feature in info["features"].items()
        if is_geometry(key)
    ]


def geometry_columns(views: Mapping[str, ViewGeometry]) -> Columns:
    """Return the columns of an episode, given what was measured in each camera over time."""
    columns = {}
    for camera, view in views.items():
        columns[DEPTH_PREFIX + camera] = view.depth.reshape(len(view.depth), -1)
        if view.points.shape[1]:
            columns[POINTS_PREFIX + camera] = view.points.reshape(len(view.points), -1)
    return columns


def check_views(
    views: Mapping[str, ViewGeometry] | None, geometry: GeometrySpec | None, robot_spec: RobotSpec
) -> None:
    """Raise `DatasetError` unless a frame has the geometry that is recorded, and no other."""
    if geometry is None:
        if views:
            raise DatasetError("this recording has no geometry; give the writer geometry=GeometrySpec(...)")
        return
    if views is None or set(views) != set(robot_spec.camera_names):
        raise DatasetError(
            f"geometry is recorded of the cameras {list(robot_spec.camera_names)}; this frame has "
            f"{sorted(views or {})}"
        )
    for camera, view in views.items():
        wanted = ((geometry.cells, geometry.cells), (len(geometry.points), len(_PARTS)))
        if (view.depth.shape, view.points.shape) != wanted or view.depth.dtype != np.uint16:
            raise DatasetError(
                f"camera {camera!r} has depth {view.depth.dtype}{list(view.depth.shape)} and points "
                f"{list(view.points.shape)}; wanted are uint16{list(wanted[0])} and {list(wanted[1])}"
            )
        if not np.isfinite(view.points).all():
            raise DatasetError(f"the points of camera {camera!r} are not finite: {view.points.tolist()}")


def to_arrow(values: np.ndarray) -> pa.Array:
    """Return the rows of an array as fixed-size lists of its own type."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def read_views(dataset: Dataset) -> dict[str, ViewGeometry]:
    """Return what was measured in each camera in all frames of a dataset.

    Raises:
        DatasetError: there is none, or a file is damaged.
    """
    spec = recorded_geometry(dataset.info, dataset.robot_spec)
    if spec is None:
        raise DatasetError(
            f"{dataset.root} has no geometry (depth and points), from which model.auxiliaries is to learn; "
            "record it with collect.geometry=true, or take out what learns from it"
        )
    parts: dict[str, list[np.ndarray]] = {key: [] for key in declare_geometry(spec, dataset.robot_spec)}
    for path in dataset.data_files:
        table = tables.read_table(path, list(parts))
        for key in parts:
            parts[key].append(tables.number_matrix(path, table, key))
    columns = {key: np.concatenate(arrays)[: dataset.num_frames] for key, arrays in parts.items()}
    views = {}
    for camera in dataset.robot_spec.camera_names:
        depth = columns[DEPTH_PREFIX + camera].astype(np.uint16)
        points = columns.get(POINTS_PREFIX + camera, np.zeros((dataset.num_frames, 0)))
        if not np.isfinite(points).all():
            raise DatasetError(f"{dataset.root} has points of camera {camera!r} that are not finite")
        views[camera] = ViewGeometry(
            depth=depth.reshape(-1, spec.cells, spec.cells),
            points=points.astype(np.float32).reshape(-1, len(spec.points), len(_PARTS)),
        )
    return views


class JoinedViews:
    """The geometry of several datasets of one robot as one, loaded when it is first asked for."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._datasets = tuple(datasets)
        self._points: dict[tuple[str, ...], np.ndarray] = {}

    @functools.cached_property
    def _views(self) -> list[dict[str, ViewGeometry]]:
        return [read_views(dataset) for dataset in self._datasets]

    @functools.cached_property
    def _specs(self) -> list[GeometrySpec]:
        specs = [recorded_geometry(dataset.info, dataset.robot_spec) for dataset in self._datasets]
        return [spec for spec in specs if spec is not None]

    @functools.cached_property
    def depth(self) -> UInt16[np.ndarray, "N camera cells cells"]:
        """Return the depth of each camera in each frame [mm].

        Raises:
            DatasetError: a dataset has no geometry, or they have different numbers of cells.
        """
        views = self._views
        sizes = {spec.cells for spec in self._specs}
        if len(sizes) > 1:
            raise DatasetError(f"the datasets have depth of several sizes {sorted(sizes)}; train on one size")
        return np.concatenate([np.stack([view.depth for view in one.values()], axis=1) for one in views])

    def points(self, names: Sequence[str]) -> Float32[np.ndarray, "N camera point 3"]:
        """Return column, row and visibility of these points in each camera in each frame.

        Raises:
            DatasetError: a dataset has no geometry.
            ValueError: it has no such point; the message names those it has.
        """
        if tuple(names) not in self._points:
            joined = [
                _chosen_points(views, spec, names)
                for views, spec in zip(self._views, self._specs, strict=True)
            ]
            self._points[tuple(names)] = np.concatenate(joined)
        return self._points[tuple(names)]


def _chosen_points(
    views: Mapping[str, ViewGeometry], spec: GeometrySpec, names: Sequence[str]
) -> Float32[np.ndarray, "N camera point 3"]:
    for name in names:
        if name not in spec.points:
            raise ValueError(
                f"the recorded geometry has no point {name!r}; {did_you_mean(name, spec.points)}"
            )
    chosen = [spec.points.index(name) for name in names]
    return np.stack([view.points[:, chosen] for view in views.values()], axis=1)
