"""What this program wrote about a dataset, in two places: the key `vla` of info.json, and meta/vla.json.

Other tools (LeRobot's editor, `LeRobotDataset.resume`) write info.json again without the key. meta/vla.json
survives what they change in place; it also has size and sha256 of every file that this program wrote, so
that a change is noticed. Copies that those tools make have neither; they are foreign datasets.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vla.data import layout
from vla.data.layout import INFO_PATH, ORIGIN_PATH, VLA_SCHEMA_VERSION, DatasetError, read_info
from vla.errors import VLAError
from vla.files import DamagedFile, atomic_write_json, read_json, sha256_file
from vla.spec import RobotSpec

_KEYS = ("schema_version", "robot_spec", "storage", "extra_info")
_LOG = logging.getLogger(__name__)
FileTable = dict[str, dict[str, Any]]  # relative POSIX path -> its "sha256" and "bytes"


def read_origin(root: Path, info: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return schema_version, robot_spec, storage and extra_info of a dataset that this program recorded.

    They come from info.json, else from meta/vla.json; None if there is neither.

    Raises:
        DatasetError: they are damaged or of another version.
    """
    origin, path = info.get("vla"), root / INFO_PATH
    if origin is None:
        path = root / ORIGIN_PATH
        if not path.is_file():
            return None
        origin = _read(path)
    if not isinstance(origin, dict):
        raise DatasetError(f"{path}: 'vla' is {origin!r}, no table; restore the file from a copy")
    if origin.get("schema_version") != VLA_SCHEMA_VERSION:
        raise DatasetError(
            f"{root} was recorded with schema version {origin.get('schema_version')!r} of this program, "
            f"which reads {VLA_SCHEMA_VERSION}; use the program that recorded it"
        )
    missing = [key for key in _KEYS if key not in origin]
    if missing:
        raise DatasetError(f"{path} lacks {missing}; restore it from a copy")
    return {key: origin[key] for key in _KEYS}


def stored_spec(root: Path, origin: Mapping[str, Any]) -> RobotSpec:
    """Return the robot spec of `read_origin`.

    Raises:
        DatasetError: it is no valid spec.
    """
    try:
        return RobotSpec.from_json(origin["robot_spec"])
    except (VLAError, ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"the robot spec that {root} stores is not valid: {error}") from error


def read_extra_info(root: Path) -> dict[str, Any]:
    """Return the facts that a recording of ours was given as `extra_info`; empty for a foreign dataset.

    Raises:
        DatasetError: there is no dataset, or what it stores is damaged.
    """
    origin = read_origin(root, read_info(root))
    return {} if origin is None else origin["extra_info"]


def read_files(root: Path) -> FileTable:
    """Return size and sha256 of the files that this program wrote; empty without meta/vla.json."""
    path = root / ORIGIN_PATH
    return _read(path)["files"] if path.is_file() else {}


def describe_files(root: Path, names: Iterable[str]) -> FileTable:
    """Return size and sha256 of files, given by relative POSIX paths."""
    return {
        name: {"sha256": sha256_file(root / name), "bytes": (root / name).stat().st_size} for name in names
    }


def write_info(root: Path, info: Mapping[str, Any], files: FileTable) -> None:
    """Write meta/vla.json, then info.json, which is the commit; `files` are all others that we wrote."""
    text = json.dumps(info, indent=1, allow_nan=False) + "\n"  # as atomic_write_json does
    entry = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text.encode())}
    origin = {**info["vla"], "files": dict(sorted({**files, INFO_PATH: entry}.items()))}
    atomic_write_json(root / ORIGIN_PATH, origin)
    atomic_write_json(root / INFO_PATH, info)


def committed_files(root: Path) -> list[str]:
    """Return the relative POSIX paths of all files of a dataset but info.json and meta/vla.json."""
    found = [root / layout.STATS_PATH, root / layout.TASKS_PATH]
    for folder in ("meta/episodes", "data", "videos"):
        found += [path for path in (root / folder).rglob("file-*") if path.is_file()]
    return sorted(path.relative_to(root).as_posix() for path in found if path.is_file())


def report_changes(root: Path) -> None:
    """Log one line that names the files which another tool changed or removed since we wrote them.

    Sizes are compared for all, hashes for the small files under meta/ alone; `report_hashes` does the rest.
    """
    changed = [
        name
        for name, entry in read_files(root).items()
        if not (root / name).is_file()
        or (root / name).stat().st_size != entry["bytes"]
        or (name.startswith("meta/") and sha256_file(root / name) != entry["sha256"])
    ]
    _report(root, changed)


def report_hashes(root: Path, hashes: Mapping[str, str]) -> None:
    """Log one line that names files of unchanged size whose sha256 is no longer the one that we wrote."""
    files = read_files(root)
    changed = [
        name
        for name, sha256 in hashes.items()
        if name in files
        and not name.startswith("meta/")
        and (root / name).stat().st_size == files[name]["bytes"]
        and files[name]["sha256"] != sha256
    ]
    _report(root, changed)


def _report(root: Path, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        _LOG.warning("%s: another tool, or damage, changed what this program wrote: %s", root, shown)


def _read(path: Path) -> dict[str, Any]:
    try:
        origin = read_json(path)
    except DamagedFile as error:
        raise DatasetError(str(error)) from error
    files = origin.get("files") if isinstance(origin, dict) else None
    entries = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(entry, dict) and {"sha256", "bytes"} <= set(entry) for entry in entries):
        raise DatasetError(f"{path} is not as this program writes it; restore it from a copy")
    return origin
