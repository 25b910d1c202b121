"""What the disk refuses, in one line: the path, the cause and what to do, for every program alike.

Whatever writes does so within `writing(path)`; errors of the system become a `DiskFault` there. A disk that
does not answer raises nothing, so one line says that it is waited for. Needs the standard library alone.
"""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_STALLED_S = 10.0
_ELSEWHERE = "or write elsewhere: out_dir, dataset, data.cache_dir. The same command then continues"
_ADVICE = {
    errno.ENOSPC: f"free space, {_ELSEWHERE}",
    errno.EDQUOT: f"your share of the disk is used up: free space, {_ELSEWHERE}",
    errno.EFBIG: f"raise the limit (`ulimit -f`), {_ELSEWHERE}",
    errno.EROFS: f"mount it for writing (`dmesg` says why it is not), {_ELSEWHERE}",
    errno.EACCES: f"ask the owner of the place for the right to, {_ELSEWHERE}",
    errno.EPERM: f"ask the owner of the place for the right to, {_ELSEWHERE}",
    errno.ENOENT: "it or its folder is gone: make or restore that. The same command then continues",
    errno.ENOTDIR: f"a part of that path is no folder: correct it, {_ELSEWHERE}",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EIO: f"the disk or the network to it fails: look at the system's log (`dmesg`), {_ELSEWHERE}",
    errno.ESTALE: "the network disk is gone: mount it again. The same command then continues",
    errno.EMFILE: "raise the number of files that a program may open: ulimit -n 4096",
}
_LOG = logging.getLogger(__name__)


class DiskFault(OSError):
    """The file system refused to write `filename`; the message is one line with the path and what to do."""

    def __str__(self) -> str:
        if self.filename is None:  # whoever raised it has said all
            return str(self.strerror)
        return f"{self.filename} cannot be written: {self.strerror}; {_ADVICE[self.errno or 0]}"


def explain_disk_fault(error: OSError) -> str:
    """Return one line with path, cause and what to do, as far as the error tells."""
    if isinstance(error, DiskFault) or error.strerror is None:
        return str(error)
    where = "" if error.filename is None else f"{error.filename}: "
    advice = _ADVICE.get(error.errno or 0)
    return f"{where}{error.strerror}" + ("" if advice is None else f"; {advice}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the file system in the block, which writes `path`, into a `DiskFault` that names it.

    If the block takes longer than the disk should, one line says so while it is waited for.

    Raises:
        DiskFault: the disk is full, read-only, gone or damaged, or the path cannot be written.
    """
    stalled = threading.Timer(
        _STALLED_S,
        _LOG.warning,
        (f"%s: the disk has not answered for {_STALLED_S:g} s; waiting for it", path),
    )
    stalled.daemon = True
    stalled.start()
    try:
        with naming(path, anything=True):
            yield
    finally:
        stalled.cancel()


@contextlib.contextmanager
def naming(path: Path, *, at: Path | None = None, anything: bool = False) -> Iterator[None]:
    """Raise a `DiskFault` that names `path` for what cannot be written in the block.

    Args:
        path: where the content belongs.
        at: the file or folder that is written meanwhile; errors of other files are left alone.
        anything: take errors of whatever file.
    """
    try:
        yield
    except DiskFault as error:  # names the final place, unless that is still `at`
        if not _is_within(error, at):
            raise
        raise DiskFault(error.errno, error.strerror, str(path)) from error
    except OSError as error:
        is_mine = anything or error.filename is None or _is_within(error, path) or _is_within(error, at)
        if error.errno not in _ADVICE or not is_mine:
            raise
        raise DiskFault(error.errno, os.strerror(error.errno), str(path)) from error


def _is_within(error: OSError, place: Path | None) -> bool:
    """Tell whether an error names a file or folder, or something in it."""
    name = error.filename
    return place is not None and isinstance(name, str) and Path(name).is_relative_to(place)
