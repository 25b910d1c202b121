"""Compares two evaluations episode by episode: same task, same seed, same scene, two policies.

    python -m experiments.compare a=outputs/evaluate/first b=outputs/evaluate/second

Says how much they differ, with an interval, and when they cannot be told apart. Knows no policies.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from envs.results import Evaluation, load_evaluation
from envs.statistics import Interval, mcnemar_p_value, paired_difference_interval, pairs_needed
from experiments import cli, schema
from experiments.tables import format_table
from vla.files import atomic_write_json

schema.register()

SIGNIFICANCE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedResult:
    """Two success rates on the same episodes, and their difference a - b with its 95 % interval."""

    task: str
    pairs: int
    rate_a: float
    rate_b: float
    only_a: int  # episodes in which a alone succeeded
    only_b: int
    difference: Interval
    p_value: float  # exact McNemar

    @classmethod
    def of(cls, task: str, outcomes: Sequence[tuple[bool, bool]]) -> "PairedResult":
        """Sum up at least one pair of outcomes (a, b)."""
        pairs = len(outcomes)
        only_a = sum(a and not b for a, b in outcomes)
        only_b = sum(b and not a for a, b in outcomes)
        return cls(
            task=task,
            pairs=pairs,
            rate_a=sum(a for a, _ in outcomes) / pairs,
            rate_b=sum(b for _, b in outcomes) / pairs,
            only_a=only_a,
            only_b=only_b,
            difference=paired_difference_interval(only_a, only_b, pairs),
            p_value=mcnemar_p_value(only_a, only_b),
        )

    def verdict(self) -> str:
        """Say in a sentence whether the two can be told apart."""
        points = _points(self.difference)
        if self.p_value < SIGNIFICANCE:
            better = "a" if self.rate_a > self.rate_b else "b"
            return f"{better} is better: a - b lies in {points} points (p = {self.p_value:.2g})"
        return f"cannot be told apart: a - b lies in {points} points (p = {self.p_value:.2g})"

    def advice(self) -> str | None:
        """Say how many episodes would settle it, if they disagree as often as here."""
        if self.p_value < SIGNIFICANCE or self.only_a == self.only_b:
            return None
        needed = pairs_needed(only_a_rate=self.only_a / self.pairs, only_b_rate=self.only_b / self.pairs)
        return (
            f"if the rates are as seen here, {needed} paired episodes would find the difference (power 80 %)"
        )


def open_evaluation(path: Path, condition: str) -> Evaluation:
    """Load `path`, or the folder of a condition in it.

    Raises:
        FileNotFoundError: neither holds an evaluation.
    """
    return load_evaluation(path if (path / "plan.json").exists() else path / condition)


def compare_evaluations(a: Evaluation, b: Evaluation) -> list[PairedResult]:
    """Return the paired result of every shared task, and last that of all together.

    Raises:
        ValueError: they share no episode, or a task has different environments or instructions in the two.
    """
    for task in sorted(set(a.plan.env_configs) & set(b.plan.env_configs)):
        if a.plan.env_configs[task] != b.plan.env_configs[task] or a.plan.condition != b.plan.condition:
            raise ValueError(
                f"task {task!r} was evaluated differently, so its episodes are no pairs:\n"
                f"  a: {a.plan.condition} instruction, {a.plan.env_configs[task]}\n"
                f"  b: {b.plan.condition} instruction, {b.plan.env_configs[task]}"
            )
    outcomes_b = {(row.task, row.seed): row.success for row in b.rows}
    pairs = {
        task: [
            (row.success, outcomes_b[task, row.seed])
            for row in a.rows
            if row.task == task and (task, row.seed) in outcomes_b
        ]
        for task in a.plan.env_configs
    }
    shared = {task: outcomes for task, outcomes in pairs.items() if outcomes}
    if not shared:
        raise ValueError(
            f"{a.run_dir} and {b.run_dir} share no episode: tasks {list(a.plan.env_configs)} from seed "
            f"{a.plan.first_seed} against {list(b.plan.env_configs)} from seed {b.plan.first_seed}"
        )
    results = [PairedResult.of(task, outcomes) for task, outcomes in shared.items()]
    return [*results, PairedResult.of("all", [pair for outcomes in shared.values() for pair in outcomes])]


def _points(interval: Interval) -> str:
    return f"[{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def comparison_table(results: Sequence[PairedResult]) -> str:
    """Return the results as text, rates in percent."""
    rows = [
        [
            r.task,
            str(r.pairs),
            f"{100 * r.rate_a:.1f}",
            f"{100 * r.rate_b:.1f}",
            f"{100 * (r.rate_a - r.rate_b):+.1f} {_points(r.difference)}",
            str(r.only_a),
            str(r.only_b),
            f"{r.p_value:.2g}",
        ]
        for r in results
    ]
    return format_table(["task", "pairs", "a %", "b %", "a - b [95 %]", "only a", "only b", "p"], rows)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="compare")
def main(config: DictConfig) -> None:
    """Compare."""
    run = schema.typed(config, schema.CompareRun)
    a = open_evaluation(Path(run.a), run.condition)
    b = open_evaluation(Path(run.b), run.condition)
    results = compare_evaluations(a, b)
    print(f"a: {run.a} (policy {a.policy_id[:12]})\nb: {run.b} (policy {b.policy_id[:12]})")
    print(comparison_table(results))
    print(results[-1].verdict())
    if (advice := results[-1].advice()) is not None:
        print(advice)
    path = Path(HydraConfig.get().runtime.output_dir) / "comparison.json"
    atomic_write_json(path, json.loads(json.dumps([dataclasses.asdict(result) for result in results])))
    print(f"written to {path}")


if __name__ == "__main__":
    cli.run(main)
