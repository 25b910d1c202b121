"""Recorded depth and points: kept exactly, only where asked for, and shifted with the frames."""

from pathlib import Path

import numpy as np
import pytest
from data_fixtures import make_episodes, make_spec, picture

from vla.data.augment import ImageAugmentation
from vla.data.demonstrations import DemonstrationSource
from vla.data.geometry import is_geometry, read_views, recorded_geometry
from vla.data.layout import DatasetError
from vla.data.quality.mend import MendSettings, write_mended
from vla.data.reader import Dataset
from vla.data.requested import shifted_depth, shifted_traces
from vla.data.windows import Windows, open_windows
from vla.data.writer import DatasetWriter, finish_recording
from vla.geometry import COVERED, OUTSIDE, VISIBLE, GeometrySpec, ViewGeometry
from vla.processing.processor import Processor
from vla.resize import Resizing

SPEC = make_spec(size=(16, 16))
GEOMETRY = GeometrySpec(points=("hand", "goal"), cells=4)
LENGTHS = [5, 3]


def view(camera: int, number: int, t: int) -> ViewGeometry:
    """Numbers that tell camera, episode and frame apart."""
    depth = np.arange(16, dtype=np.uint16).reshape(4, 4) + 100 * t + 1000 * number + 10_000 * camera
    places = [[0.1 * t, 0.2 + 0.5 * number, VISIBLE], [0.5, 0.25 + 0.5 * camera, COVERED]]
    return ViewGeometry(depth=depth, points=np.array(places, dtype=np.float32))


def record(root: Path, *, storage: str = "image", geometry: GeometrySpec | None = GEOMETRY) -> Path:
    with DatasetWriter(root, robot_spec=SPEC, storage=storage, geometry=geometry) as writer:
        for number, episode in enumerate(make_episodes(SPEC, LENGTHS)):
            for t, (state, action) in enumerate(zip(episode.states, np.tanh(episode.actions), strict=True)):
                images = {name: picture(SPEC, c, number, t) for c, name in enumerate(SPEC.camera_names)}
                views = {name: view(c, number, t) for c, name in enumerate(SPEC.camera_names)}
                writer.add_frame(images, state, action, views=views if geometry else None)
            writer.save_episode(episode.task, episode.extra)
    return root


def windows_of(root: Path, *, frame_offsets=(0,), **options) -> Windows:
    return open_windows(
        [root],
        cache_dir=root.parent / "cache",
        action_horizon=2,
        frame_offsets=frame_offsets,
        progress=False,
        **options,
    )


@pytest.mark.parametrize("storage", ["image", "video"])
def test_what_was_measured_is_read_back_exactly(tmp_path: Path, storage: str) -> None:
    dataset = Dataset(record(tmp_path / "d", storage=storage))
    assert recorded_geometry(dataset.info, dataset.robot_spec) == GEOMETRY
    for camera, (name, found) in enumerate(read_views(dataset).items()):
        assert name == SPEC.camera_names[camera]
        wanted = [view(camera, number, t) for number, length in enumerate(LENGTHS) for t in range(length)]
        np.testing.assert_array_equal(found.depth, [one.depth for one in wanted])
        np.testing.assert_array_equal(found.points, [one.points for one in wanted])


def test_a_recording_is_continued_and_resumed_with_its_geometry(tmp_path: Path) -> None:
    root = record(tmp_path / "d")
    writer = DatasetWriter(root, robot_spec=SPEC, storage="image", geometry=GEOMETRY)
    images = {name: picture(SPEC, c, 2, 0) for c, name in enumerate(SPEC.camera_names)}
    views = {name: view(c, 2, 0) for c, name in enumerate(SPEC.camera_names)}
    writer.add_frame(images, np.zeros(3, np.float32), np.zeros(2, np.float32), views=views)
    writer.save_episode("lift", make_episodes(SPEC, [1])[0].extra)
    writer._lock.release()  # as if it was killed here
    finish_recording(root)
    dataset = Dataset(root)
    assert dataset.num_frames == sum(LENGTHS) + 1
    np.testing.assert_array_equal(read_views(dataset)["wrist"].depth[-1], view(1, 2, 0).depth)
    with pytest.raises(DatasetError, match="other features"):
        DatasetWriter(root, robot_spec=SPEC, storage="image")


def test_a_recording_without_geometry_has_nothing_of_it(tmp_path: Path) -> None:
    root = record(tmp_path / "d", geometry=None)
    dataset = Dataset(root)
    assert not any(is_geometry(key) for key in dataset.info["features"])
    assert "geometry" not in (root / "meta/info.json").read_text()
    with pytest.raises(DatasetError, match=r"has no geometry.*collect\.geometry=true"):
        read_views(dataset)


@pytest.mark.parametrize(
    ("geometry", "views", "message"),
    [
        (None, {"exterior": view(0, 0, 0)}, "this recording has no geometry"),
        (GEOMETRY, None, "geometry is recorded of the cameras"),
        (GEOMETRY, {"exterior": view(0, 0, 0)}, "this frame has \\['exterior'\\]"),
        (
            GeometrySpec(points=("hand",), cells=4),
            {name: view(0, 0, 0) for name in SPEC.camera_names},
            r"wanted are uint16\[4, 4\] and \[1, 3\]",
        ),
    ],
)
def test_a_frame_has_the_geometry_that_is_recorded(tmp_path: Path, geometry, views, message) -> None:
    images = {name: picture(SPEC, c, 0, 0) for c, name in enumerate(SPEC.camera_names)}
    with (
        DatasetWriter(tmp_path / "d", robot_spec=SPEC, storage="image", geometry=geometry) as writer,
        pytest.raises(DatasetError, match=message),
    ):
        writer.add_frame(images, np.zeros(3, np.float32), np.zeros(2, np.float32), views=views)


def test_traces_are_of_the_named_points_at_and_after_each_frame(tmp_path: Path) -> None:
    windows = windows_of(record(tmp_path / "d"), frame_offsets=(2, 0))
    traces = windows.traces(np.array([3, 5]), points=["goal", "hand"], offsets=(0, 3))
    assert traces.shape == (2, 4, 2, 2, 3)
    # Window 3: frames 1 and 3 of the first episode; 3 later is frame 4, its last. Images: frame, then camera.
    for image, (camera, t) in enumerate([(0, 1), (1, 1), (0, 3), (1, 3)]):
        for future, when in enumerate([t, 4]):
            np.testing.assert_array_equal(traces[0, image, future], view(camera, 0, when).points[::-1])
    # Window 5 is the first frame of the second episode, which is repeated before; its last frame is 2.
    np.testing.assert_array_equal(traces[1, 0, :, 1], [view(0, 1, t).points[0] for t in (0, 2)])
    np.testing.assert_array_equal(windows.depth(np.array([3]))[0, 1], view(1, 0, 1).depth)
    with pytest.raises(ValueError, match=r"no point 'hands'.*'hand'"):
        windows.traces(np.array([0]), points=["hands"], offsets=(0,))


def test_cameras_are_those_that_the_policy_sees(tmp_path: Path) -> None:
    windows = windows_of(record(tmp_path / "d"), cameras=["wrist"])
    np.testing.assert_array_equal(windows.depth(np.array([6]))[0], [view(1, 1, 1).depth])


def test_past_actions_end_where_the_episode_begins(tmp_path: Path) -> None:
    windows = windows_of(record(tmp_path / "d"))
    actions, exists = windows.past_actions(np.array([2, 5]), (1, 3))
    np.testing.assert_array_equal(actions[0], windows.actions[[1, 0]])
    assert exists.tolist() == [[True, False], [False, False]]


def test_points_and_depth_move_with_the_frame(tmp_path: Path) -> None:
    """A bright spot stays under its point, whatever the augmentation draws."""
    augmentation = ImageAugmentation(max_shift=3, brightness=0.0, contrast=0.0, color=0.0)
    images = np.zeros((6, 2, 16, 16, 3), dtype=np.uint8)
    images[:, :, 9, 5] = 255
    drawn = augmentation.draw(batch=6, num_images=2, rng=np.random.default_rng(0))
    changed = drawn.apply(images)
    traces = np.empty((6, 2, 1, 1, 3), dtype=np.float32)
    traces[:] = [5.5 / 16, 9.5 / 16, VISIBLE]
    moved = shifted_traces(traces, drawn.shifts / 16)
    found = np.argwhere(changed[..., 0] == 255)
    assert len(found) == 12
    assert len({tuple(place) for place in found[:, 2:].tolist()}) > 5
    for sample, image, row, column in found:
        np.testing.assert_allclose(moved[sample, image, 0, 0] * 16, [column + 0.5, row + 0.5, 16 * VISIBLE])
    beyond = np.full((6, 2, 2), 0.7)
    assert (shifted_traces(traces, beyond) == [0, 0, OUTSIDE]).all()


def test_shifted_depth_of_a_plane_is_exact_and_what_is_nothing_stays_nothing() -> None:
    rows, columns = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
    plane = 1 / (0.5 + 0.05 * rows + 0.02 * columns)  # [m]; the inverse of depth is linear on a plane
    depth = np.rint(1000 * plane).astype(np.uint16)[None, None]
    moved = shifted_depth(depth, np.array([[[0.6 / 8, -0.25 / 8]]]))
    wanted = 1 / (0.5 + 0.05 * (rows + 0.6) + 0.02 * (columns - 0.25))
    np.testing.assert_allclose(moved[0, 0, :-1, 1:], wanted[:-1, 1:], rtol=2e-3)
    nothing = np.zeros((1, 1, 8, 8), dtype=np.uint16)
    assert (shifted_depth(nothing, np.array([[[0.05, 0.05]]])) == 0).all()
    np.testing.assert_allclose(shifted_depth(depth, np.zeros((1, 1, 2))), depth / 1000, rtol=1e-6)


def test_a_source_hands_out_what_targets_learn(tmp_path: Path) -> None:
    windows = windows_of(record(tmp_path / "d"), frame_offsets=(2, 0))
    augmentation = ImageAugmentation(max_shift=2, brightness=0.0, contrast=0.0, color=0.0)
    source = DemonstrationSource(windows, augmentation=augmentation)
    processor = Processor.fit(source.demonstrations(), codec={"kind": "uniform"}, frame_offsets=(2, 0))
    requests = {
        "depth": 4,
        "points": ("goal", "hand"),
        "traces": {"points": ("hand",), "offsets": (0, 2)},
        "past_actions": (1, 2),
    }
    plain, shifted = (
        source.batch(np.arange(8), processor=processor, requests=requests, seed=seed)
        for seed in (None, (0, 1))
    )
    assert plain["depth"].shape == (8, 4, 4, 4)
    np.testing.assert_allclose(plain["depth"][3, 1], view(1, 0, 1).depth / 1000, rtol=1e-6)
    assert plain["traces"].shape == (8, 4, 2, 1, 3)
    assert plain["points"].shape == (8, 4, 2, 3)
    np.testing.assert_array_equal(plain["points"][:, :, 1], plain["traces"][:, :, 0, 0])
    assert plain["past_actions"].dtype == np.float32
    assert (np.abs(plain["past_actions"]) <= 2).all()
    np.testing.assert_array_equal(plain["past_exists"][:4].sum(axis=1), [0, 1, 2, 2])
    inside = (plain["traces"][..., 2] != OUTSIDE) & (shifted["traces"][..., 2] != OUTSIDE)
    moved = (shifted["traces"] - plain["traces"])[inside][:, :2] * 16
    np.testing.assert_allclose(moved, np.rint(moved), atol=1e-5)
    assert 0 < np.abs(moved).max() <= 2 + 1e-5

    def refused(message: str, **request) -> None:
        with pytest.raises(ValueError, match=message):
            source.batch(np.arange(2), processor=processor, requests=request, seed=None)

    refused(r"recorded in 4 x 4 cells.*give cells=4", depth=16)
    refused("no point 'elbow'", traces={"points": ("elbow",), "offsets": (0,)})
    one_frame = DemonstrationSource(windows_of(tmp_path / "d"))
    with pytest.raises(ValueError, match="one frame does not show"):
        one_frame.batch(
            np.arange(2),
            processor=Processor.fit(one_frame.demonstrations(), codec={"kind": "uniform"}),
            requests={"past_actions": (1,)},
            seed=None,
        )


def test_padded_frames_are_refused_and_stretched_ones_are_not(tmp_path: Path) -> None:
    root, wide = tmp_path / "d", make_spec(size=(16, 24))
    with DatasetWriter(root, robot_spec=wide, storage="image", geometry=GEOMETRY) as writer:
        images = {name: picture(wide, c, 0, 0) for c, name in enumerate(wide.camera_names)}
        views = {name: view(c, 0, 0) for c, name in enumerate(wide.camera_names)}
        writer.add_frame(images, np.zeros(3, np.float32), np.zeros(2, np.float32), views=views)
        writer.save_episode("lift")
    padded, stretched = (
        windows_of(root, resizing=Resizing(height=12, width=12, mode=mode)) for mode in ("pad", "stretch")
    )
    with pytest.raises(ValueError, match=r"are padded.*data\.resize=stretch"):
        padded.depth(np.array([0]))
    np.testing.assert_array_equal(stretched.depth(np.array([0]))[0, 0], view(0, 0, 0).depth)


def test_a_mended_copy_keeps_its_geometry(tmp_path: Path) -> None:
    source = Dataset(record(tmp_path / "d"))
    write_mended(source, tmp_path / "copy", findings=[], settings=MendSettings())
    before, after = read_views(source), read_views(Dataset(tmp_path / "copy"))
    for name in SPEC.camera_names:
        np.testing.assert_array_equal(after[name].depth, before[name].depth)
        np.testing.assert_array_equal(after[name].points, before[name].points)
