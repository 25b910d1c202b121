"""Our datasets after other tools: no column that LeRobot refuses, and a second home for the robot spec."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixtures import make_episodes, write_episodes

from vla.data import layout, origin
from vla.data.layout import DatasetError
from vla.data.reader import Dataset
from vla.data.writer import DatasetWriter
from vla.files import sha256_file

EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-000.parquet"
# lerobot/datasets/compute_stats.py of 0.6.1; `aggregate_stats` refuses shapes of what it does not know
LEROBOT_STATISTICS = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}
PICTURE_KEYS = ["observation.images.exterior", "observation.images.wrist"]


def edit_info(root, change):
    info = json.loads((root / "meta/info.json").read_text())
    change(info)
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))


def forget(info):
    """What LeRobot does to info.json whenever it writes it."""
    del info["vla"]


def reported(caplog):
    """The lines about files that changed."""
    return [record.getMessage() for record in caplog.records if record.name == origin.__name__]


def edit_as_lerobot(root):
    """Another sentence for all episodes, as `modify_tasks` in place: pandas writes plain lists."""
    edit_info(root, forget)
    table = pq.read_table(root / DATA)
    for name in ("observation.state", "action"):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(table[name].to_pylist(), pa.list_(pa.float32())))
    task_index = pa.array(np.zeros(len(table), np.int64))
    table = table.set_column(table.schema.get_field_index("task_index"), "task_index", task_index)
    pq.write_table(table, root / DATA)
    pq.write_table(layout.tasks_table(["stack the cubes"]), root / "meta/tasks.parquet")
    edit_info(root, lambda info: info.update(total_tasks=1))


@pytest.mark.parametrize("storage", ["video", "image"])
def test_no_column_under_stats_is_unknown_to_lerobot(record, storage):
    root, _ = record([5, 7], storage=storage)
    names = pq.read_schema(root / EPISODES).names
    statistics = {name.rsplit("/", 1)[1] for name in names if name.startswith("stats/")}
    assert statistics == LEROBOT_STATISTICS
    assert [name for name in names if name.startswith("vla/")] == [
        f"vla/{key}/histogram" for key in PICTURE_KEYS
    ]


def test_a_dataset_with_the_older_column_is_continued(record, spec):
    root, _ = record([5])
    table = pq.read_table(root / EPISODES)
    renamed = [name.replace("vla/", "stats/") for name in table.column_names]
    pq.write_table(table.rename_columns(renamed), root / EPISODES)
    (root / "meta/vla.json").unlink()  # it is younger
    record([4], root=root, first=1)
    fresh, _ = record([5, 4], name="lift", root=root.with_name("fresh"))
    assert json.loads((root / "meta/stats.json").read_text()) == json.loads(
        (fresh / "meta/stats.json").read_text()
    )
    assert Dataset(root).num_episodes == 2
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert set(origin.read_files(root)) == there - {"meta/vla.json"}


@pytest.mark.parametrize("storage", ["video", "image"])
def test_every_file_is_listed_with_its_hash(record, storage, caplog):
    root, _ = record([4, 3], storage=storage)
    record([2], root=root, first=2, storage=storage)
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    files = origin.read_files(root)
    assert set(files) == there - {"meta/vla.json"}
    for name, entry in files.items():
        assert entry == {"sha256": sha256_file(root / name), "bytes": (root / name).stat().st_size}
    Dataset(root).content_hash()
    assert not reported(caplog)


def test_the_spec_survives_in_its_second_home(record, spec, caplog):
    root, _ = record([4, 3])
    edit_info(root, forget)
    dataset = Dataset(root)
    assert dataset.robot_spec == spec
    assert reported(caplog) == [
        f"{root}: another tool, or damage, changed what this program wrote: meta/info.json"
    ]
    corrected = dataclasses.replace(spec, gripper_sign="positive_closes")
    assert Dataset(root, robot_spec=corrected).robot_spec == corrected
    (root / "meta/vla.json").unlink()
    with pytest.raises(DatasetError, match="does not say what its numbers mean"):
        Dataset(root)


def test_a_spec_that_no_longer_fits_is_not_used(record):
    root, _ = record([4])

    def narrow(info):
        forget(info)
        info["features"]["action"]["shape"] = [1]

    edit_info(root, narrow)
    with pytest.raises(
        DatasetError, match=r"meta/vla\.json no longer fits: action has shape \[1\].*robot_file="
    ):
        Dataset(root)


def test_changed_files_are_named_once(record, caplog):
    root, _ = record([4, 3], storage="video")
    edit_as_lerobot(root)
    dataset = Dataset(root)
    (line,) = reported(caplog)
    for name in ("meta/info.json", "meta/tasks.parquet", DATA):
        assert name in line
    assert "mp4" not in line
    assert dataset.instructions == ["stack the cubes"]


def test_a_flipped_bit_is_refused_when_files_are_read(record, caplog):
    root, _ = record([4, 3], storage="video")
    path = root / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    content = bytearray(path.read_bytes())
    content[content.index(b"mdat") + 60] ^= 1
    path.write_bytes(content)
    dataset = Dataset(root)
    assert not reported(caplog)
    with pytest.raises(DatasetError, match=r"damaged: videos/observation\.images\.wrist/chunk-000/file-000"):
        dataset.content_hash()


@pytest.mark.parametrize("storage", ["video", "image"])
def test_a_dataset_edited_in_place_is_continued(record, spec, storage):
    root, _ = record([4, 3], storage=storage)
    before = Dataset(root)
    edit_as_lerobot(root)
    with DatasetWriter(root, robot_spec=spec, storage=storage) as writer:
        assert writer.num_episodes == 2
        write_episodes(writer, make_episodes(spec, [5], first=2), first=2)
    info = json.loads((root / "meta/info.json").read_text())
    assert "vla" in info
    dataset = Dataset(root)
    assert dataset.instructions == ["stack the cubes", "lift the blue cube"]
    assert dataset.episode_lengths.tolist() == [4, 3, 5]
    np.testing.assert_array_equal(dataset.states[:7], before.states)
    assert json.loads((root / "meta/stats.json").read_text())["action"]["count"] == [12]


def test_episodes_of_another_program_are_read_but_not_continued(record, spec):
    root, _ = record([4, 3])
    table = pq.read_table(root / EPISODES)
    kept = [name for name in table.column_names if not name.startswith("vla/")]
    pq.write_table(table.slice(0, 1), root / EPISODES)
    other = root / "meta/episodes/chunk-000/file-001.parquet"
    pq.write_table(table.slice(1, 1).select(kept), other)
    edit_info(root, forget)
    assert Dataset(root).num_episodes == 2
    with pytest.raises(
        DatasetError, match=r"file-001\.parquet holds episodes of another program.*not continued"
    ):
        DatasetWriter(root, robot_spec=spec, storage="image")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"files": {"a": 1}}'])
def test_a_damaged_second_home_is_named(record, content):
    root, _ = record([4])
    (root / "meta/vla.json").write_text(content)
    with pytest.raises(DatasetError, match=r"meta/vla\.json"):
        Dataset(root)


def test_a_stored_spec_that_is_invalid_is_named(record):
    root, _ = record([4])

    def spoil(info):
        info["vla"]["robot_spec"]["cameras"][0]["name"] = "../up"

    edit_info(root, spoil)
    with pytest.raises(
        DatasetError, match=r"the robot spec that .* stores is not valid: camera name '\.\./up'"
    ):
        Dataset(root)
