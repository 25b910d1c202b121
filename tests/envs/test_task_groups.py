"""Results of a family with groups are summed up by group, wherever results are told."""

import dataclasses
import json

import numpy as np
import pytest

from envs.evaluation.episodes import EpisodeRow
from envs.evaluation.results import Evaluation, EvaluationPlan, format_table
from envs.evaluation.statistics import interval_of_mean, wilson_interval
from envs.metaworld.tasks import MT10, MT50, TIERS
from experiments.reports.html import Success


def evaluation(tasks, tmp_path, *, family="metaworld", episodes=4, failing=()):
    plan = EvaluationPlan(
        env_configs={task: {"family": family, "task": task} for task in tasks},
        episodes_per_task=episodes,
        first_seed=0,
    )
    rows = [
        EpisodeRow(
            task=request.task,
            seed=request.seed,
            instruction_mode="original",
            instruction="",
            given_instruction="",
            level="",
            steps=10,
            success=request.task not in failing or request.seed == 0,
            num_clipped=0,
            wall_s=1.0,
            policy_id="p",
            versions={},
        )
        for request in plan.requests()
    ]
    return Evaluation(run_dir=tmp_path, plan=plan, policy_id="p", rows=tuple(rows))


def test_tiers_count_their_tasks_and_their_mean_counts_tiers(tmp_path):
    result = evaluation(MT50, tmp_path, failing=TIERS["hard"])
    assert [(name, group.num_tasks) for name, group in result.groups.items()] == [
        (name, len(tasks)) for name, tasks in TIERS.items()
    ]
    hard = result.groups["hard"]
    assert (hard.successes, hard.episodes, hard.success_rate) == (6, 24, pytest.approx(0.25))
    assert hard.interval == wilson_interval(6, 24)
    rate, interval = result.group_mean
    assert rate == pytest.approx((1 + 1 + 0.25 + 1) / 4)
    assert interval.low < rate < interval.high < 1.0
    assert result.mean_success_rate == pytest.approx((44 + 6 * 0.25) / 50)


def test_every_telling_has_them(tmp_path):
    result = evaluation(MT50, tmp_path, failing=["push"])
    table = format_table(result)
    assert "hard (6 tasks)" in table
    assert "mean over tiers" in table
    assert table.index("window-open") < table.index("easy (28 tasks)") < table.index("mean over tasks")
    stored = json.loads(json.dumps(result.to_json()))["tiers"]
    assert list(stored) == [*TIERS, "mean"]
    assert stored["mean"]["success_rate"] == pytest.approx((3 + 21 / 24) / 4)
    page = Success(title="Success", evaluations={"original": result}, targets={}).to_html()
    assert "very hard (5 tasks)" in page


def test_there_is_no_mean_over_tiers_of_which_tasks_are_missing(tmp_path):
    result = evaluation(MT10, tmp_path)
    assert {name: group.num_tasks for name, group in result.groups.items()} == {
        "easy": 7,
        "medium": 1,
        "hard": 2,
    }
    assert result.group_mean is None
    assert "easy (7 of 28 tasks)" in format_table(result)
    assert "mean over tiers" not in format_table(result)


def test_a_family_without_groups_is_told_as_before(tmp_path):
    result = evaluation(["reach", "push"], tmp_path, family="tabletop")
    assert result.groups == {}
    assert "tiers" not in result.to_json()
    lines = format_table(result).splitlines()
    assert len(lines) == 8
    assert lines[1] == lines[4] == "  ".join("-" * len(part) for part in lines[1].split("  "))
    unnamed = dataclasses.replace(result.plan, env_configs={"reach": {}})
    assert dataclasses.replace(result, plan=unnamed).groups == {}


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, sizes = np.array([0.95, 0.8, 0.6, 0.5]), np.array([280, 110, 60, 50])
    covered = 0
    for _ in range(400):
        successes = rng.binomial(sizes, truth)
        intervals = [wilson_interval(int(k), int(n)) for k, n in zip(successes, sizes, strict=True)]
        interval = interval_of_mean(list(successes / sizes), intervals)
        covered += interval.low <= truth.mean() <= interval.high
    assert 0.92 < covered / 400 < 0.985
    with pytest.raises(ValueError, match="2 rates and 1 intervals"):
        interval_of_mean([0.5, 0.5], [wilson_interval(1, 2)])
