"""Recordings in HDF5, written by the published layouts of robomimic, LIBERO and ALOHA."""

import dataclasses
import io
import json

import h5py
import numpy as np
import pytest
from PIL import Image

from experiments.convert import convert, read_mapping
from vla.data import hdf5
from vla.data.hdf5 import find_files, read_episodes, read_pictures, robot_spec_of
from vla.data.layout import DatasetError
from vla.data.reader import Dataset
from vla.data.writer import DatasetWriter
from vla.files import DirectoryInUse
from vla.registry import SettingError

ROBOMIMIC_STATE = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
ALOHA_CAMERAS = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
SIZE = (16, 24)


def smooth(episode, t, camera=0):
    """A picture whose rows and colors differ, so that turned or swapped ones are noticed."""
    rows = np.linspace(0, 90, SIZE[0])[:, None, None] + np.zeros((*SIZE, 3))
    return (rows + [100, 50, 0] + 10 * episode + t + 5 * camera).astype(np.uint8)


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def write_robomimic(path, lengths=(5, 7, 4)):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        data.attrs["problem_info"] = json.dumps({"language_instruction": "put the bowl on the plate"})
        for number, length in zip((0, 2, 10), lengths, strict=True):  # in this order, not 0, 10, 2
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            demo.create_dataset("actions", data=rng.uniform(-1, 1, (length, 7)))
            for name in ("rewards", "dones"):
                demo.create_dataset(name, data=np.zeros(length))
            obs = demo.create_group("obs")
            for key, size in ROBOMIMIC_STATE.items():
                obs.create_dataset(key, data=rng.normal(size=(length, size)))
            for camera, key in enumerate(("agentview_image", "robot0_eye_in_hand_image")):
                pictures = np.stack([smooth(number, t, camera) for t in range(length)])
                obs.create_dataset(key, data=pictures, chunks=(1, *SIZE, 3), compression="gzip")
        file.create_group("mask").create_dataset("train", data=np.array([b"demo_0"]))


def write_aloha(folder, lengths=(5, 4), *, kind="raw"):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number, length in enumerate(lengths):
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"], file.attrs["compress"] = False, kind != "raw"
            for key in ("observations/qpos", "observations/qvel", "action"):
                file.create_dataset(key, data=rng.normal(size=(length, 14)))
            for camera, name in enumerate(ALOHA_CAMERAS):
                pictures = [smooth(number, t, camera) for t in range(length)]
                key = f"observations/images/{name}"
                if kind == "raw":
                    file.create_dataset(key, data=np.stack(pictures))
                    continue
                encoded = [jpeg(picture) for picture in pictures]
                if kind == "padded":
                    widest = max(map(len, encoded)) + 7
                    padded = np.stack([np.pad(one, (0, widest - len(one))) for one in encoded])
                    file.create_dataset(key, data=padded)
                else:
                    cells = file.create_dataset(key, (length,), dtype=h5py.vlen_dtype(np.uint8))
                    for t, one in enumerate(encoded):
                        cells[t] = one


def run(source, dataset, name, **changes):
    mapping = read_mapping(name, {"instruction": "lift the cube"} | changes)
    convert(source=source, dataset=dataset, mapping=mapping, storage="image")
    return Dataset(dataset)


def test_robomimic_comes_over_exactly(tmp_path, capsys):
    write_robomimic(tmp_path / "demo.hdf5")
    dataset = run(tmp_path / "demo.hdf5", tmp_path / "d", "robomimic")
    assert dataset.episode_lengths.tolist() == [5, 7, 4]
    with h5py.File(tmp_path / "demo.hdf5") as file:
        demos = [file[f"data/demo_{number}"] for number in (0, 2, 10)]
        states = [
            np.concatenate([demo[f"obs/{key}"][:] for key in ROBOMIMIC_STATE], axis=1) for demo in demos
        ]
        actions = [demo["actions"][:] for demo in demos]
    np.testing.assert_array_equal(dataset.states, np.concatenate(states).astype(np.float32))
    np.testing.assert_array_equal(dataset.actions, np.concatenate(actions).astype(np.float32))
    wanted = [smooth(number, t, 1) for number, n in ((0, 5), (2, 7), (10, 4)) for t in range(n)]
    np.testing.assert_array_equal(dataset.frames("robot0_eye_in_hand", 0, 16), np.stack(wanted))
    assert dataset.instructions == ["lift the cube"]
    sources = [f"demo.hdf5:data/demo_{number}" for number in (0, 2, 10)]
    assert dataset.episode_extra == {"source": sources}
    spec = dataset.robot_spec
    assert (spec.name, spec.control_hz, spec.gripper_sign) == ("panda", 20.0, "positive_closes")
    assert spec.state_names[:4] == ("eef_x", "eef_y", "eef_z", "eef_qx")
    assert "3 episodes, 16 frames" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["raw", "padded", "variable"])
def test_aloha_comes_over(tmp_path, kind):
    write_aloha(tmp_path / "raw", kind=kind)
    dataset = run(tmp_path / "raw", tmp_path / "d", "aloha")
    assert dataset.episode_lengths.tolist() == [5, 4]
    assert dataset.robot_spec.camera_names == ALOHA_CAMERAS
    with h5py.File(tmp_path / "raw/episode_1.hdf5") as file:
        np.testing.assert_array_equal(dataset.states[5:], file["observations/qpos"][:].astype(np.float32))
        np.testing.assert_array_equal(dataset.actions[5:], file["action"][:].astype(np.float32))
    wanted = np.stack([smooth(1, t, 3) for t in range(4)]).astype(int)
    assert np.abs(dataset.frames("cam_right_wrist", 5, 9) - wanted).max() <= (0 if kind == "raw" else 4)


def test_pictures_are_turned_as_the_mapping_says(tmp_path):
    write_robomimic(tmp_path / "demo.hdf5")
    camera = {"key": "obs/agentview_image", "is_upside_down": True, "color_order": "bgr"}
    dataset = run(tmp_path / "demo.hdf5", tmp_path / "d", "robomimic", cameras={"front": camera})
    np.testing.assert_array_equal(dataset.frames("front", 0, 1)[0], smooth(0, 0)[::-1, :, ::-1])


def test_the_sentence_may_be_in_an_attribute(tmp_path):
    write_robomimic(tmp_path / "demo.hdf5")
    place = "data@problem_info:language_instruction"
    dataset = run(
        tmp_path / "demo.hdf5", tmp_path / "d", "robomimic", instruction=None, instruction_attribute=place
    )
    assert dataset.instructions == ["put the bowl on the plate"]


def test_an_interrupted_conversion_continues(tmp_path, monkeypatch):
    write_aloha(tmp_path / "raw", lengths=(5, 4, 3))
    real, begun = read_pictures, []

    def interrupted(episode, mapping):
        begun.append(episode.path.name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(episode, mapping)

    monkeypatch.setattr("experiments.convert.read_pictures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "raw", tmp_path / "d", "aloha")
    assert Dataset(tmp_path / "d").num_episodes == 1
    dataset = run(tmp_path / "raw", tmp_path / "d", "aloha")
    assert begun == ["episode_0.hdf5", "episode_1.hdf5", "episode_1.hdf5", "episode_2.hdf5"]
    assert dataset.episode_lengths.tolist() == [5, 4, 3]
    run(tmp_path / "raw", tmp_path / "d", "aloha")
    assert len(begun) == 4
    cameras = {name: {"key": f"observations/images/{name}", "color_order": "bgr"} for name in ALOHA_CAMERAS}
    with pytest.raises(DatasetError, match="was recorded with extra_info"):
        run(tmp_path / "raw", tmp_path / "d", "aloha", cameras=cameras)


def spoil(path, key, values):
    with h5py.File(path, "a") as file:
        del file[key]
        if values is not None:
            file.create_dataset(key, data=values)


FIRST = "observations/images/cam_high"
FAULTS = {
    "no camera": (FIRST, None, r"episode_1\.hdf5:/ has no dataset 'observations/images/cam_high'; it has "),
    "short": ("action", np.zeros((2, 14)), r"'action': 2.*they must be as many"),
    "narrow": (
        "action",
        np.zeros((4, 7)),
        r"'action' of .* is float64\[4, 7\]; the mapping names 14 numbers",
    ),
    "nan": ("action", np.full((4, 14), np.nan), r"'left_waist' of .* is nan in frame 0"),
    "text": ("action", np.array([[b"x"] * 14] * 4), r"the mapping names 14 numbers"),
    "no picture": (FIRST, np.zeros((4, 9), np.uint8), r"frame 0 of .* is damaged, or no PNG or JPEG"),
    "depth": (FIRST, np.zeros((4, 16, 24, 1), np.uint8), r"is uint8\[16, 24, 1\]; want uint8\[h, w, 3\]"),
    "another size": (FIRST, np.zeros((4, 8, 8, 3), np.uint8), r"has pictures of .*datasets of their own"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_named_before_anything_is_written(tmp_path, name):
    key, values, message = FAULTS[name]
    write_aloha(tmp_path / "raw")
    spoil(tmp_path / "raw/episode_1.hdf5", key, values)
    with pytest.raises(DatasetError, match=message):
        run(tmp_path / "raw", tmp_path / "d", "aloha")
    assert not (tmp_path / "d").exists()


def test_other_sources_and_mappings_are_refused(tmp_path):
    write_robomimic(tmp_path / "demo.hdf5")
    with pytest.raises(DatasetError, match=r"has no group 'demo_\*'; it has \['data', 'data/demo_0'"):
        run(tmp_path / "demo.hdf5", tmp_path / "d", "robomimic", episodes="demo_*")
    with pytest.raises(DatasetError, match="has no instruction; give instruction="):
        run(tmp_path / "demo.hdf5", tmp_path / "d", "robomimic", instruction=None)
    with pytest.raises(DatasetError, match=r"data has the attributes \['env_args'"):
        run(
            tmp_path / "demo.hdf5",
            tmp_path / "d",
            "robomimic",
            instruction=None,
            instruction_attribute="data@x",
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no directory with files that end in"):
        find_files(tmp_path / "empty")
    (tmp_path / "empty/a.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(DatasetError, match=r"a\.hdf5 cannot be opened as HDF5"):
        run(tmp_path / "empty", tmp_path / "d", "aloha")
    with pytest.raises(SettingError, match=r"mapping is 'alhoa'; did you mean 'aloha'"):
        read_mapping("alhoa", {})


def test_a_wrong_key_of_a_mapping_names_the_nearest(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("robot: x\nepisode: ''\n")
    with pytest.raises(SettingError, match=r"unknown key 'mine\.yaml\.episode'; did you mean 'episodes'"):
        read_mapping(str(path), {})
    path.write_text("- a\n")
    with pytest.raises(DatasetError, match="holds no table"):
        read_mapping(str(path), {})
    with pytest.raises(SettingError, match="at least one key for each"):
        read_mapping("aloha", {"cameras": {}})
    with pytest.raises(SettingError, match="has 2 names and 3 units"):
        read_mapping("aloha", {"action": [{"key": "a", "names": ["x", "y"], "units": ["1", "1", "1"]}]})


def test_units_are_one_for_all_or_one_each(tmp_path):
    write_robomimic(tmp_path / "demo.hdf5")
    mapping = read_mapping("robomimic", {"instruction": "lift"})
    spec = robot_spec_of(mapping, read_episodes(tmp_path / "demo.hdf5", mapping))
    assert [channel.unit for channel in spec.state] == ["m"] * 3 + ["1"] * 4 + ["m"] * 2
    aloha = read_mapping("aloha", {})
    assert [key.units.count("rad") for key in aloha.action] == [12]


def test_another_writer_is_waited_for_by_nobody(tmp_path):
    write_aloha(tmp_path / "raw")
    dataset = run(tmp_path / "raw", tmp_path / "d", "aloha")
    info = dataset.info["vla"]["extra_info"]
    writer = DatasetWriter(dataset.root, robot_spec=dataset.robot_spec, storage="image", extra_info=info)
    with writer, pytest.raises(DirectoryInUse):
        run(tmp_path / "raw", tmp_path / "d", "aloha")


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    write_aloha(tmp_path / "raw")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    mapping = dataclasses.replace(read_mapping("aloha", {}), instruction="x")
    with pytest.raises(DatasetError, match=r"reading HDF5 needs h5py: pip install -e '\.\[hdf5\]'"):
        hdf5.read_episodes(tmp_path / "raw/episode_0.hdf5", mapping)
