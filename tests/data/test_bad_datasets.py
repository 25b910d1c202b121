"""A damaged dataset fails when it is opened, and the message names the file and the cure."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixtures import damage_packet, make_spec

from vla.data.layout import DatasetError
from vla.data.reader import Dataset

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
BROKEN_PICTURE = {"bytes": b"\x89PNG\r\n", "path": "frame-000029.png"}
VIDEO = "videos/observation.images.wrist/chunk-000/file-000.mp4"


def complaint(root, **arguments):
    with pytest.raises(DatasetError) as caught:
        Dataset(root, **arguments)
    return str(caught.value)


@pytest.mark.parametrize("name", [DATA, EPISODES, VIDEO, "meta/tasks.parquet", "meta/info.json"])
def test_a_missing_or_truncated_file_is_named(record, name):
    root, _ = record([8, 8], storage="video")
    content = (root / name).read_bytes()
    (root / name).write_bytes(content[: len(content) // 2])
    message = complaint(root)
    assert str(root / name) in message
    assert "restore" in message
    (root / name).unlink()
    message = complaint(root)
    assert name in message or name.rsplit("/", 2)[0] in message


def replace_column(path, name, change):
    table = pq.read_table(path)
    values = change(table[name].to_pylist())
    table = table.set_column(
        table.schema.get_field_index(name), table.schema.field(name), pa.array(values, table[name].type)
    )
    pq.write_table(table, path)


def test_nan_is_located(record):
    root, _ = record([4, 5])

    def spoil(rows):
        rows[6] = [0.0, float("nan"), 0.0]
        return rows

    replace_column(root / DATA, "observation.state", spoil)
    assert "is nan in 's1' at frame 2 of episode 1 (1 such values)" in complaint(root)


def test_lost_rows_are_noticed(record):
    root, _ = record([4, 5])
    pq.write_table(pq.read_table(root / DATA).slice(0, 7), root / DATA)
    assert "episode 1 of" in (message := complaint(root))
    assert "has 3 frames in data/ but 5 in meta/episodes" in message


def test_rows_out_of_order_are_noticed(record):
    root, _ = record([4, 5])
    replace_column(root / DATA, "episode_index", lambda rows: rows[::-1])
    assert "out of order" in complaint(root)


def test_lost_episode_rows_are_noticed(record):
    root, _ = record([4, 5])
    pq.write_table(pq.read_table(root / EPISODES).slice(0, 1), root / EPISODES)
    assert "describes 1 episodes, meta/info.json says 2" in complaint(root)


def test_an_unknown_task_index_is_noticed(record):
    root, _ = record([4, 5])
    replace_column(root / DATA, "task_index", lambda rows: [7] * len(rows))
    assert "task_index [7] in data/ has no line in meta/tasks.parquet" in complaint(root)


def test_a_missing_column_is_named(record):
    root, _ = record([4])
    pq.write_table(pq.read_table(root / DATA).drop_columns(["action"]), root / DATA)
    assert "lacks the columns ['action']; it has ['observation.state'" in complaint(root)


def test_damaged_bytes_inside_a_video_or_image_are_noticed(record):
    for storage in ("video", "image"):
        root, _ = record([30], storage=storage, name=storage)
        path = root / (VIDEO if storage == "video" else DATA)
        if storage == "video":
            damage_packet(path, 5)
        else:
            replace_column(path, "observation.images.exterior", lambda rows: [*rows[:-1], BROKEN_PICTURE])
        dataset = Dataset(root)
        with pytest.raises(DatasetError, match=str(path)):
            dataset.frames("wrist" if storage == "video" else "exterior", 0, 30)


def test_another_robot_is_refused(record):
    root, _ = record([4])
    with pytest.raises(DatasetError, match=r"fps is 20, control_hz 10\.0"):
        Dataset(root, robot_spec=make_spec(hz=10.0))


def test_a_directory_without_dataset_is_refused(tmp_path):
    assert "is no LeRobotDataset" in complaint(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text(json.dumps({"codebase_version": "v3.0"}))
    assert "lacks ['features', 'fps', 'total_episodes']" in complaint(tmp_path)


def test_a_later_recording_schema_is_refused(record):
    root, _ = record([4])
    info = json.loads((root / "meta/info.json").read_text())
    info["vla"]["schema_version"] = 99
    (root / "meta/info.json").write_text(json.dumps(info))
    assert "schema version 99" in complaint(root)


def test_frames_that_do_not_exist_are_refused(record):
    root, _ = record([4])
    dataset = Dataset(root)
    with pytest.raises(ValueError, match=r"camera 'top' is none of \['exterior', 'wrist'\]"):
        dataset.frames("top", 0, 1)
    for start, stop in ((0, 5), (2, 2), (-1, 2)):
        with pytest.raises(ValueError, match="do not lie within"):
            dataset.frames("wrist", start, stop)


def test_arrays_cannot_be_changed_by_accident(record):
    root, _ = record([4])
    with pytest.raises(ValueError, match="read-only"):
        Dataset(root).states[0] = 0


def test_the_content_hash_follows_the_content(record, tmp_path):
    root, _ = record([4, 3], storage="video")
    before = Dataset(root).content_hash()
    shutil.copytree(root, tmp_path / "copy")
    assert Dataset(tmp_path / "copy").content_hash() == before
    path = tmp_path / "copy" / VIDEO
    path.write_bytes(path.read_bytes() + bytes([0, 0, 0, 8]) + b"free")
    assert Dataset(tmp_path / "copy").content_hash() != before
    assert np.array_equal(Dataset(root).states, Dataset(tmp_path / "copy").states)
