"""The log file of a program: a disk that is full or read-only is told once, and the work goes on."""

import logging.handlers
import sys
from logging import LogRecord


class LogFile(logging.handlers.RotatingFileHandler):
    """Python's handler, which would print a traceback for each line that cannot be written.

    Args:
        filename: of the newest part.
        mode, maxBytes, backupCount, delay: as Python's; 0 bytes never begin another file.
    """

    def __init__(
        self,
        *,
        filename: str,
        mode: str = "a",
        maxBytes: int = 0,  # noqa: N803  Python's names
        backupCount: int = 0,  # noqa: N803
        delay: bool = False,
    ) -> None:
        super().__init__(
            filename, mode, maxBytes=maxBytes, backupCount=backupCount, encoding="utf-8", delay=delay
        )
        self._is_told = False

    def handleError(self, record: LogRecord) -> None:  # noqa: N802, ARG002
        """Say once why lines are lost."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_told:
            self._is_told = True
            reason = error.strerror or str(error)
            print(
                f"warning: {self.baseFilename} cannot be written: {reason}; what it would hold is shown here "
                "alone. Free space on that disk, or give another out_dir next time",
                file=sys.stderr,
            )
