"""The record of an evaluation: one JSON line per episode, written as it ends and never rewritten.

A program that is killed leaves a file that can be read and continued: at worst its last line is torn, and a
torn line is dropped.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.files import DamagedFile, read_json_lines

_LOG = logging.getLogger(__name__)
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
            ValueError: keys are missing or unknown, or a value has another type. Rows of before the robot's
                runtime was evaluated have no `stop_reason`.
        """
        fields = dataclasses.fields(cls)
        expected = {field.name for field in fields}
        current = with_instruction_mode(data)
        if set(current) | {"stop_reason"} != expected:
            raise ValueError(f"an episode row has the keys {sorted(expected)}, not {sorted(data)}")
        for field in fields:
            kinds = {"wall_s": (int, float), "versions": (dict,)}.get(field.name, (field.type,))
            value = current.get(field.name, field.default)
            if type(value) not in kinds:  # a bool is an int to isinstance
                raise ValueError(
                    f"{field.name} is {value!r}; it must be {' or '.join(kind.__name__ for kind in kinds)}"
                )
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
    """Return the rows of an `episodes.jsonl`, one per episode, without a torn last line.

    A row that stands there twice, as after a file was merged by hand, counts once, and the log says so.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: another line is damaged, or two rows of an episode differ; the message tells which.
    """
    rows: dict[tuple[str, int, str, str], EpisodeRow] = {}
    repeated = 0
    for row in read_json_lines(path, EpisodeRow.from_json):
        first = rows.setdefault((row.task, row.seed, row.instruction_mode, row.policy_id), row)
        if dataclasses.replace(first, wall_s=row.wall_s) != row:
            raise DamagedFile(
                f"{path} has two rows of task {row.task}, seed {row.seed} that differ; remove the wrong one"
            )
        repeated += first is not row
    if repeated:
        _LOG.warning("%s: %d rows stand there more than once; each counts once", path, repeated)
    return list(rows.values())
