"""Times things and reports the times next to the limits that were measured in the same run.

CPU time is that of this process; the smallest of several repeats counts, as everything else on a machine only
adds to it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.reports.pages import machine
from experiments.reports.tables import format_table, save_results
from vla.provenance import software_versions


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measured quantity and what bounds it, in the same unit; a limit may be absent.

    A unit with "/s" is a rate, of which more is better; of any other less is better.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    limit_name: str = ""
    note: str = ""

    @property
    def share(self) -> float | None:
        """How much of what is possible was reached: 1 is the limit."""
        if self.limit is None:
            return None
        return self.value / self.limit if "/s" in self.unit else self.limit / self.value

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-ready data, its share included."""
        keys = ("name", "value", "unit", "limit", "limit_name", "note", "share")
        return {key: getattr(self, key) for key in keys}


def best_cpu_s(work: Callable[[], object], *, repeats: int) -> float:
    """Return the smallest CPU time of this process, all its threads, that `work` took [s]."""
    return min(_timed(work, time.process_time) for _ in range(repeats))


def best_wall_s(work: Callable[[], object], *, repeats: int) -> float:
    """Return the smallest wall time that `work` took [s]: for work on several cores."""
    return min(_timed(work, time.perf_counter) for _ in range(repeats))


def _timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


HEADER = ("what", "measured", "limit", "share", "limited by, note")


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Return the rows as text, in the order of `HEADER`."""
    return [
        [
            row.name,
            f"{_short(row.value)} {row.unit}",
            "" if row.limit is None else f"{_short(row.limit)} {row.unit}",
            "" if row.share is None else f"{100 * row.share:.0f} %",
            "; ".join(text for text in (row.limit_name, row.note) if text),
        ]
        for row in rows
    ]


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def terminal_table(rows: Sequence[Row]) -> str:
    """Return a table for a terminal; notes stand below it, numbered."""
    notes: list[str] = []
    lines = []
    for *cell, note in cells(rows):
        if note and note not in notes:
            notes.append(note)
        lines.append([*cell, f"({notes.index(note) + 1})" if note else ""])
    listed = [f"({number}) {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join([format_table([*HEADER[:-1], ""], lines), *listed])


def save(rows: Sequence[Row], *, part: str, command: str, out_dir: Path) -> Path:
    """Write `<part>.json` and `<part>.md` into `out_dir`, each as a whole, and return the latter."""
    where = machine()
    found = {
        "part": part,
        "command": command,
        "machine": where,
        "versions": software_versions(),
        "rows": [row.to_json() for row in rows],
    }
    lines = [f"# Benchmark: {part}", "", f"`{command}`", "", where, ""]
    lines += [f"| {' | '.join(HEADER)} |", "|---|---:|---:|---:|---|"]
    lines += [f"| {' | '.join(row)} |" for row in cells(rows)]
    return save_results(out_dir / part, results=found, markdown="\n".join(lines) + "\n")
