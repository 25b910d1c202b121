"""Draws what a MuJoCo camera sees and measures it: depth in cells, and where points of the scene are."""

from collections.abc import Mapping, Sequence

import mujoco
import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8, UInt16

from envs.rendering import Renderer
from vla.geometry import COVERED, DEPTH_CELLS, MOST_MM, OUTSIDE, VISIBLE, ViewGeometry

DEPTH_PIXELS = 6 * DEPTH_CELLS  # of a picture's rows and columns, whose depth is summed up
COVER_M = 0.06  # what is nearer to the camera than a point by more than this hides it: things have thickness


def render_with_geometry(
    renderer: Renderer,
    *,
    model: mujoco.MjModel,
    data: mujoco.MjData,
    camera_id: int,
    size: int,
    points: Mapping[str, Float[np.ndarray, "3"]],
    names: Sequence[str],
    upside_down: bool = False,
) -> tuple[UInt8[np.ndarray, "size size 3"], ViewGeometry]:
    """Return the picture of a camera, which is square, and its geometry; both come from one drawing.

    Args:
        renderer: made for frames of at least `size`.
        model: that the renderer draws.
        data: the state of the scene.
        camera_id: a fixed camera.
        size: of the picture [pixels].
        points: positions in the world by name [m].
        names: of the points in the order of the result; those that `points` lacks are outside.
        upside_down: whether the camera's pictures are turned by half a turn.
    """
    frame, distances = renderer.render_with_depth(data, camera_id=camera_id, height=size, width=size)
    chosen = ((np.arange(DEPTH_PIXELS) + 0.5) * size / DEPTH_PIXELS).astype(int)
    depth = distances[np.ix_(chosen, chosen)]
    found = np.zeros((len(names), 3), dtype=np.float32)
    present = [i for i, name in enumerate(names) if name in points]
    if present:
        positions = np.stack([points[names[i]] for i in present])
        found[present] = _locate(project(model, data, camera_id=camera_id, positions=positions), depth)
    if upside_down:
        frame, depth = np.ascontiguousarray(frame[::-1, ::-1]), depth[::-1, ::-1]
        inside = found[:, 2] != OUTSIDE
        found[inside, :2] = 1.0 - found[inside, :2]
    return frame, ViewGeometry(depth=depth_in_cells(depth), points=found)


def project(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    *,
    camera_id: int,
    positions: Float[np.ndarray, "point 3"],
) -> Float64[np.ndarray, "point 3"]:
    """Return column and row, as shares of a square picture, and the distance from the camera's plane [m].

    Args:
        model: has the camera's field of view.
        data: has its pose.
        camera_id: a camera with perspective.
        positions: in the world [m].
    """
    rotation = data.cam_xmat[camera_id].reshape(3, 3)  # columns: right, up and backward
    right, up, backward = ((positions - data.cam_xpos[camera_id]) @ rotation).T
    distance = -backward
    focal = 0.5 / np.tan(np.deg2rad(model.cam_fovy[camera_id]) / 2)  # in heights of the picture
    safe = np.where(distance > 0, distance, np.inf)  # what is behind the camera is in no picture
    return np.stack([0.5 + focal * right / safe, 0.5 - focal * up / safe, distance], axis=1)


def _locate(
    projected: Float64[np.ndarray, "point 3"], depth: Float32[np.ndarray, "h w"]
) -> Float32[np.ndarray, "point 3"]:
    """Return column, row and visibility of projected points, given the depth of each pixel [m]."""
    height, width = depth.shape
    columns, rows, distances = projected.T
    inside = (distances > 0) & (columns >= 0) & (columns < 1) & (rows >= 0) & (rows < 1)
    pixels = np.where(inside, rows * height, 0).astype(int), np.where(inside, columns * width, 0).astype(int)
    visibility = np.where(depth[pixels] < distances - COVER_M, COVERED, VISIBLE)
    visibility = np.where(inside, visibility, OUTSIDE)
    places = np.where(inside[:, None], projected[:, :2], 0.0)
    return np.concatenate([places, visibility[:, None]], axis=1).astype(np.float32)


def depth_in_cells(depth: Float32[np.ndarray, "h w"]) -> UInt16[np.ndarray, "cells cells"]:
    """Return the (lower) median of each cell [mm], 0 where it is farther than `MOST_MM`.

    Args:
        depth: of each pixel [m], infinite where nothing is there; height and width are multiples of
            `DEPTH_CELLS`.
    """
    height, width = depth.shape
    shape = (DEPTH_CELLS, height // DEPTH_CELLS, DEPTH_CELLS, width // DEPTH_CELLS)
    cells = depth.reshape(shape).swapaxes(1, 2).reshape(DEPTH_CELLS, DEPTH_CELLS, -1)
    middle = (cells.shape[-1] - 1) // 2
    medians = np.partition(cells, middle, axis=-1)[..., middle]
    return np.where(1000 * medians > MOST_MM, 0, np.rint(1000 * medians)).astype(np.uint16)
