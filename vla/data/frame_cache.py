"""Frames decoded once, into memory-mapped uint8 files: what makes a training sample cost microseconds.

The frames of one camera lie in a directory named by what shapes them (content of the dataset, camera,
resizing), so a cache can never be stale: other frames have another name. It is built next to its place and
renamed when complete. Sizes and a sample of checksums are verified at every opening; a damaged cache is built
again.
"""

import errno
import hashlib
import json
import logging
import mmap
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from vla.data.reader import Dataset
from vla.files import atomic_write_json, publish_directory, read_json, staging_directory
from vla.resize import Resizing

_BLOCK_FRAMES = 256
_BLOCKS_CHECKED = 16
_SCHEMA_VERSION = 2
_MANIFEST, _FRAMES = "cache.json", "frames.npy"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cache:
    """The frames of one camera of a dataset."""

    dataset: Dataset
    camera: str
    resizing: Resizing | None
    content_hash: str
    folder: Path

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width, channels."""
        spec = next(spec for spec in self.dataset.robot_spec.cameras if spec.name == self.camera)
        size = self.resizing or spec
        return (self.dataset.num_frames, size.height, size.width, 3)

    @property
    def num_bytes(self) -> int:
        """What the frames take on disk."""
        return int(np.prod(self.shape))

    @property
    def source(self) -> dict[str, Any]:
        """Everything that shapes the frames."""
        return {
            "schema_version": _SCHEMA_VERSION,
            "content_hash": self.content_hash,
            "camera": self.camera,
            "resizing": None if self.resizing is None else self.resizing.to_json(),
        }

    @property
    def directory(self) -> Path:
        """Where the cache lies when it is complete."""
        return self.folder / hashlib.sha256(json.dumps(self.source).encode()).hexdigest()[:24]

    def open(self) -> UInt8[np.ndarray, "N h w 3"]:
        """Map the frames."""
        return np.load(self.directory / _FRAMES, mmap_mode="r")


def open_frame_cache(
    dataset: Dataset,
    cache_dir: Path | str,
    *,
    resizing: Resizing | None = None,
    num_threads: int = 2,
    progress: bool = True,
) -> dict[str, UInt8[np.ndarray, "N _ _ 3"]]:
    """Return all frames of every camera as read-only memory maps, decoding them first if need be.

    Args:
        dataset: whose frames; the cameras are those of its robot spec.
        cache_dir: directory that holds caches of any number of datasets; h * w * 3 bytes a frame.
        resizing: what is done to frames when they are decoded; None for nothing.
        num_threads: decoders at work at a time, each on one thread.
        progress: show a bar on stderr while decoding.

    Raises:
        DatasetError: a video or image of the dataset is damaged.
        OSError: the disk has too little space; nothing is left behind, and the message says how much it
        takes.
    """
    folder = Path(cache_dir)
    content_hash = dataset.content_hash(memory_dir=folder / "hashes")
    caches = [
        _Cache(dataset=dataset, camera=name, resizing=resizing, content_hash=content_hash, folder=folder)
        for name in dataset.robot_spec.camera_names
    ]
    missing = [cache for cache in caches if not _is_usable(cache)]
    if missing:
        dataset.report_unverified()
    _require_space(missing)
    for cache in missing:
        _build(cache, num_threads, progress)
    frames = {cache.camera: cache.open() for cache in caches}
    for one in frames.values():
        _map_of(one).madvise(mmap.MADV_RANDOM)
    return frames


def prefetch(frames: UInt8[np.ndarray, "N h w 3"], numbers: Iterable[int]) -> None:
    """Have the system read some frames before they are used, all at a time; what is in memory costs nothing.

    Frames are drawn at random, and a page that is missing would otherwise be read alone, or with megabytes
    that nobody asks for.

    Args:
        frames: as `open_frame_cache` returns them; other arrays are in memory already.
        numbers: of the frames.
    """
    if not isinstance(frames, np.memmap):
        return
    mapped, length = _map_of(frames), frames.strides[0]
    for number in numbers:
        start = frames.offset + number * length
        page = start - start % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, page, start + length - page)


def _map_of(frames: np.ndarray) -> mmap.mmap:
    assert isinstance(frames.base, mmap.mmap)
    return frames.base


def _is_usable(cache: _Cache) -> bool:
    """Tell whether a cache is there and whole; a damaged one is removed."""
    if not cache.directory.exists():
        return False
    fault = _find_fault(cache)
    if fault is not None:
        _LOG.warning("frame cache %s is damaged (%s); decoding again", cache.directory, fault)
        shutil.rmtree(cache.directory)
    return fault is None


def _require_space(caches: Sequence[_Cache]) -> None:
    if not caches:
        return
    needed, folder = sum(cache.num_bytes for cache in caches), caches[0].folder
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        smaller = "" if caches[0].resizing else ", let them be resized (data.image_size=96)"
        raise OSError(
            errno.ENOSPC,
            f"the decoded frames of {caches[0].dataset.root} take {needed / 1e9:.2f} GB, but {folder} has "
            f"{free / 1e9:.2f} GB free; free space{smaller}, or put the frame cache elsewhere "
            "(data.cache_dir)",
        )


def _build(cache: _Cache, num_threads: int, progress: bool) -> None:
    with staging_directory(cache.directory) as staging:
        checksums = _decode_all(cache, staging / _FRAMES, num_threads, progress)
        _write_manifest(staging, cache, checksums)
        try:
            publish_directory(staging, cache.directory)
        except FileExistsError:  # another process was quicker; its cache holds the same frames
            _LOG.info("frame cache %s was made by another process meanwhile", cache.directory)


def _write_manifest(directory: Path, cache: _Cache, checksums: list[int]) -> None:
    content = {**cache.source, "block_frames": _BLOCK_FRAMES, "block_crc32": checksums}
    atomic_write_json(directory / _MANIFEST, content)


def _decode_all(cache: _Cache, path: Path, num_threads: int, progress: bool) -> list[int]:
    """Decode one camera into an .npy file; return the CRC-32 of each block of `_BLOCK_FRAMES` frames.

    Blocks are written with pwrite, not through a map: a full disk then raises instead of killing the process.
    Threads do, where environments need processes (envs/workers.py): decoding releases the interpreter lock,
    and a frame is not sent anywhere.
    """
    shape = cache.shape
    starts = range(0, shape[0], _BLOCK_FRAMES)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        offset = file.tell()
        frame_bytes = shape[1] * shape[2] * 3

        def decode_block(start: int) -> int:
            images = cache.dataset.frames(
                cache.camera, start, min(start + _BLOCK_FRAMES, shape[0]), resizing=cache.resizing
            ).reshape(-1)
            view, position = images.data, offset + start * frame_bytes
            while view:
                written = os.pwrite(file.fileno(), view, position)
                view, position = view[written:], position + written
            return zlib.crc32(images.data)

        file.flush()
        checksums = []
        bar = tqdm(total=shape[0], desc=f"decoding {cache.camera}", unit="frame", disable=not progress)
        with bar, ThreadPoolExecutor(num_threads) as pool:
            try:
                for start, checksum in zip(starts, pool.map(decode_block, starts), strict=True):
                    checksums.append(checksum)
                    bar.update(min(_BLOCK_FRAMES, shape[0] - start))
            finally:
                pool.shutdown(cancel_futures=True)
    return checksums


def _find_fault(cache: _Cache) -> str | None:
    """Return what is wrong with a cache, or None: its manifest, shapes, sizes, and a sample of its blocks."""
    try:
        manifest = read_json(cache.directory / _MANIFEST)
        images = cache.open()
    except (OSError, ValueError, EOFError) as error:
        return str(error)
    wanted = {**cache.source, "block_frames": _BLOCK_FRAMES}
    if {key: manifest.get(key) for key in wanted} != wanted:
        return f"{_MANIFEST} is of another version or dataset"
    if images.shape != cache.shape or images.dtype != np.uint8:
        return f"{_FRAMES} is {images.dtype}{list(images.shape)}, not {list(cache.shape)}"
    checksums = manifest["block_crc32"]
    for block in np.unique(np.linspace(0, len(checksums) - 1, _BLOCKS_CHECKED).astype(int)):
        content = images[block * _BLOCK_FRAMES : (block + 1) * _BLOCK_FRAMES]
        if zlib.crc32(np.ascontiguousarray(content).tobytes()) != checksums[block]:
            return f"block {block} of {_FRAMES} has another checksum"
    return None
