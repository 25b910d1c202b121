"""The reader on what LeRobot writes."""

import json

import numpy as np
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
    with pytest.raises(DatasetError, match="does not say what its numbers mean; pass robot_spec="):
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


def test_older_formats_are_refused_with_the_way_out(tmp_path):
    write_lerobot(tmp_path, VARIANTS["image"])
    path = tmp_path / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codebase_version": "v2.1"}))
    with pytest.raises(DatasetError, match=r"format 'v2\.1'.*convert_dataset_v21_to_v30"):
        Dataset(tmp_path, robot_spec=make_spec())


def test_foreign_datasets_are_never_continued(tmp_path):
    from vla.data.writer import DatasetWriter

    write_lerobot(tmp_path, VARIANTS["image"])
    with pytest.raises(DatasetError, match="was not recorded by this program"):
        DatasetWriter(tmp_path, robot_spec=make_spec())
