"""The record of an evaluation: one JSON line per episode, written as it ends and never rewritten.

A program that is killed leaves a file that can be read and continued: at worst its last line is torn, and a
torn line is dropped.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.files import read_json_lines

FORMER_NAMES = {"right": "original"}  # of instruction modes, in stored results


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeRow:
    """One finished episode, with everything needed to pair it with another policy's."""

    task: str
    seed: int
    instruction_mode: str  # which instruction the policy was given: "original", "blank" or "swapped"
    instruction: str  # of the goal that decided about success
    given_instruction: str
    level: str  # of randomization, from the environment's configuration
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
    def from_json(cls, data: Mapping[str, Any]) -> "EpisodeRow":
        """Rebuild a row.

        Raises:
            ValueError: keys are missing or unknown. Rows of before the robot's runtime was evaluated have no
                `stop_reason`.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        current = with_instruction_mode(data)
        if set(current) | {"stop_reason"} != expected:
            raise ValueError(f"an episode row has the keys {sorted(expected)}, not {sorted(data)}")
        return cls(**current)


def with_instruction_mode(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored JSON under the current key: `instruction_mode` was called `condition`.

    >>> with_instruction_mode({"seed": 1, "condition": "right"})
    {'seed': 1, 'instruction_mode': 'original'}
    """
    current = dict(stored)
    if "condition" in current:
        mode = current.pop("condition")
        current["instruction_mode"] = FORMER_NAMES.get(mode, mode)
    return current


def read_rows(path: Path) -> list[EpisodeRow]:
    """Return the rows of an `episodes.jsonl`, without a torn last line.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: another line is damaged; the message tells which.
    """
    return read_json_lines(path, EpisodeRow.from_json)
