import json
import mmap
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import damage_packet

from vla.data import frame_cache
from vla.data.frame_cache import open_frame_cache, prefetch
from vla.data.layout import DatasetError
from vla.data.reader import Dataset
from vla.resize import Resizing


def decodings(monkeypatch):
    """Count the blocks that are decoded from now on."""
    calls = []
    real = Dataset.frames

    def frames(self, camera, start, stop, *, resizing=None):
        calls.append((camera, start, stop))
        return real(self, camera, start, stop, resizing=resizing)

    monkeypatch.setattr(Dataset, "frames", frames)
    return calls


def cached(cache_dir):
    """All that lies in a cache directory but the remembered hashes of files."""
    return [path for path in cache_dir.iterdir() if path.name != "hashes"]


@pytest.mark.parametrize("storage", ["video", "image"])
def test_the_cache_holds_what_decoding_gives(record, tmp_path, storage, monkeypatch):
    monkeypatch.setattr(frame_cache, "_BLOCK_FRAMES", 8)
    root, _ = record([9, 5, 13], storage=storage)
    dataset = Dataset(root)
    cache = open_frame_cache(dataset, tmp_path / "cache", progress=False)
    assert list(cache) == ["exterior", "wrist"]
    for camera, images in cache.items():
        assert isinstance(images, np.memmap)
        assert not images.flags.writeable
        np.testing.assert_array_equal(images, dataset.frames(camera, 0, 27))


def test_it_is_decoded_once(record, tmp_path, monkeypatch):
    root, _ = record([9], storage="video")
    calls = decodings(monkeypatch)
    open_frame_cache(Dataset(root), tmp_path / "cache", progress=False)
    assert len(calls) == 2
    open_frame_cache(Dataset(root), tmp_path / "cache", progress=False)
    shutil.copytree(root, tmp_path / "copy")
    open_frame_cache(Dataset(tmp_path / "copy"), tmp_path / "cache", progress=False)
    assert len(calls) == 2
    assert len(cached(tmp_path / "cache")) == 2, "staging directories were left behind"


def test_it_is_never_stale(record, tmp_path):
    root, _ = record([9])
    first = open_frame_cache(Dataset(root), tmp_path / "cache", progress=False)
    record([4], root=root, first=1)
    second = open_frame_cache(Dataset(root), tmp_path / "cache", progress=False)
    assert (len(first["wrist"]), len(second["wrist"])) == (9, 13)
    assert len(cached(tmp_path / "cache")) == 4


@pytest.mark.parametrize("damage", ["flip", "truncate", "lose", "manifest", "manifest version"])
def test_damage_is_noticed_and_decoded_again(record, tmp_path, damage, caplog):
    root, _ = record([9])
    dataset = Dataset(root, cameras=["wrist"])
    wanted = np.array(open_frame_cache(dataset, tmp_path / "cache", progress=False)["wrist"])
    (directory,) = cached(tmp_path / "cache")
    victim = directory / "frames.npy"
    if damage == "flip":
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-100])
    elif damage == "lose":
        victim.unlink()
    elif damage == "manifest":
        (directory / "cache.json").write_text("{")
    else:
        manifest = json.loads((directory / "cache.json").read_text())
        (directory / "cache.json").write_text(json.dumps(manifest | {"schema_version": 0}))
    again = open_frame_cache(dataset, tmp_path / "cache", progress=False)
    np.testing.assert_array_equal(again["wrist"], wanted)
    assert "is damaged" in caplog.text


def test_a_small_disk_is_told_beforehand(record, tmp_path, monkeypatch):
    root, _ = record([9])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OSError, match=r"take 0\.00 GB.*put the frame cache elsewhere"):
        open_frame_cache(Dataset(root), tmp_path / "cache", progress=False)
    assert cached(tmp_path / "cache") == []


def test_a_damaged_video_leaves_no_cache(record, tmp_path):
    root, _ = record([30], storage="video")
    path = root / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    damage_packet(path, 5)
    (root / "meta/vla.json").unlink()  # it holds a hash of the file
    with pytest.raises(DatasetError, match=r"file-000\.mp4 cannot be decoded"):
        open_frame_cache(Dataset(root, cameras=["wrist"]), tmp_path / "cache", progress=False)
    assert cached(tmp_path / "cache") == []


def test_a_cache_made_by_another_process_meanwhile_is_used(record, tmp_path, monkeypatch):
    root, _ = record([9])
    dataset = Dataset(root)
    real = frame_cache._write_manifest

    def slow(staging, cache, checksums):
        real(staging, cache, checksums)
        shutil.copytree(staging, cache.directory)

    monkeypatch.setattr(frame_cache, "_write_manifest", slow)
    cache = open_frame_cache(dataset, tmp_path / "cache", progress=False)
    np.testing.assert_array_equal(cache["wrist"], dataset.frames("wrist", 0, 9))
    assert len(cached(tmp_path / "cache")) == 2


def test_frames_are_resized_when_they_are_decoded_and_others_left_alone(record, tmp_path):
    root, _ = record([9])
    pad, stretch = (Resizing(height=10, width=14, mode=mode) for mode in ("pad", "stretch"))
    dataset = Dataset(root, cameras=["wrist"])
    for resizing in (pad, stretch, None):
        cache = open_frame_cache(dataset, tmp_path / "cache", resizing=resizing, progress=False)
        frames = dataset.frames("wrist", 0, 9)
        np.testing.assert_array_equal(cache["wrist"], frames if resizing is None else resizing.apply(frames))
        assert list(cache) == ["wrist"]
    assert len(cached(tmp_path / "cache")) == 3, "one cache served two ways of resizing"


class ToldMap:
    """Stands in for a map, and keeps which pages the system is told to read."""

    def __init__(self):
        self.told = []

    def madvise(self, advice, start, length):
        assert (advice, start % mmap.PAGESIZE) == (mmap.MADV_WILLNEED, 0)
        self.told.append((start, length))


def test_the_pages_of_a_frame_are_told_to_be_read_and_no_further_ones(record, tmp_path, monkeypatch):
    root, _ = record([9, 5], storage="image")
    images = open_frame_cache(Dataset(root), tmp_path / "cache", progress=False)["wrist"]
    told = ToldMap()
    monkeypatch.setattr(frame_cache, "_map_of", lambda _: told)
    prefetch(images, [0, 8, 13])
    assert isinstance(images, np.memmap)
    content = Path(str(images.filename)).read_bytes()
    for number, (start, length) in zip([0, 8, 13], told.told, strict=True):
        assert content[start : start + length].endswith(images[number].tobytes())
        assert images[number].nbytes <= length < images[number].nbytes + mmap.PAGESIZE


def test_frames_are_fetched_before_they_are_used_whole_and_in_place(record, tmp_path):
    root, _ = record([9, 5], storage="image")
    dataset = Dataset(root)
    for camera, images in open_frame_cache(dataset, tmp_path / "cache", progress=False).items():
        prefetch(images, range(len(images)))
        np.testing.assert_array_equal(images, dataset.frames(camera, 0, 14))
    prefetch(np.zeros((3, 4, 4, 3), np.uint8), [0, 2])
