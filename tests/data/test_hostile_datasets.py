"""Datasets are untrusted: formats by allowlist, sizes before pixels, paths that stay inside."""

import errno
import io
import json
import shutil
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixtures import make_episodes, make_spec, write_episodes
from PIL import Image

from vla.data import consolidate as consolidate_module
from vla.data import origin, tables
from vla.data.layout import DatasetError, path_from_pattern
from vla.data.reader import Dataset
from vla.data.windows import open_windows
from vla.data.writer import DatasetWriter, finish_recording
from vla.disk_faults import DiskFault

DATA = "data/chunk-000/file-000.parquet"
TASKS = "meta/tasks.parquet"
VIDEO = "videos/observation.images.wrist/chunk-000/file-000.mp4"
POSTSCRIPT = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n({}) (w) file closefile\nshowpage\n"


def encoded(form, *, mode="RGB", size=(24, 16)):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=form)
    return buffer.getvalue()


def announced_png(width, height):
    """The header of a PNG without pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT"


def replace_picture(root, content):
    """Put other bytes in the place of the first picture, as whoever made the dataset could."""
    table = pq.read_table(root / DATA)
    name = "observation.images.exterior"
    rows = table[name].to_pylist()
    rows[0]["bytes"] = content
    place = table.schema.get_field_index(name)
    pq.write_table(table.set_column(place, name, pa.array(rows, table[name].type)), root / DATA)


def edit_info(root, change):
    info = json.loads((root / "meta/info.json").read_text())
    info = change(info) or info
    (root / "meta/info.json").write_text(json.dumps(info, indent=3))


def test_a_picture_that_is_a_program_is_not_run(record, tmp_path):
    root, _ = record([4])
    marker = tmp_path / "marker"
    replace_picture(root, POSTSCRIPT.format(marker).encode())
    with pytest.raises(DatasetError, match=r"frame 0 in .*file-000\.parquet is damaged, or no PNG or JPEG"):
        Dataset(root).frames("exterior", 0, 4)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded("GIF"), "no PNG or JPEG"),
        (encoded("BMP"), "no PNG or JPEG"),
        (encoded("TIFF"), "no PNG or JPEG"),
        (encoded("PNG", mode="I;16"), "pixel format I;16"),
        (encoded("PNG", size=(16, 24)), r"is 24x16 \(h x w\), but info.json says 16x24"),
        (announced_png(20_000, 20_000), r"is 20000x20000|DecompressionBomb"),
        (announced_png(13_000, 13_000), r"is 13000x13000|DecompressionBomb"),
        (encoded("PNG")[:45], "is damaged"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 40, "is damaged"),
    ],
)
def test_other_formats_sizes_and_damage_are_refused_before_a_pixel(record, content, message):
    root, _ = record([4])
    replace_picture(root, content)
    with pytest.raises(DatasetError, match=message):
        Dataset(root).frames("exterior", 0, 4)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_png_and_jpeg_are_read(record, form):
    root, _ = record([4])
    replace_picture(root, encoded(form))
    assert not Dataset(root).frames("exterior", 0, 1).any()


FORMS = {
    "a list": lambda info: [info],
    "null": lambda info: None,
    "no features": lambda info: info.update(features=[]),
    "a feature is text": lambda info: info["features"].update(action="float32"),
    "a shape is a number": lambda info: info["features"]["action"].update(shape=2),
    "a shape is huge": lambda info: info["features"]["action"].update(shape=[10**9]),
    "info of a camera is a list": lambda info: info["features"]["observation.images.wrist"].update(info=[1]),
    "fps is text": lambda info: info.update(fps="20"),
    "fps is zero": lambda info: info.update(fps=0),
    "fps is infinite": lambda info: info.update(fps=float("inf")),
    "episodes are text": lambda info: info.update(total_episodes="2"),
    "episodes are a billion": lambda info: info.update(total_episodes=10**9),
    "episodes are negative": lambda info: info.update(total_episodes=-1),
    "vla is a list": lambda info: info.update(vla=[]),
    "the spec is null": lambda info: info["vla"].update(robot_spec=None),
    "a channel is misspelt": lambda info: info["vla"]["robot_spec"]["state"][0].update(nmae="x"),
    "a camera is huge": lambda info: info["vla"]["robot_spec"]["cameras"][0].update(height=10**9),
    "a rate is text": lambda info: info["vla"]["robot_spec"].update(control_hz="20"),
    "a limit overflows": lambda info: info["vla"]["robot_spec"]["action"][0].update(low=-1e308),
    "facts are a list": lambda info: info["vla"].update(extra_info=[1]),
    "the pattern is a number": lambda info: info.update(data_path=3),
}


@pytest.mark.parametrize("name", FORMS)
def test_an_info_json_of_another_form_is_a_dataset_error(record, name):
    root, _ = record([4])
    if name == "null":
        (root / "meta/info.json").write_text("null")
    else:
        edit_info(root, FORMS[name])
    with pytest.raises(DatasetError):
        Dataset(root)


@pytest.mark.parametrize(
    "pattern",
    [
        "../outside/{chunk_index}.parquet",
        "/etc/{file_index}",
        "{chunk_index:02000000000d}.parquet",
        "{chunk_index!r:>999999999}",
        "{chunk_index.__class__}",
        "a\0b",
    ],
)
def test_file_patterns_stay_inside_and_short(tmp_path, pattern):
    with pytest.raises(DatasetError, match="file pattern"):
        path_from_pattern(tmp_path, pattern, {"chunk_index": 0, "file_index": 0})


def test_files_at_an_unusual_place_shape_the_content_hash(record):
    root, _ = record([4])
    (root / "elsewhere").mkdir()
    (root / DATA).rename(root / "elsewhere/0.bin")
    edit_info(root, lambda info: info.update(data_path="elsewhere/{file_index}.bin"))
    before = Dataset(root).content_hash()
    table = pq.read_table(root / "elsewhere/0.bin")
    pq.write_table(table, root / "elsewhere/0.bin", compression="none")
    assert Dataset(root).content_hash() != before


def test_task_numbers_that_are_huge_take_no_memory(record):
    root, _ = record([4])
    table = pq.read_table(root / TASKS)
    pq.write_table(table.set_column(0, "task_index", pa.array([10**12])), root / TASKS)
    with pytest.raises(DatasetError, match="task_index outside"):
        Dataset(root)


def test_rows_without_bytes_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": pa.array(np.zeros(3_000_000, np.int8))}), path, compression="zstd")
    assert path.stat().st_size < 30_000
    with pytest.raises(DatasetError, match="claims 3000000 rows"):
        tables.open_parquet(path)


def test_a_video_without_streams_or_of_another_kind_is_refused(record):
    root, _ = record([4], storage="video")
    box = struct.pack(">I", 8) + b"moov"
    (root / VIDEO).write_bytes(box)
    with pytest.raises(DatasetError, match=r"file-000\.mp4"):
        Dataset(root).frames("wrist", 0, 4)
    text = b"#EXTM3U\n#EXTINF:1,\nother.mp4\n"
    (root / VIDEO).write_bytes(struct.pack(">I", 8 + len(text)) + b"free" + text + box)
    with pytest.raises(DatasetError, match=r"file-000\.mp4"):
        Dataset(root).frames("wrist", 0, 4)


def test_pages_have_checksums(record):
    root, _ = record([40])
    (root / "meta/vla.json").unlink()  # else the hash of the file speaks first
    column = pq.ParquetFile(root / DATA).metadata.row_group(0).column(0)
    content = bytearray((root / DATA).read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 5] ^= 1
    (root / DATA).write_bytes(content)
    with pytest.raises(DatasetError, match=r"file-000\.parquet is damaged"):
        Dataset(root)


def test_what_has_no_checksum_is_said_once(record, tmp_path, caplog):
    root, _ = record([4])
    (root / "meta/vla.json").unlink()
    for _ in range(2):
        open_windows([root], cache_dir=tmp_path / "cache", action_horizon=2, progress=False)
    lines = [one.getMessage() for one in caplog.records if "have no hash" in one.getMessage()]
    assert len(lines) == 1
    assert f"{root}: 4 of its 4 files have no hash of the program that wrote them" in lines[0]


def test_the_second_home_holds_a_hash_of_itself(record):
    root, _ = record([4])
    edit_info(root, lambda info: info.pop("vla") and None)
    path = root / "meta/vla.json"
    path.write_text(path.read_text().replace("positive_opens", "positive_closes"))
    with pytest.raises(DatasetError, match=r"vla\.json is damaged: its content has another hash"):
        Dataset(root)


def test_a_second_home_of_before_is_read_without_one(record):
    root, _ = record([4])
    path = root / "meta/vla.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    assert Dataset(root).num_episodes == 1


def test_hashed_names_stay_inside(record):
    root, _ = record([4])
    path = root / "meta/vla.json"
    content = json.loads(path.read_text())
    content["files"]["../../secret"] = content["files"][DATA]
    del content["sha256"]
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"vla\.json is not as this program writes it"):
        Dataset(root)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_damaged_metadata_is_neither_read_nor_continued_and_can_be_accepted(record, spec):
    root, _ = record([4])
    flip(root / TASKS, (root / TASKS).read_bytes().index(b"lift the"))
    for use in (Dataset, lambda root: DatasetWriter(root, robot_spec=spec, storage="image")):
        with pytest.raises(
            DatasetError, match=r"damaged: meta/tasks\.parquet .*Restore from a copy"
        ) as caught:
            use(root)
    assert 'set "files" to {}' in str(caught.value)
    path = root / "meta/vla.json"
    content = json.loads(path.read_text())
    content["files"] = {}
    del content["sha256"]
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="damaged"):  # the page's own
        Dataset(root)


def test_a_layout_that_died_between_its_last_two_files_is_no_damage(record, spec, monkeypatch):
    root, _ = record([6, 6])
    real = origin.atomic_write_json

    def die_at_info(path, value):
        if path.name == "info.json":
            raise KeyboardInterrupt
        real(path, value)

    writer = DatasetWriter(root, robot_spec=spec, storage="image")
    write_episodes(writer, make_episodes(spec, [6], first=2), first=2)
    with monkeypatch.context() as patch:
        patch.setattr(origin, "atomic_write_json", die_at_info)
        with pytest.raises(KeyboardInterrupt):
            writer.close()
    with DatasetWriter(root, robot_spec=spec, storage="image") as writer:
        assert writer.num_episodes == 3
    assert Dataset(root).num_episodes == 3


def test_a_path_with_a_colon_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = make_spec()
    with DatasetWriter("run:1", robot_spec=spec, storage="image") as writer:
        write_episodes(writer, make_episodes(spec, [4]))
    assert Dataset("run:1").num_episodes == 1


def test_a_machine_that_cannot_open_a_file_is_not_called_damage(record, monkeypatch):
    root, _ = record([4])

    def refuse(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(tables.pq, "ParquetFile", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        Dataset(root)


def test_a_full_disk_keeps_its_message_when_closing_fails_too(tmp_path, spec, monkeypatch, caplog):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    def record_on_a_full_disk():
        with DatasetWriter(tmp_path / "d", robot_spec=spec, storage="image") as writer:
            write_episodes(writer, make_episodes(spec, [4]))
            monkeypatch.setattr("vla.data.staging.atomic_write_bytes", full)
            monkeypatch.setattr(consolidate_module, "_publish_tree", full)
            write_episodes(writer, make_episodes(spec, [4], first=1), first=1)

    with pytest.raises(
        DiskFault,
        match="the disk is full; free space and call save_episode again, or start the recording again; the 1",
    ):
        record_on_a_full_disk()
    assert "the saved episodes are kept, but not laid out yet" in caplog.text
    assert f"{tmp_path / 'd'} cannot be written: No space left on device; free space" in caplog.text
    monkeypatch.undo()
    finish_recording(tmp_path / "d")
    assert Dataset(tmp_path / "d").num_episodes == 1


def test_files_that_vanish_while_training_are_named(record, tmp_path):
    root, _ = record([6, 6])
    windows = open_windows([root], cache_dir=tmp_path / "cache", action_horizon=2, progress=False)
    before = windows.images(np.arange(12))["wrist"].copy()
    shutil.rmtree(root / "data")
    np.testing.assert_array_equal(windows.images(np.arange(12))["wrist"], before)  # numbers, frames: kept
    with pytest.raises(DatasetError, match=r"file-000\.parquet is missing"):
        Dataset(root)
