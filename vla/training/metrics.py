"""Where a run's numbers go: the `MetricSink` protocol, and a sink of JSON lines that is always there.

Knows nothing of what the numbers mean.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


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
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step] if path.exists() else []
        self._file = path.open("w", encoding="utf-8")
        for row in kept:
            self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values; numbers that JSON cannot express become null."""
        row = {"step": step, **{key: v if math.isfinite(v) else None for key, v in values.items()}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file; a last line cut off by a crash is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
