"""The table of a sweep: what differs between runs, and that each is compared with the first."""

import dataclasses
import doctest
import json
import shutil

import pytest

from envs.evaluation.episodes import EpisodeRow
from envs.evaluation.results import EvaluationPlan
from experiments import sweep_seeds
from experiments.sweep_seeds import seeds_table
from experiments.sweep_table import (
    HEADER,
    find_runs,
    number_chart,
    over_seeds_columns,
    overrides,
    read_rows,
    split_unevaluated,
    without_empty_columns,
)
from vla.files import DamagedFile


def write_run(path, *, overrides, successes, cameras=("front",), episodes=4, finished=4, loss=1.5):
    (path / ".hydra").mkdir(parents=True)
    (path / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))  # JSON is YAML
    inside = path / "evaluation" / "original"
    inside.mkdir(parents=True)
    config = {"task": "reach", "cameras": list(cameras)}
    plan = EvaluationPlan(env_configs={"reach": config}, episodes_per_task=episodes, first_seed=10)
    (inside / "plan.json").write_text(json.dumps({"policy_id": path.name, "plan": plan.to_json()}))
    rows = [
        EpisodeRow(
            task="reach",
            seed=10 + k,
            instruction_mode="original",
            instruction="go",
            given_instruction="go",
            level="none",
            steps=5,
            success=k < successes,
            num_clipped=0,
            wall_s=0.1,
            policy_id=path.name,
            versions={},
        )
        for k in range(episodes)
    ]
    lines = [json.dumps(dataclasses.asdict(row)) + "\n" for row in rows[:finished]]
    (inside / "episodes.jsonl").write_text("".join(lines))
    metrics = {"step": 7, "validation/token_accuracy": 0.5, "validation/action_loss": loss}
    (path / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")


def test_each_run_says_what_it_changed_and_how_far_it_is_from_the_first(tmp_path):
    write_run(tmp_path / "0", overrides=["seed=1", "out_dir=a"], successes=4)
    write_run(tmp_path / "1", overrides=["seed=2", "out_dir=b"], successes=1)
    write_run(tmp_path / "2", overrides=["model.backbone.depth=2"], successes=4)
    rows = read_rows(find_runs([str(tmp_path)]), "original")
    assert [row.changed for row in rows] == [
        "seed=1 (the baseline)",
        "seed=2",
        "model.backbone.depth=2, seed as by default",
    ]
    assert rows[0].paired is None
    assert rows[1].paired.difference == -0.75
    assert rows[2].paired.difference == 0.0
    assert rows[1].to_json()["tasks"] == {"reach": [1, 4]}
    assert rows[1].cells()[1].startswith("25.0 % [")
    assert (rows[0].steps, rows[0].held_out_accuracy, rows[0].held_out_loss) == (7, 0.5, 1.5)


def test_runs_that_saw_the_same_scenes_by_other_cameras_are_pairs(tmp_path):
    write_run(tmp_path / "0", overrides=[], successes=4)
    write_run(tmp_path / "1", overrides=["env.cameras=[front,side]"], successes=2, cameras=("front", "side"))
    assert read_rows(find_runs([str(tmp_path)]), "original")[1].paired.difference == -0.5


def test_places_are_no_changes(tmp_path):
    write_run(tmp_path / "0", overrides=["out_dir=x", "dataset=y", "path=z", "seed=3"], successes=1)
    assert overrides(tmp_path / "0") == {"path": "z", "seed": "3"}


def test_a_key_that_was_taken_away_is_a_change(tmp_path):
    write_run(tmp_path / "0", overrides=["~experiment", "seed=3"], successes=1)
    assert overrides(tmp_path / "0") == {"~experiment": "", "seed": "3"}


def test_a_damaged_record_is_named(tmp_path):
    write_run(tmp_path, overrides=[], successes=1)
    (tmp_path / ".hydra" / "overrides.yaml").write_text("")
    with pytest.raises(DamagedFile, match=r"overrides\.yaml"):
        overrides(tmp_path)


def test_runs_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("10", "base", "2"):
        write_run(tmp_path / name, overrides=[], successes=1)
    assert [run.name for run in find_runs([str(tmp_path)])] == ["2", "10", "base"]


def test_a_directory_without_runs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        find_runs([str(tmp_path)])


def test_a_sweep_that_is_going_on_has_a_table_of_what_is_there(tmp_path):
    write_run(tmp_path / "0", overrides=[], successes=4)
    write_run(tmp_path / "2", overrides=["seed=2"], successes=1)
    for unfinished in ("1", "3"):
        (tmp_path / unfinished / ".hydra").mkdir(parents=True)
        (tmp_path / unfinished / ".hydra" / "overrides.yaml").write_text("[]")
    write_run(tmp_path / "4", overrides=["seed=4"], successes=3, finished=3)
    runs = find_runs([str(tmp_path)])
    evaluated, waiting = split_unevaluated(runs, "original")
    assert [run.name for run in evaluated] == ["0", "2"]
    assert [run.name for run in waiting] == ["1", "3", "4"]
    with pytest.raises(ValueError, match=rf"{runs[1]}, which the others.*runs=\[{runs[2]}\]"):
        split_unevaluated(runs[1:], "original")
    with pytest.raises(ValueError, match="not finished: 3 of 4 episodes"):
        read_rows(runs[-1:], "original")


def write_rates(folder, *, evaluated):
    """Two learning rates with three seeds each; the second is better in two of four episodes more."""
    for number, (rate, seed) in enumerate((rate, seed) for rate in ("1e-3", "2e-3") for seed in range(3)):
        run = folder / str(number)
        given = ["experiment=x", f"trainer.learning_rate={rate}", f"seed={seed}"]
        write_run(run, overrides=given, successes=min(4, seed + 2 * (rate == "2e-3")), loss=number + 1.0)
        if not evaluated:
            shutil.rmtree(run / "evaluation")
    runs = find_runs([str(folder)])
    return [overrides(run) for run in runs], read_rows(runs, "original")


def test_runs_that_differ_in_their_seed_share_a_row_with_an_interval(tmp_path):
    given, rows = write_rates(tmp_path, evaluated=True)
    assert rows[0].changed == "trainer.learning_rate=1e-3, seed=0 (the baseline)"
    header, cells, results = seeds_table(given, over_seeds_columns(rows))
    assert header == ["settings", "runs", "success [%]", "held-out loss", "held-out accuracy"]
    assert [row[:2] for row in cells] == [
        ["trainer.learning_rate=1e-3", "3"],
        ["trainer.learning_rate=2e-3", "3"],
    ]
    mean, low, high = results[0]["means"]["success [%]"]
    half = 4.302653 * 25 / 3**0.5  # Student's, two degrees of freedom; a standard deviation of one in four
    assert (mean, low, high) == pytest.approx((25, 25 - half, 25 + half))
    assert cells[0][3] == "2.000 [-0.484, 4.484]"
    chart = number_chart(given, rows, results)
    assert chart is not None
    assert (chart.x_label, chart.series[0].x, chart.series[0].y) == (
        "trainer.learning_rate",
        [1e-3, 2e-3],
        pytest.approx([25.0, 75.0]),
    )


def test_a_sweep_without_evaluation_has_a_table_of_held_out_numbers(tmp_path):
    given, rows = write_rates(tmp_path, evaluated=False)
    ready, waiting = split_unevaluated(find_runs([str(tmp_path)]), "original")
    assert (len(ready), waiting) == (6, [])
    header, cells = without_empty_columns(HEADER, [row.cells() for row in rows])
    assert header == ["changed", "steps", "held-out loss", "held-out accuracy"]
    assert cells[4] == ["trainer.learning_rate=2e-3, seed=1", "7", "5.000", "0.500"]
    chart = number_chart(given[::3], rows[::3], [])
    assert chart is not None
    assert (chart.y_label, [one.y for one in chart.series]) == ("held-out loss", [[1.0, 4.0]])
    assert "success" not in rows[0].to_json()
    (tmp_path / "0" / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="no held-out numbers"):
        split_unevaluated(find_runs([str(tmp_path)]), "original")


def test_where_no_seed_is_repeated_there_is_no_second_table(tmp_path):
    write_run(tmp_path / "0", overrides=["a=1"], successes=1)
    write_run(tmp_path / "1", overrides=["a=2"], successes=1)
    runs = find_runs([str(tmp_path)])
    assert (
        seeds_table([overrides(run) for run in runs], over_seeds_columns(read_rows(runs, "original")))[1]
        == []
    )


def test_the_critical_value_is_students():
    assert doctest.testmod(sweep_seeds).failed == 0
