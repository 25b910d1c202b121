"""One writer a directory: a lock that the kernel drops when its holder dies. Knows nothing about datasets."""

import fcntl
import os
from pathlib import Path


class DirectoryInUse(RuntimeError):
    """Another live writer holds the directory; the message gives its process id."""


class DirectoryLock:
    """Holds `<directory>/.lock` until released or until the process dies, whichever is first.

    It is an flock, so a killed process leaves no stale lock behind; the text of the file is the holder's
    process id, for the error message alone.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / ".lock"
        self._descriptor = self._acquire()

    def _acquire(self) -> int:
        while True:
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
            if self._is_current(descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
            os.close(
                descriptor
            )  # the holder removed the file between our open and our lock: take the new one

    def _is_current(self, descriptor: int) -> bool:
        try:
            return self.path.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the directory free; safe to call more than once."""
        if self._descriptor >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1
