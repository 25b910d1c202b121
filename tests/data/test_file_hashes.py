"""Hashes are computed once, and never trusted when a file may have changed."""

import os

import pytest
from data_fixtures import make_spec

from vla.data import file_hashes
from vla.data.file_hashes import hash_files
from vla.data.reader import Dataset
from vla.files import sha256_file

NAMES = ["a.bin", "sub/b.bin"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(
        file_hashes, "_COARSE_CLOCK_S", -1.0
    )  # else files of this test are too new to remember
    (tmp_path / "d/sub").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "d" / name).write_bytes(name.encode() * 100)
    return tmp_path / "d"


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read from now on."""
    names = []

    def counted(path):
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(file_hashes, "sha256_file", counted)
    return names


def test_files_are_read_once(root, tmp_path, read):
    first = hash_files(root, NAMES, tmp_path / "memory")
    assert first == {name: sha256_file(root / name) for name in NAMES}
    assert hash_files(root, NAMES, tmp_path / "memory") == first
    assert read == ["a.bin", "b.bin"]
    assert hash_files(root, NAMES, None) == first
    assert len(read) == 4


def test_a_changed_file_is_read_again_even_with_its_old_time_and_size(root, tmp_path, read):
    hash_files(root, NAMES, tmp_path / "memory")
    path = root / "a.bin"
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hash_files(root, NAMES, tmp_path / "memory")["a.bin"] == sha256_file(path)
    assert read == ["a.bin", "b.bin", "a.bin"]
    path.rename(root / "old")
    path.write_bytes(b"y" * before.st_size)
    assert hash_files(root, NAMES, tmp_path / "memory")["a.bin"] == sha256_file(path)


def test_what_changed_a_moment_ago_is_not_remembered(root, tmp_path, read, monkeypatch):
    monkeypatch.setattr(file_hashes, "_COARSE_CLOCK_S", 60.0)
    for _ in range(2):
        hash_files(root, NAMES, tmp_path / "memory")
    assert len(read) == 4


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 1, "entries": {"a.bin": [1, "no"]}}'])
def test_a_damaged_memory_is_ignored(root, tmp_path, read, content):
    first = hash_files(root, NAMES, tmp_path / "memory")
    (memory,) = (tmp_path / "memory").iterdir()
    memory.write_text(content)
    assert hash_files(root, NAMES, tmp_path / "memory") == first
    assert len(read) == 4


def test_two_directories_do_not_share_a_memory(root, tmp_path):
    first = hash_files(root, NAMES, tmp_path / "memory")
    other = root.rename(tmp_path / "other")
    root.mkdir()
    (root / "sub").mkdir()
    for name in NAMES:
        (root / name).write_bytes(b"z" * 10)
    assert hash_files(other, NAMES, tmp_path / "memory") == first
    assert hash_files(root, NAMES, tmp_path / "memory")["a.bin"] != first["a.bin"]


def test_without_a_place_to_write_everything_is_read(root, tmp_path, read):
    (tmp_path / "memory").write_text("a file where the directory should be")
    for _ in range(2):
        hash_files(root, NAMES, tmp_path / "memory")
    assert len(read) == 4


@pytest.mark.parametrize("storage", ["video", "image"])
def test_a_dataset_is_hashed_alike_with_and_without_memory(record, root, tmp_path, read, storage):
    dataset_root, _ = record([4, 3], spec=make_spec(), storage=storage)
    dataset = Dataset(dataset_root)
    plain = dataset.content_hash()
    read.clear()
    assert [dataset.content_hash(memory_dir=tmp_path / "memory") for _ in range(3)] == [plain] * 3
    num_read = len(read)
    assert num_read == {"video": 6, "image": 4}[storage]
    record([2], root=dataset_root, first=2, storage=storage)
    assert Dataset(dataset_root).content_hash(memory_dir=tmp_path / "memory") != plain
    assert len(read) > num_read
