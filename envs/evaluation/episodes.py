"""The record of an evaluation: one JSON line an episode, written as it ends and never rewritten.

A program that is killed leaves a file that can be read and continued: at worst its last line is torn, and a
torn line is dropped. This file knows no policies and runs nothing.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeRow:
    """One finished episode, with everything needed to pair it with another policy's."""

    task: str
    seed: int
    condition: str  # what the policy was told: "right", "blank" or "swapped" instruction
    instruction: str  # of the goal that decided about success
    given_instruction: str
    level: str  # of randomisation, from the environment's configuration
    steps: int  # control periods
    success: bool
    num_clipped: int  # actions beyond the limits of the environment or of the safety filter
    wall_s: float
    policy_id: str
    versions: Mapping[str, str]
    stop_reason: str = ""  # why the watchdog of the robot's runtime ended it; empty if it did not

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-ready data."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: Any) -> "EpisodeRow":
        """Rebuild a row.

        Raises:
            ValueError: it is no JSON object, or keys are missing or unknown. Rows of before the robot's
                runtime was evaluated have no `stop_reason`.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, dict) or set(data) | {"stop_reason"} != expected:
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"an episode row has the keys {sorted(expected)}, not {found}")
        return cls(**data)


def read_rows(path: Path) -> list[EpisodeRow]:
    """Return the rows of an `episodes.jsonl`, without a torn last line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line in the middle is damaged; the message tells which.
    """
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn, or empty
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(EpisodeRow.from_json(json.loads(line)))
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors too
            raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


class EpisodeLog:
    """Appends rows to an `episodes.jsonl`; each is on disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        size = self._file.tell()
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < size:
            self._file.truncate(whole)

    def append(self, row: EpisodeRow) -> None:
        """Write one row.

        Raises:
            OSError: the disk is full or gone; earlier rows are kept.
        """
        self._file.write(json.dumps(row.to_json(), allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "EpisodeLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.close()
