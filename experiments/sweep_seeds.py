"""Runs of a sweep that differ in their seed alone, as one row: means with intervals over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SEED = "seed"  # the key that tells the runs of a group apart
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanOverRuns:
    """A mean, and the interval of it over runs: none of a single run."""

    mean: float
    low: float | None
    high: float | None
    num_runs: int

    def text(self, style: str) -> str:
        """Return it as text, numbers in a style such as `.1f`."""
        if self.low is None or self.high is None:
            return f"{self.mean:{style}}"
        return f"{self.mean:{style}} [{self.low:{style}}, {self.high:{style}}]"


def mean_over_runs(values: Sequence[float]) -> MeanOverRuns:
    """Return the mean with Student's 95 % interval over independent runs."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return MeanOverRuns(mean=mean, low=None, high=None, num_runs=count)
    half = student_critical_value(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return MeanOverRuns(mean=mean, low=mean - half, high=mean + half, num_runs=count)


def student_critical_value(freedom: int) -> float:
    """Return t with P(|T| < t) = 95 % for Student's distribution of `freedom` >= 1 degrees of freedom.

    >>> round(student_critical_value(1), 3), round(student_critical_value(4), 3)
    (12.706, 2.776)
    """
    low, high = 0.0, 100.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, freedom) < _CONFIDENCE else (low, middle)
    return high


def _share_within(t: float, freedom: int) -> float:
    """Return P(|T| < t); Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, is_odd = math.cos(angle), freedom % 2
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for k in range(2 + is_odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return 2 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total


def groups_over_seeds(overrides: Sequence[Mapping[str, str]]) -> list[tuple[dict[str, str], list[int]]]:
    """Group runs whose settings are equal, their seed apart.

    Args:
        overrides: of each run, by key.

    Returns:
        For each group its settings without the seed, and the numbers of its runs; in order of the first one.
    """
    groups: list[tuple[dict[str, str], list[int]]] = []
    for number, given in enumerate(overrides):
        settings = {key: value for key, value in given.items() if key != SEED}
        members = next((found for known, found in groups if known == settings), None)
        if members is None:
            groups.append((settings, [number]))
        else:
            members.append(number)
    return groups


def seeds_table(
    overrides: Sequence[Mapping[str, str]], columns: Mapping[str, tuple[str, Sequence[float | None]]]
) -> tuple[list[str], list[list[str]], list[dict[str, Any]]]:
    """Return header, rows and JSON-ready data of the means over seeds; no rows where no seed is repeated.

    Args:
        overrides: of each run, by key.
        columns: by title a style of numbers such as `.1f` and the value of each run; a run without one does
            not count in that column.
    """
    groups = groups_over_seeds(overrides)
    present = {title: one for title, one in columns.items() if any(value is not None for value in one[1])}
    header = ["settings", "runs", *present]
    if all(len(members) < 2 for _, members in groups):
        return header, [], []
    differing = {
        key
        for settings, _ in groups
        for key in settings
        if any(settings[key] != other.get(key) for other, _ in groups)
    }
    rows, results = [], []
    for settings, members in groups:
        shown = ", ".join(f"{key}={value}" for key, value in settings.items() if key in differing)
        cells = [shown or "the baseline's", str(len(members))]
        means: dict[str, Any] = {}
        for title, (style, values) in present.items():
            known = [value for value in (values[number] for number in members) if value is not None]
            found = mean_over_runs(known) if known else None
            cells.append("" if found is None else found.text(style))
            means[title] = None if found is None else [found.mean, found.low, found.high]
        rows.append(cells)
        results.append({"settings": settings, "runs": members, "means": means})
    return header, rows, results
