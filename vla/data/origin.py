"""What this program wrote about a dataset, in two places: the key `vla` of info.json, and meta/vla.json.

Other tools (LeRobot's editor, `LeRobotDataset.resume`) write info.json again without the key. meta/vla.json
survives what they change in place; it also has size and sha256 of every file that this program wrote, and of
its own content. A file of another size was changed by another tool, which is reported; one of the same size
with other content is damaged. Copies that those tools make have neither; they are foreign datasets.
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
from vla.files import (
    DamagedFile,
    atomic_write_json,
    has_broken_seal,
    read_json,
    sealed,
    sha256_file,
    stays_inside,
)
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
    if not isinstance(origin["extra_info"], dict):
        raise DatasetError(f"{path}: 'extra_info' is {origin['extra_info']!r}, no table; restore that file")
    return {key: origin[key] for key in _KEYS}


def stored_spec(root: Path, origin: Mapping[str, Any]) -> RobotSpec:
    """Return the robot spec of `read_origin`.

    Raises:
        DatasetError: it is no valid spec.
    """
    try:
        return RobotSpec.from_json(origin["robot_spec"])
    except (VLAError, ValueError, TypeError, KeyError, AttributeError) as error:
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
    atomic_write_json(root / ORIGIN_PATH, sealed(origin))
    atomic_write_json(root / INFO_PATH, info)


def committed_files(root: Path) -> list[str]:
    """Return the relative POSIX paths of all files of a dataset but info.json and meta/vla.json."""
    found = [root / layout.STATS_PATH, root / layout.TASKS_PATH]
    for folder in ("meta/episodes", "data", "videos"):
        found += [path for path in (root / folder).rglob("file-*") if path.is_file()]
    return sorted(path.relative_to(root).as_posix() for path in found if path.is_file())


def check_files(root: Path) -> None:
    """Log one line that names the files which another tool changed or removed since we wrote them.

    Sizes are compared for all, hashes for the small files under meta/ alone; `require_hashes` does the rest.

    Raises:
        DatasetError: a file under meta/ is damaged.
    """
    files = read_files(root)
    paths = {name: root / name for name in files}
    changed = [
        name
        for name, path in paths.items()
        if not path.is_file() or path.stat().st_size != files[name]["bytes"]
    ]
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        _LOG.warning("%s: another tool, or damage, changed what this program wrote: %s", root, shown)
    small = [name for name in files if name.startswith("meta/") and name not in changed]
    require_hashes(root, {name: sha256_file(paths[name]) for name in small})


def require_hashes(root: Path, hashes: Mapping[str, str]) -> None:
    """Refuse damage: files that have the size with which this program wrote them, but another sha256.

    Raises:
        DatasetError: there are some; the message names them.
    """
    files = read_files(root)
    damaged = [
        name
        for name, sha256 in hashes.items()
        if name in files
        and (root / name).stat().st_size == files[name]["bytes"]
        and files[name]["sha256"] != sha256
    ]
    if damaged:
        raise DatasetError(
            f"{root}: damaged: {', '.join(damaged[:5])} ({len(damaged)} in all; of the size that this "
            "program wrote, but another sha256). Restore from a copy; if somebody changed them on purpose, "
            f'set "files" to {{}} and take "sha256" out in {root / ORIGIN_PATH}'
        )


def report_unverified(root: Path, names: Iterable[str]) -> None:
    """Log one line if files have no hash of the program that wrote them, so that damage goes unnoticed."""
    names, known = list(names), read_files(root)
    without = [name for name in names if name not in known]
    if without:
        _LOG.warning(
            "%s: %d of its %d files have no hash of the program that wrote them (%s, ...); damage to numbers "
            "or video would go unnoticed",
            root,
            len(without),
            len(names),
            without[0],
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        origin = read_json(path)
    except DamagedFile as error:
        raise DatasetError(str(error)) from error
    files = origin.get("files") if isinstance(origin, dict) else None
    files = files if isinstance(files, dict) else {"": None}
    entries = files.values()
    are_ours = all(isinstance(entry, dict) and {"sha256", "bytes"} <= set(entry) for entry in entries)
    if not are_ours or not all(map(stays_inside, files)):
        raise DatasetError(f"{path} is not as this program writes it; restore it from a copy")
    if has_broken_seal(origin):
        raise DatasetError(f"{path} is damaged: its content has another hash; restore it from a copy")
    return origin
