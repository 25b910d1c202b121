"""A second model of a scene, for drawing alone: what is drawn may be coarse while physics stays exact.

Meta-World's robot has 66,500 triangles, most of them smaller than a pixel, and a software OpenGL pays for
each. The drawn model is a copy whose robot is simplified by vertex clustering (Rossignac and Borrel 1993):
vertices in the same cell of a grid become one, and triangles that collapse are left out. Copy and original
have the same bodies, geoms and sites, so the simulation's `MjData` can be drawn with the copy.
"""

import copy

import mujoco
import numpy as np
from jaxtyping import Float, Int

from envs.rendering import apply_quality

QUALITIES = ("simplified", "fast", "full")
CELL_M = 0.016  # of the grid; a pixel of a 96-pixel frame covers about as much at arm's length
_CELLS_ACROSS = 12  # at least, along the longest side of a mesh
# What is simplified: the robot. The things that tasks are about have few triangles, and thin parts to lose.
COARSE_MESHES = ("pedestal", "base", "head", "l0", "l1", "l2", "l3", "l4", "l5", "l6", "eGripperBase")


def model_to_draw(model: mujoco.MjModel, quality: str) -> mujoco.MjModel:
    """Return a copy of a model to make a `Renderer` with. The original is not changed.

    Args:
        model: of the simulation.
        quality: "simplified" is "fast" with a coarse robot; "fast" and "full" as in envs/rendering.py.

    Raises:
        ValueError: the quality is none of `QUALITIES`.
    """
    if quality not in QUALITIES:
        raise ValueError(f"render_quality {quality!r} is unknown; choose from {QUALITIES}")
    drawn = copy.deepcopy(model)
    apply_quality(drawn, "fast" if quality == "simplified" else quality)
    if quality == "simplified":
        # Of the cylinders, spheres and boxes: enough triangles to look round in a few pixels.
        drawn.vis.quality.numslices, drawn.vis.quality.numstacks, drawn.vis.quality.numquads = 12, 8, 1
        for name in COARSE_MESHES:
            _simplify(drawn, drawn.mesh(name).id)
    return drawn


def _simplify(model: mujoco.MjModel, mesh: int) -> None:
    """Let a mesh have fewer triangles, over the vertices and normals that it has."""
    first_vertex, num_vertices = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    first, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    vertices = model.mesh_vert[first_vertex : first_vertex + num_vertices].astype(np.float64)
    cell = min(CELL_M, float(np.ptp(vertices, axis=0).max()) / _CELLS_ACROSS)
    triangles, kept = cluster(vertices, model.mesh_face[first : first + count], cell=cell)
    model.mesh_facenormal[first : first + len(kept)] = model.mesh_facenormal[first : first + count][kept]
    model.mesh_face[first : first + len(kept)] = triangles
    model.mesh_facenum[mesh] = len(kept)


def cluster(
    vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"], *, cell: float
) -> tuple[Int[np.ndarray, "kept 3"], Int[np.ndarray, " kept"]]:
    """Simplify a mesh by vertex clustering.

    Args:
        vertices: positions [m].
        triangles: corners, as indices of vertices.
        cell: width of the grid [m].

    Returns:
        The triangles that are left, each corner moved to the vertex that stands for its cell, and where
        these triangles were before.
    """
    cells = np.floor((vertices - vertices.min(axis=0)) / cell).astype(np.int64)
    _, cell_of = np.unique(cells, axis=0, return_inverse=True)
    cell_of = cell_of.reshape(-1)
    corners = cell_of[triangles]
    ordered = np.sort(corners, axis=1)
    whole = np.flatnonzero((ordered[:, 0] != ordered[:, 1]) & (ordered[:, 1] != ordered[:, 2]))
    _, first_of_its_kind = np.unique(ordered[whole], axis=0, return_index=True)
    kept = whole[np.sort(first_of_its_kind)]
    return _representatives(vertices, cell_of)[corners[kept]], kept


def _representatives(
    vertices: Float[np.ndarray, "vertex 3"], cell_of: Int[np.ndarray, " vertex"]
) -> Int[np.ndarray, " cell"]:
    """Return for each cell the vertex nearest to the mean of those in it."""
    sums = np.stack([np.bincount(cell_of, weights=axis) for axis in vertices.T], axis=1)
    means = sums / np.bincount(cell_of)[:, None]
    distance = np.linalg.norm(vertices - means[cell_of], axis=1)
    order = np.lexsort((distance, cell_of))
    return order[np.searchsorted(cell_of[order], np.arange(len(means)))]
