"""The reader on what LeRobot writes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixtures import make_spec, picture
from lerobot_like import Variant, write_lerobot

from vla.data.foreign import derive_robot_spec
from vla.data.layout import DatasetError
from vla.data.reader import Dataset

VARIANTS = {
    "h264": Variant(),
    "av1": Variant(codec="libsvtav1", lengths=[9, 9, 4], episodes_per_file=3),
    "image": Variant(storage="image"),
    "version 0.4": Variant(task_column="__index_level_0__"),
    "minimal": Variant(optional=False, list_type="list"),
    "converter": Variant(storage="image", list_type="double", episodes_per_file=4, optional=False),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_read_alike(tmp_path, name):
    variant, spec = VARIANTS[name], make_spec()
    states, actions = write_lerobot(tmp_path, variant)
    dataset = Dataset(tmp_path, robot_spec=spec)
    np.testing.assert_array_equal(dataset.states, states)
    np.testing.assert_array_equal(dataset.actions, actions)
    assert dataset.states.flags.c_contiguous
    assert dataset.states.dtype == np.float32
    assert dataset.instructions == ["task 0", "task 1"]
    episodes = np.repeat(np.arange(len(variant.lengths)), variant.lengths)
    np.testing.assert_array_equal(dataset.episode_index, episodes)
    np.testing.assert_array_equal(dataset.task_index, episodes % 2)
    assert dataset.episode_lengths.tolist() == variant.lengths
    assert dataset.episode_extra == {}

    frame_in_episode = np.concatenate([np.arange(length) for length in variant.lengths])
    for camera, label in enumerate(spec.camera_names):
        wanted = np.stack(
            [picture(spec, camera, int(e), int(t)) for e, t in zip(episodes, frame_in_episode, strict=True)]
        ).astype(int)
        tolerance = 0 if variant.storage == "image" else 4
        for start, stop in ((0, len(episodes)), (5, 7), (8, 17), (len(episodes) - 1, len(episodes))):
            error = np.abs(dataset.frames(label, start, stop) - wanted[start:stop]).mean(axis=(1, 2, 3))
            assert error.max() <= tolerance, f"frames {start} to {stop} of {label}: {error}"


def test_quantiles_are_recomputed(tmp_path):
    states, _ = write_lerobot(tmp_path, VARIANTS["image"])
    statistics = Dataset(tmp_path, robot_spec=make_spec()).statistics()["observation.state"]
    np.testing.assert_allclose(statistics["q01"], np.quantile(states.astype(float), 0.01, axis=0))


def test_a_spec_is_derived_only_on_request(tmp_path):
    states, _ = write_lerobot(tmp_path, VARIANTS["h264"])
    with pytest.raises(DatasetError, match="does not say what its numbers mean; give robot_file="):
        Dataset(tmp_path)
    spec = derive_robot_spec(tmp_path, action_convention="joint_target", gripper_sign="none")
    assert spec.name == "so100"
    assert spec.camera_names == ("exterior", "wrist")
    assert (spec.state_names, spec.action_names) == (("x", "y", "z"), ("dx", "dy"))
    assert (spec.cameras[0].height, spec.cameras[0].width, spec.control_hz) == (16, 24, 20.0)
    np.testing.assert_allclose([channel.low for channel in spec.state], states.min(axis=0))
    assert Dataset(tmp_path, robot_spec=spec).num_frames == len(states)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (make_spec(state=4), r"observation.state has shape \[3\], the spec \[4\]"),
        (make_spec(size=(32, 24)), r"exterior has \[16, 24, 3\], the spec \[32, 24, 3\]"),
        (make_spec(hz=10.0), "fps is 20, control_hz 10"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(tmp_path, spec, message):
    write_lerobot(tmp_path, VARIANTS["image"])
    with pytest.raises(DatasetError, match=message):
        Dataset(tmp_path, robot_spec=spec)


def edit_info(root, change):
    info = json.loads((root / "meta/info.json").read_text())
    change(info["features"])
    (root / "meta/info.json").write_text(json.dumps(info))


def derive(root):
    return derive_robot_spec(root, action_convention="joint_target", gripper_sign="none")


DEPTH = {
    "0.6.1": {"dtype": "video", "shape": [16, 24, 1], "info": {"is_depth_map": True}},
    "marked, three channels": {"dtype": "video", "shape": [16, 24, 3], "info": {"is_depth_map": True}},
    "0.4": {"dtype": "video", "shape": [16, 24, 3], "info": {"video.is_depth_map": True}},
    "2.1": {"dtype": "video", "shape": [16, 24, 3], "video_info": {"video.is_depth_map": True}},
    "one channel": {"dtype": "image", "shape": [16, 24, 1], "info": None},
    "channel first": {"dtype": "image", "shape": [1, 16, 24]},
    "no channel": {"dtype": "image", "shape": [16, 24]},
}


@pytest.mark.parametrize("name", DEPTH)
def test_depth_cameras_are_excepted(tmp_path, name):
    write_lerobot(tmp_path, VARIANTS["image"])
    edit_info(tmp_path, lambda features: features.update({"observation.images.front_depth": DEPTH[name]}))
    assert derive(tmp_path).camera_names == ("exterior", "wrist")


def test_pictures_with_channels_first_are_pictures(tmp_path):
    write_lerobot(tmp_path, VARIANTS["image"])

    def turn(features):
        features["observation.images.wrist"] |= {
            "shape": [3, 16, 24],
            "names": ["channels", "height", "width"],
        }
        features["observation.images.exterior"] |= {"shape": [3, 16, 24], "names": None}

    edit_info(tmp_path, turn)
    spec = derive(tmp_path)
    assert [(camera.height, camera.width) for camera in spec.cameras] == [(16, 24)] * 2
    assert Dataset(tmp_path, robot_spec=spec).frames("wrist", 0, 1).shape == (1, 16, 24, 3)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a\\b", "..", ".hidden", "a\0b", "\ud800", "x" * 101])
def test_camera_names_that_cannot_name_a_file_are_refused(tmp_path, name):
    write_lerobot(tmp_path, VARIANTS["image"])

    def rename(features):
        features[f"observation.images.{name}"] = features.pop("observation.images.wrist")

    edit_info(tmp_path, rename)
    with pytest.raises(DatasetError, match="cannot name a file; give 1 to 100 printable characters"):
        derive(tmp_path)


def replace_vectors(root, change):
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        for name in ("observation.state", "action"):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, change(table[name].to_pylist()))
        pq.write_table(table, path)


INTEGERS = {
    "int64": lambda rows: pa.array([[round(x * 10) for x in row] for row in rows], pa.list_(pa.int64())),
    "int32, large lists": lambda rows: pa.array(
        [[round(x * 10) for x in row] for row in rows], pa.large_list(pa.int32())
    ),
    "lists of lists": lambda rows: pa.array(
        [[[round(x * 10)] for x in row] for row in rows], pa.list_(pa.list_(pa.float64()))
    ),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_and_nested_columns_are_numbers(tmp_path, name):
    states, actions = write_lerobot(tmp_path, VARIANTS["image"])
    replace_vectors(tmp_path, INTEGERS[name])
    dataset = Dataset(tmp_path, robot_spec=derive(tmp_path))
    np.testing.assert_array_equal(dataset.states, np.round(states.astype(float) * 10))
    np.testing.assert_array_equal(dataset.actions, np.round(actions.astype(float) * 10))


NO_NUMBERS = {
    "text": (lambda rows: pa.array([[str(x) for x in row] for row in rows]), "want numbers"),
    "a null": (lambda rows: pa.array([[None, *row[1:]] for row in rows]), "nulls; want numbers"),
    "a missing row": (lambda rows: pa.array([None, *rows[1:]]), "nulls; want numbers|several lengths"),
    "ragged": (lambda rows: pa.array([row[:-1] if i == 0 else [*row, 0.0] if i == 1 else row
                                      for i, row in enumerate(rows)]), "rows of several lengths"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_columns_without_numbers_are_refused(tmp_path, name):
    change, message = NO_NUMBERS[name]
    write_lerobot(tmp_path, VARIANTS["image"])
    replace_vectors(tmp_path, change)
    with pytest.raises(DatasetError, match=message):
        derive(tmp_path)


@pytest.mark.parametrize(
    "pattern", ["../{chunk_index}.parquet", "/etc/passwd", "{camera}", "{chunk_index.x}"]
)
def test_file_patterns_that_lead_elsewhere_are_refused(tmp_path, pattern):
    write_lerobot(tmp_path, VARIANTS["image"])
    path = tmp_path / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_path": pattern}))
    with pytest.raises(DatasetError, match="has the file pattern"):
        derive(tmp_path)


def test_older_formats_are_refused_with_the_way_out(tmp_path):
    write_lerobot(tmp_path, VARIANTS["image"])
    path = tmp_path / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codebase_version": "v2.1"}))
    command = r"python -m lerobot\.scripts\.convert_dataset_v21_to_v30 --repo-id="
    with pytest.raises(DatasetError, match=r"format 'v2\.1'.*" + command):
        Dataset(tmp_path, robot_spec=make_spec())


def test_foreign_datasets_are_never_continued(tmp_path):
    from vla.data.writer import DatasetWriter

    write_lerobot(tmp_path, VARIANTS["image"])
    with pytest.raises(DatasetError, match="was not recorded by this program"):
        DatasetWriter(tmp_path, robot_spec=make_spec())
