"""Success on development seeds while a policy is trained, and what a run may begin with."""

import dataclasses
import sys
from pathlib import Path

import pytest
from program_fixtures import composed

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from training_fixtures import make_processor, make_windows, tiny_model, train_for

from experiments import development
from experiments.reports.pages import training_section
from experiments.train import require_settings
from experiments.training_parts import rollouts_of
from vla.data.demonstrations import DemonstrationSource
from vla.files import write_json_lines
from vla.model.checkpoint import CheckpointError
from vla.registry import SettingError
from vla.training.best import DEVELOPMENT_SUCCESS

MEASURED = ("trainer.best_by=success", "trainer.rollout_every_samples=1000")


@pytest.mark.parametrize(
    "overrides",
    [["rollouts.first_seed=900000"], ["rollouts.first_seed=899990", "rollouts.episodes_per_task=11"]],
)
def test_no_checkpoint_is_chosen_on_seeds_for_reporting(overrides):
    with pytest.raises(SettingError, match=r"rollouts\.first_seed=.* are for reporting"):
        composed("train", *MEASURED, *overrides)


def test_success_of_a_robot_that_no_simulator_has_is_refused(tmp_path):
    processor = make_processor(DemonstrationSource(make_windows(tmp_path)))
    run = composed("train", *MEASURED)
    with pytest.raises(SettingError, match=r"rollout_every_samples=1000 .* another robot .*\('toy'\)"):
        rollouts_of(run, processor, seeds={}, simulated=False)
    assert rollouts_of(composed("train"), processor, seeds={}, simulated=False) is None


@dataclasses.dataclass
class Ended:
    request: development.EpisodeRequest
    success: bool


def test_all_tasks_are_played_and_the_worst_is_seen(tmp_path, monkeypatch):
    processor = make_processor(DemonstrationSource(make_windows(tmp_path)))
    played = []

    def run_episodes(policy, requests, **how):
        assert how["execute_horizon"] == 4
        for request in requests:
            played.append((request.task, request.seed))
            yield Ended(request, success=request.task == "reach")

    monkeypatch.setattr(development, "run_episodes", run_episodes)
    run = composed("train", *MEASURED, "tasks=[reach,lift]", "rollouts.episodes_per_task=3")
    rollouts = rollouts_of(run, processor, seeds={}, simulated=True)
    model = tiny_model(processor)
    numbers = rollouts(model, should_stop=lambda: False)
    assert played == [(task, seed) for task in ("reach", "lift") for seed in (500000, 500001, 500002)]
    assert numbers[DEVELOPMENT_SUCCESS] == 0.5
    assert numbers["development/success/lift"] == 0.0
    assert 0.1 < numbers["development/success_low"] < 0.5 < numbers["development/success_high"] < 0.9
    played.clear()
    assert rollouts(model, should_stop=lambda: True) is None
    assert len(played) == 1


def test_success_is_drawn_on_the_page_of_the_training(tmp_path):
    rows = [
        {"step": step, "development/success": 0.2 * step, "development/success_low": 0.1, "loss": 1.0}
        for step in (1, 2)
    ]
    write_json_lines(tmp_path / "metrics.jsonl", rows)
    captions = [chart.caption for chart in training_section(tmp_path / "metrics.jsonl").charts]
    assert "success on development seeds, 95 % interval" in captions


def test_what_a_run_begins_with_is_checked_before_anything_is_recorded(tmp_path):
    train_for(tmp_path / "old", tmp_path, steps=1)
    with pytest.raises(CheckpointError, match=r"another size: width=32 there, 256 in the new model"):
        require_settings(composed("train", f"init_from={tmp_path / 'old'}", f"out_dir={tmp_path / 'new'}"))
    with pytest.raises(SettingError, match=r"init_from is .* does not exist; did you mean 'old'\?"):
        require_settings(composed("train", f"init_from={tmp_path / 'odl'}", f"out_dir={tmp_path / 'new'}"))
    with pytest.raises(SettingError, match="init_statistics=checkpoint needs init_from"):
        require_settings(composed("train", "init_statistics=checkpoint"))
    resumed = composed("train", f"init_from={tmp_path / 'gone'}", f"out_dir={tmp_path / 'old'}")
    require_settings(resumed)  # the run has its own weights


def test_patterns_are_given_on_the_command_line():
    run = composed(
        "train", "trainer.freeze=[backbone.*]", "trainer.learning_rate_scale={head.*: 2, *.up.weight: 0.1}"
    )
    assert run.trainer.freeze == ("backbone.*",)
    assert dict(run.trainer.learning_rate_scale) == {"head.*": 2.0, "*.up.weight": 0.1}
    assert Path(run.out_dir).is_absolute()
