"""What is measured of a view: pixels of known points, depth of a known plane, and both families' points."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest

from envs.registry import make_env
from envs.rendering import Renderer
from envs.view_geometry import DEPTH_PIXELS, depth_in_cells, project, render_with_geometry
from vla.geometry import COVERED, DEPTH_CELLS, OUTSIDE, VISIBLE

SIZE = 96
HEIGHT_M = 2.0  # of a camera that looks straight down, right is x and up is y; 90 degrees of view
SCENE = f"""
<mujoco>
  <visual><map znear="0.01" zfar="20"/><quality offsamples="0" shadowsize="0"/></visual>
  <statistic extent="1"/>
  <worldbody>
    <camera name="down" pos="0 0 {HEIGHT_M}" fovy="90"/>
    <light pos="0 0 3" diffuse="1 1 1"/>
    <geom name="ground" type="plane" size="5 5 1" rgba="0.2 0.2 0.2 1"/>
    <geom name="red" type="sphere" pos="1 0.5 0.1" size="0.05" rgba="1 0 0 1"/>
    <geom name="lid" type="box" pos="-0.6 -0.6 0.5" size="0.2 0.2 0.02" rgba="0 1 0 1"/>
  </worldbody>
</mujoco>
"""
POINTS = {
    "floor": np.array([0.5, 0.25, 0.0]),
    "red": np.array([1.0, 0.5, 0.1]),
    "under_the_lid": np.array([-0.6, -0.6, 0.0]),
    "aside": np.array([3.0, 0.0, 0.0]),
    "behind": np.array([0.1, 0.0, 3.0]),
}
NAMES = (*POINTS, "missing")


@pytest.fixture
def scene() -> Iterator[tuple[mujoco.MjModel, mujoco.MjData, Renderer]]:
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = Renderer(model=model, max_height=SIZE, max_width=SIZE)
    yield model, data, renderer
    renderer.close()


def test_a_point_is_in_the_pixel_where_geometry_and_renderer_have_it(scene) -> None:
    model, data, renderer = scene
    frame, view = render_with_geometry(
        renderer, model=model, data=data, camera_id=0, size=SIZE, points=POINTS, names=NAMES
    )
    places = dict(zip(NAMES, view.points.tolist(), strict=True))
    # Half a picture is as wide as the distance: tan(45 degrees) = 1.
    np.testing.assert_allclose(places["floor"], [0.5 + 0.5 / 4, 0.5 - 0.25 / 4, VISIBLE], atol=1e-6)
    np.testing.assert_allclose(places["red"], [0.5 + 1 / 3.8, 0.5 - 0.5 / 3.8, VISIBLE], atol=1e-6)
    assert places["under_the_lid"][2] == COVERED
    assert [places[name] for name in ("aside", "behind", "missing")] == [[0.0, 0.0, OUTSIDE]] * 3

    rows, columns = np.nonzero((frame[..., 0] > 60) & (frame[..., 1] < 40))
    drawn = (columns.mean() + 0.5) / SIZE, (rows.mean() + 0.5) / SIZE
    np.testing.assert_allclose(drawn, places["red"][:2], atol=1.5 / SIZE)


@pytest.mark.parametrize("size", [SIZE, 84, 40])
def test_depth_is_that_of_the_plane_and_of_what_stands_on_it(scene, size: int) -> None:
    model, data, renderer = scene
    _, view = render_with_geometry(
        renderer, model=model, data=data, camera_id=0, size=size, points={}, names=()
    )
    assert view.depth.shape == (DEPTH_CELLS, DEPTH_CELLS)
    assert view.points.shape == (0, 3)
    floor, lid = view.depth[0, 0], view.depth.min()
    assert abs(int(floor) - 1000 * HEIGHT_M) <= 2
    assert abs(int(lid) - 1000 * (HEIGHT_M - 0.52)) <= 2
    row, column = np.argwhere(view.depth == lid).mean(axis=0)
    expected = project(model, data, camera_id=0, positions=np.array([[-0.6, -0.6, 0.52]]))[0]
    assert abs((column + 0.5) / DEPTH_CELLS - expected[0]) < 1 / DEPTH_CELLS
    assert abs((row + 0.5) / DEPTH_CELLS - expected[1]) < 1 / DEPTH_CELLS


def test_a_camera_upside_down_is_measured_as_its_picture_is_turned(scene) -> None:
    model, data, renderer = scene
    (picture, straight), (turned_picture, turned) = (
        render_with_geometry(
            renderer,
            model=model,
            data=data,
            camera_id=0,
            size=SIZE,
            points=POINTS,
            names=NAMES,
            upside_down=upside_down,
        )
        for upside_down in (False, True)
    )
    np.testing.assert_array_equal(turned_picture, picture[::-1, ::-1])
    np.testing.assert_array_equal(turned.depth, straight.depth[::-1, ::-1])
    np.testing.assert_allclose(turned.points[:3, :2], 1 - straight.points[:3, :2], atol=1e-6)
    np.testing.assert_array_equal(turned.points[:, 2], straight.points[:, 2])
    np.testing.assert_array_equal(turned.points[3:], straight.points[3:])


def test_cells_hold_the_median_and_nothing_where_most_pixels_see_nothing() -> None:
    depth = np.full((DEPTH_PIXELS, DEPTH_PIXELS), 1.5, dtype=np.float32)
    depth[:6, :6].flat[:17] = 0.5  # fewer than half of the first cell
    depth[:6, 6:12].flat[:19] = np.inf  # more than half of the second one
    depth[:6, 12:18] = 80.0  # farther than a cell can say
    cells = depth_in_cells(depth)
    assert cells[0, :4].tolist() == [1500, 0, 0, 1500]


@pytest.mark.parametrize(
    ("family", "task"),
    [
        *(("tabletop", task) for task in ("reach", "push", "lift", "place", "stack", "open_drawer")),
        ("tabletop", "close_drawer"),
        *(("metaworld", task) for task in ("reach", "push", "pick-place", "peg-insert-side", "stick-push")),
    ],
)
def test_points_of_both_families_are_where_depth_has_things(family: str, task: str) -> None:
    if family == "metaworld":
        pytest.importorskip("metaworld")
    env = make_env({"family": family, "task": task})
    try:
        env.start_episode(seed=3)
        camera = env.robot_spec.camera_names[0]
        first = env.render_with_geometry(camera)
        for _ in range(10):
            env.advance(env.expert_action())
        drawn = env.render_with_geometry(camera)
        assert first is not None
        assert drawn is not None
        before, (frame, after) = first[1], drawn
        np.testing.assert_array_equal(frame, env.render_camera(camera))
        assert before.points.shape == (len(env.POINTS), 3)
        for name in ("hand", "object", "goal"):
            assert before.points[env.POINTS.index(name), 2] != OUTSIDE, name
        hand, thing = env.POINTS.index("hand"), env.POINTS.index("object")
        assert np.abs(after.points[hand] - before.points[hand]).max() > 0.005
        column, row, _ = after.points[thing]
        near = after.depth[int(row * DEPTH_CELLS), int(column * DEPTH_CELLS)] / 1000
        assert 0.3 < near < 2.0, "the object is on the table, neither at the lens nor in the sky"
        with pytest.raises(ValueError, match="camera 'nowhere' is unknown"):
            env.render_with_geometry("nowhere")
    finally:
        env.close()
