import contextlib
import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixtures import make_episodes, make_spec, picture, write_episodes

from vla.data import layout
from vla.data.frame_cache import open_frame_cache
from vla.data.layout import DatasetError
from vla.data.reader import Dataset
from vla.data.writer import DatasetWriter
from vla.spec import CameraSpec, Channel, SpecMismatch

FLOATS = pa.list_(pa.float32(), 3)
INDEX_TYPES = {
    "timestamp": pa.float32(),
    "frame_index": pa.int64(),
    "episode_index": pa.int64(),
    "index": pa.int64(),
    "task_index": pa.int64(),
}


def columns_of(path):
    return {field.name: field.type for field in pq.read_schema(path)}


@pytest.mark.parametrize("storage", ["video", "image"])
def test_data_files_have_the_columns_that_lerobot_writes(record, storage):
    root, episodes = record([5, 7], storage=storage)
    path = root / "data/chunk-000/file-000.parquet"
    picture_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cameras = ["observation.images.exterior", "observation.images.wrist"]
    pictures = dict.fromkeys(cameras, picture_type) if storage == "image" else {}
    expected = {"observation.state": FLOATS, "action": pa.list_(pa.float32(), 2), **pictures, **INDEX_TYPES}
    assert columns_of(path) == expected
    assert list(columns_of(path)) == list(expected)

    with pq.ParquetFile(path) as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [5, 7]
        assert file.metadata.row_group(0).column(0).compression == "SNAPPY"
    table = pq.read_table(path)
    assert table["frame_index"].to_pylist() == [*range(5), *range(7)]
    assert table["index"].to_pylist() == list(range(12))
    assert table["episode_index"].to_pylist() == [0] * 5 + [1] * 7
    assert table["task_index"].to_pylist() == [0] * 5 + [1] * 7
    np.testing.assert_array_equal(
        table["timestamp"].to_numpy(), (np.array([*range(5), *range(7)]) / 20).astype(np.float32)
    )
    assert np.array_equal(table["action"][6].as_py(), episodes[1].actions[1])
    if storage == "image":
        assert table[cameras[0]][3].as_py()["path"] == "frame-000003.png"
        assert table[cameras[0]][3].as_py()["bytes"].startswith(b"\x89PNG")


@pytest.mark.parametrize("storage", ["video", "image"])
def test_info_declares_every_column(record, storage):
    root, _ = record([5, 7], storage=storage)
    info = json.loads((root / "meta/info.json").read_text())
    wanted = {
        "codebase_version": "v3.0",
        "fps": 20,
        "total_episodes": 2,
        "total_frames": 12,
        "total_tasks": 2,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "splits": {"train": "0:2"},
        "robot_type": "test_arm",
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if storage == "video"
        else None,
    }
    assert {key: info[key] for key in wanted} == wanted
    assert isinstance(info["fps"], int)
    features = info["features"]
    data_columns = [key for key in features if features[key]["dtype"] != "video"]
    assert data_columns == list(columns_of(root / "data/chunk-000/file-000.parquet"))
    assert list(features)[-5:] == list(INDEX_TYPES)
    assert features["action"] == {"dtype": "float32", "shape": [2], "names": ["a0", "a1"]}
    assert features["index"] == {"dtype": "int64", "shape": [1], "names": None}
    camera = features["observation.images.wrist"]
    assert (camera["dtype"], camera["shape"]) == (storage, [16, 24, 3])
    assert camera["names"] == ["height", "width", "channel"]
    if storage == "video":
        assert camera["info"]["video.codec"] == "h264"
        assert camera["info"]["video.pix_fmt"] == "yuv420p"
        assert (camera["info"]["video.g"], camera["info"]["video.crf"]) == (2, 18)


def test_episode_rows_say_where_everything_is(record):
    root, _ = record([5, 7], storage="video")
    columns = columns_of(root / "meta/episodes/chunk-000/file-000.parquet")
    key = "observation.images.wrist"
    integers = [
        "episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index",
        "dataset_to_index", f"videos/{key}/chunk_index", f"videos/{key}/file_index",
        "meta/episodes/chunk_index", "meta/episodes/file_index", "seed",
    ]  # fmt: skip
    assert all(columns[name] == pa.int64() for name in integers)
    assert columns["tasks"] == pa.list_(pa.string())
    assert columns[f"videos/{key}/from_timestamp"] == pa.float64()
    assert (columns["task_name"], columns["success"]) == (pa.string(), pa.bool_())
    for feature in ("observation.state", "action", *INDEX_TYPES):
        for name in ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99"):
            assert columns[f"stats/{feature}/{name}"] == pa.list_(pa.float64())
        assert columns[f"stats/{feature}/count"] == pa.list_(pa.int64())
    assert columns[f"stats/{key}/mean"] == pa.list_(pa.list_(pa.list_(pa.float64())))

    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(0, 5), (5, 12)]
    times = [(row[f"videos/{key}/from_timestamp"], row[f"videos/{key}/to_timestamp"]) for row in rows]
    assert times == [(0.0, 0.25), (0.25, 0.6)]
    assert rows[1]["tasks"] == ["lift the green cube"]
    assert (rows[1]["seed"], rows[1]["task_name"], rows[1]["success"]) == (101, "lift", False)


def test_the_instruction_is_the_pandas_index_of_tasks(record):
    root, _ = record([3, 3, 3, 3])
    table = pq.read_table(root / "meta/tasks.parquet")
    assert table.to_pydict() == {
        "task_index": [0, 1, 2],
        "task": [f"lift the {color} cube" for color in ("red", "green", "blue")],
    }
    pandas = json.loads(table.schema.metadata[b"pandas"])
    assert pandas["index_columns"] == ["task"]
    assert [column["name"] for column in pandas["columns"]] == ["task_index", "task"]


def test_stats_are_exact_over_all_episodes_and_sessions(record, spec):
    root, first = record([40, 30])
    _, second = record([25], root=root, first=2)
    stats = json.loads((root / "meta/stats.json").read_text())
    actions = np.concatenate([episode.actions for episode in first + second]).astype(float)
    shares = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
    for name, share in shares.items():
        np.testing.assert_allclose(stats["action"][name], np.quantile(actions, share, axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(axis=0), rtol=1e-12)
    assert stats["action"]["count"] == [95]
    assert stats["index"]["max"] == [94]

    frames = np.stack([picture(spec, 1, e, t) for e, n in enumerate((40, 30, 25)) for t in range(n)]) / 255.0
    image = stats["observation.images.wrist"]
    flat = frames.reshape(-1, 3)
    for name, value in {
        "min": flat.min(axis=0),
        "max": flat.max(axis=0),
        "mean": flat.mean(axis=0),
        "std": flat.std(axis=0),
        **{name: np.quantile(flat, share, axis=0) for name, share in shares.items()},
    }.items():
        assert np.shape(image[name]) == (3, 1, 1)
        np.testing.assert_allclose(np.ravel(image[name]), value, rtol=1e-9, err_msg=name)
    assert image["count"] == [95]


@pytest.mark.parametrize("storage", ["video", "image"])
def test_a_dataset_can_be_continued(record, spec, storage):
    root, first = record([6, 5], storage=storage)
    before = {p: p.read_bytes() for p in root.rglob("*-000.parquet")}
    with DatasetWriter(root, robot_spec=spec, storage=storage) as writer:
        assert (writer.num_episodes, writer.num_frames) == (2, 11)
        second = make_episodes(spec, [4], first=2)
        write_episodes(writer, second, first=2)
        assert [extra["seed"] for extra in writer.episode_extras] == [100, 101, 102]
    assert all(path.read_bytes() == content for path, content in before.items()), (
        "finished files were rewritten"
    )

    dataset = Dataset(root)
    np.testing.assert_array_equal(dataset.states, np.concatenate([e.states for e in first + second]))
    assert dataset.episode_lengths.tolist() == [6, 5, 4]
    frames = dataset.frames("exterior", 9, 15)
    wanted = [picture(spec, 0, 1, t) for t in (3, 4)] + [picture(spec, 0, 2, t) for t in range(4)]
    assert np.abs(frames.astype(int) - np.stack(wanted)).max() <= (0 if storage == "image" else 3)


@pytest.mark.parametrize("storage", ["video", "image"])
def test_files_roll_over_between_episodes(record, spec, storage, monkeypatch):
    monkeypatch.setattr(layout, "DATA_FILE_BYTES", 8_000 if storage == "image" else 1500)
    monkeypatch.setattr(layout, "VIDEO_FILE_BYTES", 5_000)
    monkeypatch.setattr(layout, "FILES_PER_CHUNK", 1000)
    root, episodes = record([9] * 7, storage=storage)
    assert len(list((root / "data").rglob("*.parquet"))) > 1
    if storage == "video":
        assert len(list((root / "videos/observation.images.wrist").rglob("*.mp4"))) > 1
    dataset = Dataset(root)
    np.testing.assert_array_equal(dataset.actions, np.concatenate([e.actions for e in episodes]))
    frames = dataset.frames("wrist", 0, 63)
    wanted = np.stack([picture(spec, 1, e, t) for e in range(7) for t in range(9)])
    assert np.abs(frames.astype(int) - wanted).max() <= (0 if storage == "image" else 3)


def test_one_dimensional_features_are_plain_columns(record):
    spec = make_spec(state=1, action=1)
    root, episodes = record([4], spec=spec)
    columns = columns_of(root / "data/chunk-000/file-000.parquet")
    assert columns["action"] == pa.float32()
    np.testing.assert_array_equal(Dataset(root).actions, episodes[0].actions)


def test_discarded_and_unsaved_frames_leave_no_trace(tmp_path, spec):
    episodes = make_episodes(spec, [4, 4, 3])
    with DatasetWriter(tmp_path / "d", robot_spec=spec) as writer:
        write_episodes(writer, episodes[:1])
        for discard in (True, False):
            image = {name: picture(spec, 0, 3, 3) for name in spec.camera_names}
            writer.add_frame(image, episodes[1].states[0], episodes[1].actions[0])
            assert writer.episode_length == 1
            if discard:
                writer.discard_episode()
    dataset = Dataset(tmp_path / "d")
    assert dataset.num_frames == 4
    with pytest.raises(DatasetError, match="is closed"):
        writer.discard_episode()


def refused(root, spec, **changes):
    with pytest.raises((DatasetError, SpecMismatch)) as caught:
        DatasetWriter(root, robot_spec=spec, **{"storage": "image", **changes})
    return str(caught.value)


def test_continuing_as_something_else_is_refused(record, spec, tmp_path):
    root, _ = record([3])
    assert "control_hz" in refused(root, make_spec(hz=10.0))
    assert "storage image, now it is video" in refused(root, spec, storage="video")
    assert "extra_info {}, now it is {'env': 1}" in refused(root, spec, extra_info={"env": 1})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("do not touch")
    assert "holds ['thesis.tex']" in refused(tmp_path / "other", spec)
    DatasetWriter(root, robot_spec=spec, storage="image").close()  # refusals let go of the lock


def test_a_recording_that_failed_before_its_first_episode_binds_nobody(tmp_path, spec):
    root = tmp_path / "d"
    with contextlib.suppress(KeyboardInterrupt), DatasetWriter(root, robot_spec=spec, extra_info={"bump": 9}):
        raise KeyboardInterrupt
    with DatasetWriter(
        root, robot_spec=make_spec(hz=10.0), storage="image", extra_info={"bump": 1}
    ) as writer:
        write_episodes(writer, make_episodes(make_spec(hz=10.0), [3]))
    assert Dataset(root).robot_spec.control_hz == 10.0
    assert "extra_info {'bump': 1}, now it is {}" in refused(root, make_spec(hz=10.0))


@pytest.mark.parametrize(
    "name",
    ["", "wrist/left", "/camera/color", "../up", "..", "a\\b", ".a", "a\0", "a\nb", "\ud800", "x" * 101],
)
def test_a_camera_name_is_one_path_component(name):
    with pytest.raises(ValueError, match="cannot name a file"):
        CameraSpec(name=name, height=16, width=24)


def test_ordinary_names_are_recorded_and_trained_on(record, tmp_path):
    names = ("front.left", "Kamera rechts", "\u624b\u9996" * 30, "x" * 100)
    cameras = tuple(CameraSpec(name=name, height=16, width=24) for name in names)
    spec = dataclasses.replace(make_spec(), cameras=cameras)
    root, _ = record([3], spec=spec, storage="video")
    assert set(open_frame_cache(Dataset(root), tmp_path / "cache", progress=False)) == set(names)


@pytest.mark.parametrize("change", [{"name": "a\ud800"}, {"unit": "\ud800"}, {"name": ""}, {"unit": ""}])
def test_names_of_channels_are_utf8(change):
    with pytest.raises(ValueError, match="give text in valid UTF-8"):
        Channel(**({"name": "a", "unit": "1", "low": 0.0, "high": 1.0} | change))


def test_impossible_recordings_are_refused(tmp_path, spec):
    assert "even frame sizes" in refused(tmp_path / "d", make_spec(size=(15, 24)), storage="video")
    assert "none of" in refused(tmp_path / "d", spec, storage="gif")
    with pytest.raises(ValueError, match="no ratio of integers"):
        DatasetWriter(tmp_path / "d", robot_spec=make_spec(hz=18.8495559), storage="video")


def good_frame(spec):
    images = {name: picture(spec, 0, 0, 0) for name in spec.camera_names}
    return {"images": images, "state": np.zeros(3, np.float32), "action": np.zeros(2, np.float32)}


def test_bad_frames_are_refused_and_lose_nothing(tmp_path, spec):
    black = np.zeros((16, 24, 3), np.uint8)
    nan = np.array([0, np.nan], np.float32)
    cases = [
        ({"images": {"wrist": black}}, "no image of camera 'exterior'; there are images of .'wrist'"),
        ({"images": {"wrist": black, "exterior": black[:8]}}, r"uint8\[8, 24, 3\].*says uint8\[16, 24, 3\]"),
        ({"images": {"wrist": black, "exterior": black / 255}}, r"float64\[16, 24, 3\]"),
        ({"images": {"wrist": black, "exterior": black, "top": black}}, "unknown cameras .'top'"),
        (
            {"state": np.zeros(2, np.float32)},
            r"state of frame 1 of episode 0 is float32\[2\].*'s0', 's1', 's2'",
        ),
        ({"state": np.zeros(3, np.int64)}, r"int64\[3\]"),
        ({"action": nan}, "action of frame 1 of episode 0 has a1 = nan"),
        ({"action": np.full(2, np.inf, np.float32)}, "finite"),
    ]
    with DatasetWriter(tmp_path / "d", robot_spec=spec) as writer:
        writer.add_frame(**good_frame(spec))
        for change, message in cases:
            with pytest.raises(DatasetError, match=message):
                writer.add_frame(**(good_frame(spec) | change))
        writer.add_frame(**good_frame(spec))
        writer.save_episode("push", {"seed": 0})
    assert Dataset(tmp_path / "d").num_frames == 2


def in_units(unit, low, high):
    spec = make_spec(state=2, action=2)
    channel = Channel(name="elbow", unit=unit, low=low, high=high)
    return dataclasses.replace(spec, state=(spec.state[0], channel), action=(channel, spec.action[1]))


def record_values(root, spec, *episodes):
    with DatasetWriter(root, robot_spec=spec, storage="image") as writer:
        for state, action in episodes:
            for t in range(3):
                images = {name: picture(spec, c, 0, t) for c, name in enumerate(spec.camera_names)}
                vectors = (np.array(values, dtype=np.float32) for values in (state, action))
                writer.add_frame(images, *vectors)
            writer.save_episode("lift")


def test_values_outside_the_declared_ranges_are_named_once(tmp_path, caplog):
    spec = in_units("rad", -3.0, 3.0)
    record_values(tmp_path / "d", spec, ((0, 2.9), (3.0, 1)), ((0, -90), (45, 0)), ((0, 80), (45, 0)))
    (record,) = caplog.records
    text = record.getMessage()
    assert "values of episode 1 do not fit" in text
    assert "state 'elbow' ranges from -90 to -90, its spec says [-3, 3] rad: degrees?" in text
    assert "action 'elbow' ranges from 45 to 45, its spec says [-3, 3] rad: degrees?" in text
    assert "robot_file" in text


@pytest.mark.parametrize(("unit", "value"), [("m", 90.0), ("rad", 500.0)])
def test_only_what_looks_like_degrees_is_called_so(tmp_path, caplog, unit, value):
    record_values(tmp_path / "d", in_units(unit, -3.0, 3.0), ((0, value), (0, 0)))
    assert f"[-3, 3] {unit}. " in caplog.text


def test_bad_episodes_are_refused_and_can_be_corrected(tmp_path, spec):
    with DatasetWriter(tmp_path / "d", robot_spec=spec) as writer:
        with pytest.raises(DatasetError, match="no frames"):
            writer.save_episode("push")
        writer.add_frame(**good_frame(spec))
        bad = {"a/b": 1}, {"length": 1}, {"pose": [1, 2]}, {"seed": 2**63}, {"seed": -(2**63) - 1}
        for extra in (*bad, {"note": "\ud800"}, {"\ud800": 1}, {"": 1}):
            with pytest.raises(DatasetError, match="is not allowed"):
                writer.save_episode("push", extra)
        with pytest.raises(DatasetError, match="empty instruction"):
            writer.save_episode(" ")
        with pytest.raises(DatasetError, match="no valid UTF-8 text"):
            writer.save_episode("lift \udcff")
        writer.save_episode("push", {"seed": np.int64(4)})
        writer.add_frame(**good_frame(spec))
        with pytest.raises(DatasetError, match="differ from those of earlier"):
            writer.save_episode("push", {"seed": 4.0})
        writer.save_episode("push", {"seed": 5})
    assert Dataset(tmp_path / "d").episode_extra == {"seed": [4, 5]}


def test_closing_without_episodes_leaves_a_dataset_to_go_on_with(tmp_path, spec):
    DatasetWriter(tmp_path / "d", robot_spec=spec).close()
    with pytest.raises(DatasetError, match="is empty"):
        Dataset(tmp_path / "d")
    with DatasetWriter(tmp_path / "d", robot_spec=spec) as writer:
        write_episodes(writer, make_episodes(spec, [3]))
    assert Dataset(tmp_path / "d").num_episodes == 1
