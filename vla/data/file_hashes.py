"""The sha256 of files, computed once and remembered across runs.

What was remembered counts only while size, inode, modification time and change time of the file are the same
to the nanosecond; the change time is set by the kernel, so a file that was rewritten with its old time put
back is read again. A file that changed in the last two seconds is not remembered, as clocks of file systems
may be that coarse.
"""

import hashlib
import logging
import re
import time
from pathlib import Path
from typing import Any

from vla.files import atomic_write_json, read_json, sha256_file

_SCHEMA_VERSION = 1
_COARSE_CLOCK_S = 2.0
_LOG = logging.getLogger(__name__)


def hash_files(root: Path, names: list[str], memory_dir: Path | None) -> dict[str, str]:
    """Return the sha256 of files under `root`, given by relative POSIX paths.

    Args:
        root: the directory.
        names: which files.
        memory_dir: where hashes are remembered, in a file per root; read them all if None or not writable.
    """
    memory = None if memory_dir is None else memory_dir / f"hashes-{_digest(root)}.json"
    known = _recall(memory)
    hashes, entries = {}, {}
    for name in names:
        before = _identity(root / name)
        entry = known.get(name)
        if entry is None or entry[:-1] != before:
            entry = [*before, sha256_file(root / name)]
        hashes[name] = entry[-1]
        if _identity(root / name) == before and time.time() - max(before[2:4]) / 1e9 > _COARSE_CLOCK_S:
            entries[name] = entry
    if memory is not None and entries != known:
        _remember(memory, entries)
    return hashes


def _digest(root: Path) -> str:
    return hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:24]


def _identity(path: Path) -> list[int]:
    """Return size, inode, modification time [ns] and change time [ns]."""
    stat = path.stat()
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _recall(memory: Path | None) -> dict[str, list[Any]]:
    """Return the entries (identity and sha256) by name; none if there are none or they are damaged."""
    if memory is None:
        return {}
    try:
        content = read_json(memory)
    except (OSError, ValueError):  # absent or damaged: the files are read again
        return {}
    is_ours = isinstance(content, dict) and content.get("schema_version") == _SCHEMA_VERSION
    entries = content.get("entries") if is_ours else None
    if not isinstance(entries, dict):
        return {}
    return {
        name: entry
        for name, entry in entries.items()
        if isinstance(entry, list) and len(entry) == 5 and re.fullmatch("[0-9a-f]{64}", str(entry[-1]))
    }


def _remember(memory: Path, entries: dict[str, list[Any]]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(memory, {"schema_version": _SCHEMA_VERSION, "entries": entries})
    except OSError as error:
        _LOG.info("hashes are not remembered in %s (%s)", memory, error)
