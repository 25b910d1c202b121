"""Where a run's numbers go: the `MetricSink` protocol, and a sink of JSON lines that is always there."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vla.files import JsonLinesAppender, read_json_lines, write_json_lines


@runtime_checkable
class MetricSink(Protocol):
    """Receives named numbers as training goes on. A sink may lose numbers; it must never stop a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of one step."""
        ...

    def close(self) -> None:
        """Write out what is still held."""
        ...


class JsonLinesSink:
    """Appends one JSON object a call to a file; a resumed run drops the lines past its first step."""

    def __init__(self, path: Path, *, resume_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            write_json_lines(path, [row for row in read_metrics(path) if row["step"] <= resume_step])
        self._log = JsonLinesAppender(path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values; numbers that JSON cannot express become null."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._log.append({"step": step, **finite})

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file, without a torn last line.

    Raises:
        DamagedFile: another line is damaged.
    """
    return read_json_lines(path, dict)
