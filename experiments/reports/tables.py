"""Plain text tables for the terminal and for Markdown, and results as a pair of JSON and Markdown files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla.files import atomic_write_json, atomic_write_text


def save_results(stem: Path, *, results: Any, markdown: str) -> Path:
    """Write `<stem>.json` and `<stem>.md`, each as a whole, and return the latter."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(stem.with_name(f"{stem.name}.json"), results)
    path = stem.with_name(f"{stem.name}.md")
    atomic_write_text(path, markdown)
    return path


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns: the first to the left, the others to the right.

    >>> print(format_table(["task", "n"], [["reach", "9"], ["lift", "10"]]))
    task    n
    reach   9
    lift   10
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def format_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns of text, all aligned to the left.

    >>> print(format_lines(["check", "found"], [["rate", "20 Hz"]]))
    check  found
    rate   20 Hz
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    >>> print(markdown_table(["task", "n"], [["reach", "9"]]))
    | task | n |
    | --- | --- |
    | reach | 9 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
