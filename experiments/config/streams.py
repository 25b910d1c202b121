"""Standard output and error that cannot end a program: what cannot be shown is lost, and the work goes on.

A program may be started without them (`>&-`), its reader may go away (`| head -1`, a terminal that is
closed), the disk behind them may be full, and a terminal may know ASCII alone.
"""

import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO


class _LenientFile(io.RawIOBase):
    """Writes to a file descriptor; bytes that it does not take are dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        try:
            return os.isatty(self._descriptor)
        except OSError:
            return False

    def write(self, data: Any, /) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError:  # no reader (EPIPE), no terminal (EIO), a full disk: nobody to report it to
            return memoryview(data).nbytes


def make_streams_lenient() -> None:
    """Replace the standard streams by ones that never raise, and fill those that are missing with nothing.

    A descriptor of 0, 1 or 2 that is closed is opened on /dev/null, so that no file of the program gets its
    number and then receives what is printed. A stream that somebody else has replaced is left alone.
    """
    for descriptor in (0, 1, 2):
        _open_if_closed(descriptor)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lenient(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lenient(sys.stderr, 2)


def _open_if_closed(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        nothing = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
        if nothing != descriptor:
            os.dup2(nothing, descriptor)
            os.close(nothing)
        os.set_inheritable(descriptor, True)


def _lenient(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a stream by lines on a descriptor, with the encoding of the present one if there is one."""
    if stream is None:  # Python found it closed; by now something of the program may have its number
        return Path(os.devnull).open("w", encoding="utf-8")
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_LenientFile(descriptor)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,
    )
