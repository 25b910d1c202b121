"""Files that are whole or absent, logs of JSON lines, and directories that prove that they are undamaged.

One file is written next to its place, flushed to disk and renamed. A directory (checkpoint, bundle) likewise:
`manifest.json` with the sha256 of every other file, and of its own content, comes last, and one rename
publishes the whole. safetensors and ONNX load a flipped bit or a zero-filled tail without complaint, so
readers call `verify_manifest` before they trust anything. What is read is a plain file of bounded size first.
A log grows by whole lines; a crash tears at worst its last one, which readers leave out. `DirectoryLock`
admits one writer per directory. What the disk refuses is a `DiskFault` (vla/disk_faults.py).

Needs the standard library alone.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, TypeVar

from vla.disk_faults import naming, writing
from vla.errors import VLAError

Row = TypeVar("Row")

MANIFEST_NAME = "manifest.json"
_HASH_CHUNK_BYTES = 1 << 20
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_JSON_BYTES = 1 << 28
_TMP, _OLD = ".tmp", ".old"
_SHA256 = re.compile("[0-9a-f]{64}")
_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{16}(\.tmp|\.old)")
SEAL_KEY = "sha256"  # of a JSON object that holds the hash of its other content
# What file managers and download tools leave at the top of a directory; nothing here ever reads it.
_BYSTANDERS = frozenset(
    {".DS_Store", ".cache", ".git", ".gitattributes", ".gitignore", "LICENSE", "README.md", "Thumbs.db"}
)


class ManifestError(VLAError):
    """A directory is not what its manifest says; the message lists every file that is wrong."""


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        DamagedFile: it is a pipe, a device or a folder, which would be read for ever or not at all.
    """
    require_regular(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def staged_file(final: Path) -> Iterator[Path]:
    """Yield a free path next to `final`; the file written there replaces `final` when the block ends.

    An exception in the block, a crash or a full disk leaves the old content untouched.

    Raises:
        DiskFault: the file could not be written; nothing has changed.
    """
    staging = _unused_name_beside(final)
    try:
        with naming(final, at=staging):
            yield staging
        publish_file(staging, final)
    finally:
        with contextlib.suppress(OSError):  # the disk is gone: the error that says so is on its way
            staging.unlink(missing_ok=True)


def publish_file(staging: Path, final: Path) -> None:
    """Flush a finished file and rename it to `final`, in the same file system, replacing what is there."""
    with writing(final):
        with staging.open("rb") as file:
            os.fsync(file.fileno())
        staging.replace(final)
        _fsync_directory(final.parent)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; a crash or a full disk leaves the old content untouched.

    Raises:
        DiskFault: the data could not be written; nothing has changed.
    """
    with writing(path), staged_file(path) as staging:
        staging.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8; raises and keeps the old content as `atomic_write_bytes` does."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, indented by one space and ended by a newline.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON cannot express.
        DiskFault: the data could not be written; nothing has changed.
    """
    atomic_write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


class DamagedFile(VLAError):
    """A file is no JSON or of another kind, or a line other than a torn last one is damaged."""


def require_regular(path: Path, *, most_bytes: int | None = None) -> None:
    """Check kind and size of a file before it is opened; a pipe or a device would be read for ever.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is no regular file, or has more than `most_bytes`.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DamagedFile(f"{path} is no regular file but a pipe, device, socket or folder; restore the file")
    if most_bytes is not None and status.st_size > most_bytes:
        raise DamagedFile(
            f"{path} has {status.st_size} bytes; such a file has at most {most_bytes}. Restore it from a copy"
        )


def read_json(path: Path, *, most_bytes: int = _MAX_JSON_BYTES) -> Any:
    """Return the value in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is no regular file, larger than `most_bytes`, or no JSON.
    """
    require_regular(path, most_bytes=most_bytes)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged, it is no JSON ({error}); restore it from a copy") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises as `read_json` does, also if it holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} holds a {type(value).__name__}, not an object; restore it from a copy")
    return value


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON-ready content with a hash over all of it, so that a change within it is noticed."""
    return {**content, SEAL_KEY: _content_digest(content)}


def has_broken_seal(content: Mapping[str, Any]) -> bool:
    """Tell whether what was read is not what `sealed` returned; what was never sealed is taken as it is."""
    rest = {key: value for key, value in content.items() if key != SEAL_KEY}
    return SEAL_KEY in content and content[SEAL_KEY] != _content_digest(rest)


def _content_digest(content: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(content, allow_nan=False))  # as it is read back
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_json_lines(path: Path, parse: Callable[[dict[str, Any]], Row]) -> list[Row]:
    """Return what `parse` makes of each line, a JSON object, of a log.

    What follows the last newline was torn by a crash and is left out.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: another line is no JSON object, or `parse` refused it with a ValueError or TypeError.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise TypeError(f"{str(value)[:80]} is no JSON object")
            rows.append(parse(value))
        except (ValueError, TypeError) as error:
            raise DamagedFile(
                f"{path}, line {number}: {error}. Restore the file from a copy, or delete it to start over"
            ) from error
    return rows


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace `path` by a log of these rows, whole or not at all.

    Raises:
        ValueError: a row holds NaN or an infinity.
        OSError: the log could not be written; nothing has changed.
    """
    atomic_write_bytes(path, b"".join(map(_json_line, rows)))


def _json_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


class JsonLinesAppender:
    """Appends rows to a log of JSON lines, after removing a torn last line; makes the file if there is none.

    A row outlives the program as soon as `append` returns. With `is_durable` it is on disk by then and
    outlives the machine too; without, that holds from `close` on, and `append` does not wait for the disk.
    """

    def __init__(self, path: Path, *, is_durable: bool = False) -> None:
        self._is_durable, self._path = is_durable, path
        with writing(path):
            self._file = path.open("ab")
            self._file.truncate(path.read_bytes().rfind(b"\n") + 1)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row.

        Raises:
            ValueError: the row holds NaN or an infinity; nothing was written.
            DiskFault: the disk is full or gone; earlier rows are kept.
        """
        line = _json_line(row)
        if not self._is_durable:  # a thread that watches the disk would cost more than the row
            with naming(self._path):
                self._file.write(line)
                self._file.flush()
            return
        with writing(self._path):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Bring everything to the disk; safe to call more than once."""
        if not self._file.closed:
            with writing(self._path), self._file:
                self._file.flush()
                os.fsync(self._file.fileno())

    def __enter__(self) -> "JsonLinesAppender":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def staging_directory(final: Path) -> Iterator[Path]:
    """Yield an empty directory next to `final`, to be filled and handed to `publish_directory`.

    It lies in the same file system, so that publishing is one rename; it is removed if it was not published.

    Raises:
        DiskFault: it cannot be made.
    """
    staging = _unused_name_beside(final)
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
    try:
        with naming(final, at=staging):
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish_directory(staging: Path, final: Path, *, replace: bool = False) -> None:
    """Rename a finished `staging` directory to `final`, after flushing all that is in it.

    Args:
        staging: the finished directory, in the file system of `final`.
        final: the name under which readers look.
        replace: put it in the place of an existing `final`. Between two renames no directory has the final
            name; the old one then still lies next to it as ``.<name>.<random>.old``.

    Raises:
        FileExistsError: `final` exists and `replace` is false, or `final` is a file.
        DiskFault: flushing or renaming failed; an existing `final` is back in its place.
    """
    with writing(final):
        for path in sorted(staging.rglob("*")):
            if path.is_dir():
                _fsync_directory(path)
            else:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        _fsync_directory(staging)
        if final.exists() and (not replace or not final.is_dir()):
            raise FileExistsError(f"{final} exists; choose another name or remove it first")
        if final.exists():
            old = _unused_name_beside(final, suffix=_OLD)
            final.replace(old)
            try:
                staging.replace(final)
            except OSError:
                old.replace(final)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            staging.replace(final)
        _fsync_directory(final.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of `staging_directory` and `publish_directory`.

    A directory that was being replaced and has no successor gets its name back. The caller holds the lock.
    """
    for path in sorted(folder.glob(".*")) if folder.is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        final = path.with_name(match[1])
        if match[2] == _OLD and not final.exists():
            path.replace(final)
        else:
            shutil.rmtree(path, ignore_errors=True)


def write_manifest(
    directory: Path, provenance: Mapping[str, Any], *, schema_version: int = 1
) -> dict[str, Any]:
    """Write `manifest.json` with size and sha256 of every other file under `directory`, and return it.

    Its own content, provenance included, stands under a hash too. Call it last, when nothing in the directory
    changes any more.
    """
    names = sorted(_files_under(directory))
    content = {
        "schema_version": schema_version,
        "files": {
            name: {"sha256": sha256_file(directory / name), "bytes": (directory / name).stat().st_size}
            for name in names
        },
        "provenance": dict(provenance),
    }
    manifest = sealed(content)
    atomic_write_json(directory / MANIFEST_NAME, manifest)
    return manifest


def read_manifest(directory: Path, *, schema_version: int = 1) -> dict[str, Any]:
    """Return the checked content of `manifest.json`, without looking at the other files.

    Raises:
        ManifestError: there is no manifest, it is no JSON of the expected form, it has another schema
            version, it names a file outside of the directory, or its seal is broken.
    """
    path = directory / MANIFEST_NAME
    if not directory.is_dir():
        raise ManifestError(f"{directory} is no directory; give the path of one that holds {MANIFEST_NAME}")
    if not path.is_file():
        there = sorted(child.name for child in directory.iterdir())
        raise ManifestError(
            f"{directory} has no {MANIFEST_NAME}; it holds {there}. Was writing it interrupted?"
        )
    if path.is_symlink():
        raise ManifestError(f"{path} is a symbolic link; {_copy_command(directory)}")
    try:
        manifest = read_json(path, most_bytes=_MAX_MANIFEST_BYTES)
    except DamagedFile as error:
        raise ManifestError(str(error)) from error
    if not isinstance(manifest, dict) or "schema_version" not in manifest:
        raise ManifestError(f"{path} is no manifest: it has no schema_version")
    if manifest["schema_version"] != schema_version:
        raise ManifestError(
            f"{path} has schema version {manifest['schema_version']!r}; "
            f"this program reads version {schema_version}. "
            "Write it again with this program, or use the program that wrote it."
        )
    expected = {"schema_version", "files", "provenance"}
    if set(manifest) - {SEAL_KEY} != expected or not isinstance(manifest["provenance"], dict):
        raise ManifestError(f"{path} has the keys {sorted(manifest)}; it should have {sorted(expected)}")
    _check_entries(path, manifest["files"])
    if has_broken_seal(manifest):
        raise ManifestError(f"{path} is damaged: its content has another hash; restore it from a copy")
    return manifest


def verify_manifest(directory: Path, *, schema_version: int = 1) -> dict[str, Any]:
    """Compare every file under `directory` with its manifest, and return the manifest.

    What file managers and download tools leave there (`.DS_Store`, `README.md`, ...) is passed over.

    Raises:
        ManifestError: a file is missing, damaged, extra or a symbolic link, or the manifest is unreadable;
            the message lists every such file.
    """
    manifest = read_manifest(directory, schema_version=schema_version)
    listed, there = manifest["files"], set(_files_under(directory))
    extra = [name for name in sorted(there - set(listed)) if PurePosixPath(name).parts[0] not in _BYSTANDERS]
    faults = [f"extra: {name}" for name in extra]
    links = [name for name in listed if (directory / name).is_symlink()]
    for name, entry in listed.items():
        path = directory / name
        if name in links:
            faults.append(f"symbolic link: {name}")
        elif name not in there:
            faults.append(f"missing: {name}")
        elif not path.is_file():
            faults.append(f"no regular file: {name}")
        elif path.stat().st_size != entry["bytes"]:
            faults.append(f"damaged: {name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
        elif (found := sha256_file(path)) != entry["sha256"]:
            faults.append(f"damaged: {name} has sha256 {found} instead of {entry['sha256']}")
    if faults:
        cure = "restore it from a copy"
        if len(faults) == len(links):
            cure = _copy_command(directory)
        elif len(faults) == len(extra):
            cure = (
                f"if nobody needs them here: {shlex.join(['rm', *(str(directory / name) for name in extra)])}"
            )
        listing = "\n  ".join(faults)
        raise ManifestError(f"{directory} does not match its {MANIFEST_NAME}; {cure}:\n  {listing}")
    return manifest


def _copy_command(directory: Path) -> str:
    """Return what to do about symbolic links, which a download cache makes."""
    copy = directory.with_name(f"{directory.name}-copy")
    command = shlex.join(["cp", "-rL", str(directory), str(copy)])
    return f"a download cache? Copy what they point to, `{command}`, and use the copy"


class DirectoryInUse(RuntimeError):
    """Another live process holds the directory; the message gives its process id."""


class LocksRefused(VLAError):
    """The file system of a directory grants no locks."""


class DirectoryLock:
    """Holds `<directory>/.lock` until released or until the process dies, whichever is first.

    It is an flock, so a killed process leaves no stale lock behind; the text of the file is the holder's
    process id, for the error message alone.

    Raises:
        DirectoryInUse: another live process holds it.
        DiskFault: the directory cannot be written.
        LocksRefused: the file system grants no locks, as some network disks do not.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / ".lock"
        self._descriptor = self._acquire()

    def _acquire(self) -> int:
        while True:
            with writing(self.path):
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
                os.close(descriptor)
                raise DirectoryInUse(
                    f"{self.path.parent} is being written by process {holder}; wait until it ends, stop it, "
                    "or choose another directory"
                ) from None
            except OSError as error:
                os.close(descriptor)
                self.path.unlink(missing_ok=True)
                raise LocksRefused(
                    f"{self.path} cannot be locked ({error.strerror}), as is usual on network disks without "
                    "a lock service, so two programs could write there at once; choose a directory on "
                    "another disk, or mount this one with locks (of NFS: with the option local_lock=flock)"
                ) from error
            if self._is_current(descriptor):
                with contextlib.suppress(OSError):  # a full disk: the lock holds without the number
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
            os.close(descriptor)  # its holder removed it between our open and our lock: take the new one

    def _is_current(self, descriptor: int) -> bool:
        try:
            return self.path.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Release the directory; safe to call more than once."""
        if self._descriptor >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "DirectoryLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.release()


def stays_inside(name: str) -> bool:
    """Tell whether a name is a plain relative POSIX path of a file inside of a directory.

    >>> stays_inside("data/a.bin"), stays_inside("../a.bin"), stays_inside("/a.bin")
    (True, False, False)
    """
    parts = PurePosixPath(name).parts
    is_plain = str(PurePosixPath(name)) == name and not {"\\", "\0"} & set(name)
    return is_plain and bool(parts) and not name.startswith("/") and ".." not in parts


def _check_entries(path: Path, files: Any) -> None:
    """Refuse entries of another form, and names that lead out of the directory."""
    if not isinstance(files, dict):
        raise ManifestError(f"{path}: 'files' is no table of names")
    for name, entry in files.items():
        if not stays_inside(name):
            raise ManifestError(
                f"{path} names {name!r}, which is no plain relative path inside the directory"
            )
        if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
            raise ManifestError(f"{path}: the entry of {name!r} should have the keys 'sha256' and 'bytes'")
        if type(entry["bytes"]) is not int or not _SHA256.fullmatch(str(entry["sha256"])):
            raise ManifestError(
                f"{path}: the entry of {name!r} holds no size and sha256; restore the manifest"
            )


def _files_under(directory: Path) -> Iterator[str]:
    """Yield the relative POSIX path of everything under `directory` but sub-directories and the manifest."""
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name != MANIFEST_NAME:
            yield name


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unused_name_beside(path: Path, *, suffix: str = _TMP) -> Path:
    """Return a hidden random name in the same directory, and so in the same file system."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{suffix}")
