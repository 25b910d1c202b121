"""Compares two policies on the episodes that both have run: same task, same seed, same scene.

Pairing removes the luck of the scenes, so fewer episodes tell two policies apart, and the verdict says so
when they cannot be told apart. It reads rows; see episodes.py for where they come from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from envs.evaluation.episodes import EpisodeRow
from envs.evaluation.statistics import Interval, mcnemar_p_value, paired_difference_interval, pairs_needed

ALPHA = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedCounts:
    """How often both, one or neither of two policies succeeded on the same episodes."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[bool, bool]]) -> "PairedCounts":
        """Count pairs of (A succeeded, B succeeded)."""
        outcomes = list(pairs)
        return cls(
            both=outcomes.count((True, True)),
            only_a=outcomes.count((True, False)),
            only_b=outcomes.count((False, True)),
            neither=outcomes.count((False, False)),
        )

    @property
    def pairs(self) -> int:
        """Number of paired episodes."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def rate_a(self) -> float:
        """Success rate of A on the pairs."""
        return (self.both + self.only_a) / self.pairs

    @property
    def rate_b(self) -> float:
        """Success rate of B on the pairs."""
        return (self.both + self.only_b) / self.pairs

    @property
    def difference(self) -> float:
        """Success rate of A less that of B."""
        return (self.only_a - self.only_b) / self.pairs

    @property
    def interval(self) -> Interval:
        """Tango's 95 % interval of the difference."""
        return paired_difference_interval(self.only_a, self.only_b, self.pairs)

    @property
    def p_value(self) -> float:
        """Two-sided exact McNemar p-value."""
        return mcnemar_p_value(self.only_a, self.only_b)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The outcome of `compare`."""

    overall: PairedCounts
    tasks: dict[str, PairedCounts]
    unpaired_a: int  # rows of A without a partner
    unpaired_b: int

    def verdict(self, name_a: str = "A", name_b: str = "B") -> str:
        """Return one sentence: which is better, or that they cannot be told apart and what it would take."""
        counts = self.overall
        numbers = (
            f"difference {100 * counts.difference:+.1f} points, "
            f"95 % interval {counts.interval.in_percent('+.1f')}, "
            f"McNemar p = {counts.p_value:.3g}, {counts.pairs} paired episodes"
        )
        if counts.p_value < ALPHA:
            better, worse = (name_a, name_b) if counts.difference > 0 else (name_b, name_a)
            return f"{better} is better than {worse}: {numbers}."
        hint = ""
        if counts.only_a != counts.only_b:
            needed = pairs_needed(
                only_a_rate=counts.only_a / counts.pairs, only_b_rate=counts.only_b / counts.pairs
            )
            hint = f" If the difference is real, about {needed} pairs would show it (power 80 %)."
        return f"{name_a} and {name_b} cannot be told apart: {numbers}.{hint}"


def compare(rows_a: Sequence[EpisodeRow], rows_b: Sequence[EpisodeRow]) -> Comparison:
    """Pair the rows of two evaluations by task, seed and instruction mode, and count.

    Raises:
        ValueError: nothing pairs, an episode occurs twice, or paired episodes had different instructions,
            which means that their scenes differ.
    """
    keyed_a, keyed_b = _by_key(rows_a), _by_key(rows_b)
    shared = [key for key in keyed_a if key in keyed_b]
    if not shared:
        raise ValueError(f"no episode in common: A has {_describe(rows_a)}, B has {_describe(rows_b)}")
    for key in shared:
        if keyed_a[key].instruction != keyed_b[key].instruction:
            raise ValueError(
                f"task {key[0]}, seed {key[1]} is {keyed_a[key].instruction!r} in A but another scene in B "
                f"({keyed_b[key].instruction!r}); evaluate both with the same environment"
            )
    outcomes = {key: (keyed_a[key].success, keyed_b[key].success) for key in shared}
    tasks = {
        task: PairedCounts.of(outcomes[key] for key in shared if key[0] == task)
        for task in dict.fromkeys(key[0] for key in shared)
    }
    return Comparison(
        overall=PairedCounts.of(outcomes.values()),
        tasks=tasks,
        unpaired_a=len(keyed_a) - len(shared),
        unpaired_b=len(keyed_b) - len(shared),
    )


_Key = tuple[str, int, str]


def _by_key(rows: Sequence[EpisodeRow]) -> dict[_Key, EpisodeRow]:
    keyed: dict[_Key, EpisodeRow] = {}
    for row in rows:
        key = (row.task, row.seed, row.instruction_mode)
        if key in keyed:
            raise ValueError(
                f"task {row.task}, seed {row.seed} occurs twice; compare one evaluation with one"
            )
        keyed[key] = row
    return keyed


def _describe(rows: Sequence[EpisodeRow]) -> str:
    if not rows:
        return "no rows"
    tasks, modes = sorted({row.task for row in rows}), sorted({row.instruction_mode for row in rows})
    seeds = [row.seed for row in rows]
    return f"tasks {tasks}, instruction modes {modes}, seeds {min(seeds)} to {max(seeds)}"


def format_comparison(comparison: Comparison, *, name_a: str = "A", name_b: str = "B") -> str:
    """Return a table by task and the verdict, for a terminal."""
    rows = [*comparison.tasks.items(), ("all", comparison.overall)]
    width = max(len("task"), *(len(name) for name, _ in rows))
    lines = [f"{'task':{width}}  pairs      A      B  only A  only B  A - B, 95 % interval      p"]
    for name, counts in rows:
        interval = f"{100 * counts.difference:+.1f} {counts.interval.in_percent('+.1f')}"
        lines.append(
            f"{name:{width}}  {counts.pairs:5d}  {100 * counts.rate_a:4.0f} %  {100 * counts.rate_b:4.0f} %"
            f"  {counts.only_a:6d}  {counts.only_b:6d}  {interval:21}  {counts.p_value:.3g}"
        )
    lines.append(f"A is {name_a}, B is {name_b}.")
    if comparison.unpaired_a or comparison.unpaired_b:
        lines.append(
            f"Left out, without a partner: {comparison.unpaired_a} of A, {comparison.unpaired_b} of B."
        )
    return "\n".join([*lines, comparison.verdict(name_a, name_b)])
