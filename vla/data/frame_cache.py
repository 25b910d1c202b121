"""Frames decoded once, into memory-mapped uint8 files: what makes a training sample cost microseconds.

A cache lies in a directory named by the content hash of its dataset, which is established again at every
opening, so a cache can never be stale: another dataset has another name. It is built next to its place and
renamed when complete. Sizes and a sample of checksums are verified at every opening; a damaged cache is built
again.
"""

import errno
import logging
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from vla.data.reader import Dataset
from vla.files import atomic_write_json, publish_directory, read_json, staging_directory

_BLOCK_FRAMES = 256
_BLOCKS_CHECKED = 16
_SCHEMA_VERSION = 1
_MANIFEST = "cache.json"
_LOG = logging.getLogger(__name__)


def open_frame_cache(
    dataset: Dataset, cache_dir: Path | str, *, num_threads: int = 2, progress: bool = True
) -> dict[str, UInt8[np.ndarray, "N _ _ 3"]]:
    """Return all frames of every camera as read-only memory maps, decoding them first if need be.

    Args:
        dataset: whose frames.
        cache_dir: directory that holds caches of any number of datasets; h * w * 3 bytes a frame.
        num_threads: decoders at work at a time, each on one thread.
        progress: show a bar on stderr while decoding.

    Raises:
        DatasetError: a video or image of the dataset is damaged.
        OSError: the disk has too little space; nothing is left behind, and the message says how much it
        takes.
    """
    content_hash = dataset.content_hash(memory_dir=Path(cache_dir) / "hashes")
    directory = Path(cache_dir) / content_hash[:24]
    if directory.exists():
        fault = _find_fault(directory, dataset, content_hash)
        if fault is None:
            return _open(directory, dataset)
        _LOG.warning("frame cache %s is damaged (%s); decoding again", directory, fault)
        shutil.rmtree(directory)
    with staging_directory(directory) as staging:
        _require_space(dataset, staging)
        checksums = {
            camera: _decode_all(dataset, camera, staging / f"{camera}.npy", num_threads, progress)
            for camera in dataset.robot_spec.camera_names
        }
        _write_manifest(staging, content_hash, checksums)
        try:
            publish_directory(staging, directory)
        except FileExistsError:  # another process was quicker; its cache holds the same frames
            _LOG.info("frame cache %s was made by another process meanwhile", directory)
    return _open(directory, dataset)


def _shape(dataset: Dataset, camera: str) -> tuple[int, int, int, int]:
    spec = next(spec for spec in dataset.robot_spec.cameras if spec.name == camera)
    return (dataset.num_frames, spec.height, spec.width, 3)


def _require_space(dataset: Dataset, directory: Path) -> None:
    needed = sum(int(np.prod(_shape(dataset, name))) for name in dataset.robot_spec.camera_names)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the decoded frames of {dataset.root} take {needed / 1e9:.2f} GB, but {directory.parent} has "
            f"{free / 1e9:.2f} GB free; free space or put the frame cache elsewhere",
        )


def _decode_all(dataset: Dataset, camera: str, path: Path, num_threads: int, progress: bool) -> list[int]:
    """Decode one camera into an .npy file; return the CRC-32 of each block of `_BLOCK_FRAMES` frames.

    Blocks are written with pwrite, not through a map: a full disk then raises instead of killing the process.
    Threads do, where environments need processes (envs/workers.py): decoding releases the interpreter lock,
    and a frame is not sent anywhere.
    """
    shape = _shape(dataset, camera)
    starts = range(0, shape[0], _BLOCK_FRAMES)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        offset = file.tell()
        frame_bytes = shape[1] * shape[2] * 3

        def decode_block(start: int) -> int:
            images = dataset.frames(camera, start, min(start + _BLOCK_FRAMES, shape[0])).reshape(-1)
            view, position = images.data, offset + start * frame_bytes
            while view:
                written = os.pwrite(file.fileno(), view, position)
                view, position = view[written:], position + written
            return zlib.crc32(images.data)

        file.flush()
        checksums = []
        bar = tqdm(total=shape[0], desc=f"decoding {camera}", unit="frame", disable=not progress)
        with bar, ThreadPoolExecutor(num_threads) as pool:
            try:
                for start, checksum in zip(starts, pool.map(decode_block, starts), strict=True):
                    checksums.append(checksum)
                    bar.update(min(_BLOCK_FRAMES, shape[0] - start))
            finally:
                pool.shutdown(cancel_futures=True)
    return checksums


def _write_manifest(directory: Path, content_hash: str, checksums: dict[str, list[int]]) -> None:
    content = {
        "schema_version": _SCHEMA_VERSION,
        "content_hash": content_hash,
        "block_frames": _BLOCK_FRAMES,
        "block_crc32": checksums,
    }
    atomic_write_json(directory / _MANIFEST, content)


def _open(directory: Path, dataset: Dataset) -> dict[str, UInt8[np.ndarray, "N _ _ 3"]]:
    return {
        camera: np.load(directory / f"{camera}.npy", mmap_mode="r")
        for camera in dataset.robot_spec.camera_names
    }


def _find_fault(directory: Path, dataset: Dataset, content_hash: str) -> str | None:
    """Return what is wrong with a cache, or None: its manifest, shapes, sizes, and a sample of its blocks."""
    try:
        manifest = read_json(directory / _MANIFEST)
        frames = _open(directory, dataset)
    except (OSError, ValueError, EOFError) as error:
        return str(error)
    known = (manifest.get("schema_version"), manifest.get("content_hash"), manifest.get("block_frames"))
    if known != (_SCHEMA_VERSION, content_hash, _BLOCK_FRAMES):
        return f"{_MANIFEST} is of another version or dataset"
    for camera, images in frames.items():
        if images.shape != _shape(dataset, camera) or images.dtype != np.uint8:
            return f"{camera}.npy is {images.dtype}{list(images.shape)}, not {list(_shape(dataset, camera))}"
        checksums = manifest["block_crc32"][camera]
        for block in np.unique(np.linspace(0, len(checksums) - 1, _BLOCKS_CHECKED).astype(int)):
            content = images[block * _BLOCK_FRAMES : (block + 1) * _BLOCK_FRAMES]
            if zlib.crc32(np.ascontiguousarray(content).tobytes()) != checksums[block]:
                return f"block {block} of {camera}.npy has another checksum"
    return None
