"""When an expert takes over from a policy, and what an interrupted recording of it has."""

import dataclasses
import itertools

import numpy as np
import pytest

from envs.collection import collect_takeovers
from envs.evaluation.episodes import EpisodeRow
from envs.evaluation.results import Evaluation, EvaluationPlan
from experiments import corrections
from experiments.corrections import (
    CorrectionSettings,
    NothingToCorrect,
    count_rows,
    plan_takeovers,
    record_corrections,
)
from vla.data.geometry import read_views
from vla.data.lerobot_v3 import Dataset

ENV = {"family": "tabletop", "image_size": 16, "level": "none"}
STEPS = {0: 20, 1: 60, 2: 3}  # by seed
SUCCESS = {0: True, 1: False, 2: True}


@pytest.fixture
def practiced(tmp_path):
    """An evaluation of an arm that stands still, said to have succeeded here and there."""
    (tmp_path / "actions").mkdir()
    rows = []
    for seed, steps in STEPS.items():
        np.save(tmp_path / "actions" / f"reach-{seed}.npy", np.zeros((steps, 7), np.float32))
        rows.append(
            EpisodeRow(
                task="reach",
                seed=seed,
                instruction_mode="original",
                instruction="reach it",
                given_instruction="reach it",
                level="none",
                steps=steps,
                success=SUCCESS[seed],
                num_clipped=0,
                stop_reason="",
                wall_s=1.0,
                policy_id="p",
                versions={},
            )
        )
    plan = EvaluationPlan(
        env_configs={"reach": {**ENV, "task": "reach"}}, episodes_per_task=3, first_seed=0, execute_horizon=4
    )
    return Evaluation(run_dir=tmp_path, plan=plan, policy_id="p", rows=tuple(rows))


def test_a_failure_is_interrupted_often_and_a_success_before_it_is_one(practiced):
    planned = plan_takeovers(practiced, CorrectionSettings(after_success=1, after_failure=3))
    leads = {seed: [len(one.lead) for one in those] for seed, those in by_seed(planned)}
    assert list(leads) == [0, 1]  # the third was over before anyone could have taken over
    assert len(leads[0]) == 1
    assert 4 <= leads[0][0] < 19
    assert len(leads[1]) == 3
    assert 4 <= leads[1][0] < 23 <= leads[1][1] < 42 <= leads[1][2] < 60
    again = plan_takeovers(practiced, CorrectionSettings(after_success=1, after_failure=3))
    assert [len(one.lead) for one in again] == [len(one.lead) for one in planned]


def by_seed(planned):
    return [(seed, list(those)) for seed, those in itertools.groupby(planned, key=lambda one: one.seed)]


def test_without_an_expert_successes_are_taken_as_they_are(practiced):
    planned = plan_takeovers(practiced, CorrectionSettings(teacher="itself"))
    assert [(one.seed, len(one.lead), len(one.own)) for one in planned] == [(0, 0, 20), (2, 0, 3)]


def test_an_interrupted_recording_goes_on_where_it_stopped(practiced, tmp_path, monkeypatch):
    settings = CorrectionSettings(after_failure=2, num_workers=1)
    whole = record_corrections(tmp_path / "whole", practiced, settings=settings)["reach"]
    assert (whole.episodes, whole.successes, whole.takeovers, whole.recorded) == (3, 2, 3, 3)
    assert count_rows({"reach": whole}) == [["reach", "2/3", "3", "3", "0"]]

    first = dataclasses.replace(practiced, rows=practiced.rows[:1])
    record_corrections(tmp_path / "parts", first, settings=settings)
    again = record_corrections(tmp_path / "parts", practiced, settings=settings)["reach"]
    assert again == whole
    one, other = (Dataset(tmp_path / name) for name in ("whole", "parts"))
    np.testing.assert_array_equal(one.actions, other.actions)
    assert one.episode_extra["taken_over_at"] == other.episode_extra["taken_over_at"]


def test_where_the_expert_fails_it_takes_over_sooner(practiced, tmp_path, monkeypatch):
    asked = []

    def helpless_after_ten_periods(configs, takeovers, **options):
        asked.append([len(one.lead) for one in takeovers])
        yield from collect_takeovers(configs, [one for one in takeovers if len(one.lead) <= 10], **options)

    monkeypatch.setattr(corrections, "collect_takeovers", helpless_after_ten_periods)
    failure = dataclasses.replace(practiced, rows=practiced.rows[1:2])
    settings = CorrectionSettings(after_failure=1, num_workers=1)
    counts = record_corrections(tmp_path / "sooner", failure, settings=settings)["reach"]
    assert (counts.takeovers, counts.recorded, counts.failed) == (1, 1, 0)
    (planned,) = plan_takeovers(failure, settings)
    at = len(planned.lead)
    assert at > 10, "or there is nothing to see"
    assert asked == [[at >> i] for i in range(len(asked))]
    assert Dataset(tmp_path / "sooner").episode_extra["taken_over_at"] == [at >> len(asked) - 1]
    before = len(asked)
    assert record_corrections(tmp_path / "sooner", failure, settings=settings)["reach"] == counts
    assert len(asked) == 2 * before - 1, "what is recorded already is not recorded again"

    hopeless = CorrectionSettings(after_failure=1, shortest_lead=11, num_workers=1)
    with pytest.raises(NothingToCorrect, match="1 take-overs in 1 episodes"):
        record_corrections(tmp_path / "hopeless", failure, settings=hopeless)


def test_what_demonstrations_measure_corrections_measure_too(practiced, tmp_path):
    settings = CorrectionSettings(after_failure=1, num_workers=1)
    one = dataclasses.replace(practiced, rows=practiced.rows[:1])
    record_corrections(tmp_path / "measured", one, settings=settings, geometry=True)
    recording = Dataset(tmp_path / "measured")
    views = read_views(recording)
    assert set(views) == set(recording.robot_spec.camera_names)
    assert {len(seen.points) for seen in views.values()} == {len(recording.actions)}


def test_nothing_to_correct_is_said(practiced, tmp_path):
    settings = CorrectionSettings(after_success=0, after_failure=0, num_workers=1)
    with pytest.raises(NothingToCorrect, match=r"raise corrections\.after_success"):
        record_corrections(tmp_path / "nothing", practiced, settings=settings)
