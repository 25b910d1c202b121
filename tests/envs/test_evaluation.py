"""An evaluation is a record that survives interruption and cannot be mixed up with another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
from fake_env import FACTORY, PointPolicy
from PIL import Image

from envs.evaluation.comparison import compare, format_comparison
from envs.evaluation.episodes import EpisodeRow, read_rows
from envs.evaluation.evaluate import (
    EvaluationMismatch,
    EvaluationPlan,
    evaluate,
    require_same_evaluation,
)
from envs.evaluation.results import folder_of_mode, format_table, load_evaluation
from envs.workers import WorkerError
from vla.files import DamagedFile, DirectoryInUse, write_json_lines
from vla.provenance import software_versions


def plan_of(**changes):
    configs = {"point": {"task": "point"}, "other": {"task": "other", "level": "heldout"}}
    options = {"env_configs": configs, "episodes_per_task": 6, "first_seed": 10, "execute_horizon": 5}
    return EvaluationPlan(**(options | {"videos_per_task": 0} | changes))


def run(run_dir, *, policy=None, plan=None, policy_id="a"):
    return evaluate(
        policy or PointPolicy(),
        plan or plan_of(),
        run_dir=run_dir,
        policy_id=policy_id,
        env_factory=FACTORY,
        show_progress=False,
    )


def outcomes(evaluation):
    return [(row.task, row.seed, row.success, row.steps, row.instruction) for row in evaluation.rows]


def test_a_row_an_episode_and_results_with_intervals(tmp_path):
    evaluation = run(tmp_path / "run")

    rows = read_rows(tmp_path / "run" / "episodes.jsonl")
    assert sorted((row.task, row.seed) for row in rows) == sorted(
        (task, seed) for task in ("point", "other") for seed in range(10, 16)
    )
    assert {row.level for row in rows} == {"", "heldout"}
    assert rows[0].versions["mujoco"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["complete"]
    assert results["mean_success_rate"] == 1.0
    assert results["tasks"]["point"]["interval"]["low"] == pytest.approx(0.6097, abs=1e-4)
    assert results["pooled_wilson_95"]["low"] == pytest.approx(0.7575, abs=1e-4)
    table = format_table(evaluation)
    assert "point" in table
    assert "6/6   100.0 % [61, 100]" in table
    assert "12/12  100.0 % [76, 100]" in table
    loaded = load_evaluation(tmp_path / "run")
    assert loaded.rows == evaluation.rows
    assert loaded.plan == evaluation.plan


def test_an_interrupted_evaluation_continues_and_ends_the_same(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "part", plan=plan_of(episodes_per_task=2))
    log = tmp_path / "part" / "episodes.jsonl"
    with log.open("ab") as file:
        file.write(b'{"task": "point", "se')  # torn by a kill
    policy = PointPolicy()

    continued = run(tmp_path / "part", policy=policy)

    assert outcomes(continued) == outcomes(whole)
    assert len(read_rows(log)) == 12
    assert {observation.images["top"][-1, 0, 0, 2] for observation in policy.seen} >= {0, 5}
    assert sum(observation.images["top"][-1, 0, 0, 2] == 0 for observation in policy.seen) == 8
    assert outcomes(run(tmp_path / "part", policy=policy)) == outcomes(whole)  # nothing left to do


def test_other_policies_and_other_plans_are_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(EvaluationMismatch, match="results of policy 'a', not 'b'; choose another directory"):
        run(tmp_path, policy_id="b")
    other_mode = r"(?s)another plan.*instruction_mode: 'original' there, 'blank' now"
    with pytest.raises(EvaluationMismatch, match=other_mode):
        run(tmp_path, plan=plan_of(instruction_mode="blank"))
    with pytest.raises(EvaluationMismatch, match=r"(?s)another plan.*execute_horizon: 5 there, 6 now"):
        run(tmp_path, plan=plan_of(execute_horizon=6))
    (tmp_path / "plan.json").unlink()
    with pytest.raises(EvaluationMismatch, match=r"no plan.json"):
        run(tmp_path)


def test_a_mistake_that_ended_no_episode_binds_nobody(tmp_path):
    with pytest.raises(ValueError, match=r"execute_horizon is 500; it must lie in"):
        run(tmp_path, plan=plan_of(execute_horizon=500))
    assert len(run(tmp_path).rows) == 12


def test_an_evaluation_of_before_there_were_runtimes_continues(tmp_path):
    run(tmp_path, plan=plan_of(episodes_per_task=2))
    stored = json.loads((tmp_path / "plan.json").read_text())
    del stored["plan"]["runtime"], stored["plan"]["limits"]
    (tmp_path / "plan.json").write_text(json.dumps(stored))
    rows = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    old = [json.dumps({key: value for key, value in row.items() if key != "stop_reason"}) for row in rows]
    (tmp_path / "episodes.jsonl").write_text("\n".join(old) + "\n")
    assert load_evaluation(tmp_path).plan == plan_of(episodes_per_task=2)
    assert len(run(tmp_path).rows) == 12
    with pytest.raises(EvaluationMismatch, match="runtime: 'simulation' there, 'robot' now"):
        run(tmp_path, plan=plan_of(runtime="robot"))


def test_an_evaluation_with_the_former_names_of_instruction_modes_continues(tmp_path):
    run_dir = tmp_path / "right"
    run(run_dir, plan=plan_of(episodes_per_task=2))
    for name in ("plan.json", "episodes.jsonl"):
        text = (
            (run_dir / name).read_text().replace("instruction_mode", "condition").replace("original", "right")
        )
        (run_dir / name).write_text(text)
    assert folder_of_mode(tmp_path, "original") == run_dir
    assert folder_of_mode(tmp_path, "swapped") == tmp_path / "swapped"
    assert {row.instruction_mode for row in load_evaluation(run_dir).rows} == {"original"}
    assert len(run(run_dir).rows) == 12


def test_plans_of_published_results_are_readable():
    paths = sorted((Path(__file__).parents[2] / "experiments" / "results").rglob("*.json"))
    stored = [json.loads(path.read_text())["plan"] for path in paths if '"condition"' in path.read_text()]
    modes = {EvaluationPlan.from_json(plan).instruction_mode for plan in stored}
    assert modes == {"blank", "original", "swapped"}


def test_a_directory_in_use_is_refused(tmp_path):
    class Nested(PointPolicy):
        def predict(self, observations):
            run(tmp_path)
            raise AssertionError

    with pytest.raises(DirectoryInUse, match=f"written by process {os.getpid()}"):
        run(tmp_path, policy=Nested())


def test_a_failing_environment_keeps_the_rows_so_far(tmp_path):
    configs = {"point": {"task": "point", "broken": "reset"}}
    plan = plan_of(env_configs=configs, first_seed=1, episodes_per_task=9, num_workers=1, envs_per_worker=1)
    with pytest.raises(WorkerError, match="seed 7"):
        run(tmp_path, plan=plan)
    assert [row.seed for row in read_rows(tmp_path / "episodes.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert not load_evaluation(tmp_path).is_complete


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_a_usable_record(tmp_path, number):
    program = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell ignores it
        "from fake_env import PointPolicy\n"
        "from test_evaluation import plan_of, run\n"
        "from pathlib import Path\n"
        "configs = {'point': {'task': 'point', 'step_s': 0.005}}\n"
        f"run(Path({str(tmp_path)!r}), plan=plan_of(env_configs=configs, episodes_per_task=500))\n"
    )
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    log = tmp_path / "episodes.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 150
        while not (log.exists() and log.stat().st_size > 2000):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(100) != 0
        process.stderr.read()  # ends when the workers, which share it, have ended too
    num_rows = len(read_rows(log))
    assert num_rows >= 3
    configs = {"point": {"task": "point", "step_s": 0.005}}
    evaluation = run(tmp_path, plan=plan_of(env_configs=configs, episodes_per_task=num_rows + 2))
    assert evaluation.is_complete


def test_failures_are_filmed_first_by_exact_replay(tmp_path):
    plan = plan_of(instruction_mode="swapped", videos_per_task=3)
    evaluation = run(tmp_path, plan=plan)

    failures = [row for row in evaluation.rows if not row.success]
    assert len(evaluation.videos) == 6
    assert not evaluation.videos[0].success
    assert all(video.replay_agrees for video in evaluation.videos)
    assert {video.seed for video in evaluation.videos if not video.success} <= {row.seed for row in failures}
    video = evaluation.videos[0]
    with av.open(str(tmp_path / video.video)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (40, 30)
        assert sum(1 for _ in container.decode(stream)) == 1 + -(-video.steps // 2) + 8
    with Image.open(tmp_path / video.filmstrip) as strip:
        assert strip.size == (6 * 41 + 5 * 4, 31)
    assert load_evaluation(tmp_path).videos == evaluation.videos


def test_plans_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="instruction_mode is 'wrong'; choose from"):
        plan_of(instruction_mode="wrong")
    with pytest.raises(ValueError, match="episodes_per_task is 0"):
        plan_of(episodes_per_task=0)
    with pytest.raises(ValueError, match="name at least one task"):
        plan_of(env_configs={})
    with pytest.raises(ValueError, match="task name"):
        plan_of(env_configs={"../x": {}})


def test_versions_name_what_matters():
    versions = software_versions()
    assert {"python", "mujoco", "numpy", "revision"} <= set(versions)
    assert versions["revision"]


def row_of(seed, success, **changes):
    values = {
        "task": "lift", "seed": seed, "instruction_mode": "original", "instruction": "lift it",
        "given_instruction": "lift it", "level": "train", "steps": 9, "success": success,
        "num_clipped": 0, "wall_s": 1.0, "policy_id": "a", "versions": {},
    }  # fmt: skip
    return EpisodeRow(**(values | changes))


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "episodes.jsonl"
    write_json_lines(path, [row_of(1, True).to_json()])
    with path.open("ab") as file:
        file.write(b'{"task": 1}\n')
    with pytest.raises(ValueError, match=r"episodes.jsonl, line 2: an episode row has the keys"):
        read_rows(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("success", "no", "success is 'no'; it must be bool"), ("seed", True, "seed is True; it must be int")],
)
def test_a_row_with_a_value_of_another_type_is_named(tmp_path, key, value, words):
    path = tmp_path / "episodes.jsonl"
    write_json_lines(path, [row_of(1, True).to_json() | {key: value}])
    with pytest.raises(DamagedFile, match=f"episodes.jsonl, line 1: {words}"):
        read_rows(path)


def test_a_row_that_stands_twice_counts_once_and_one_that_contradicts_is_refused(tmp_path, caplog):
    run(tmp_path)
    log = tmp_path / "episodes.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines, lines[0]]))
    again = run(tmp_path)
    assert len(again.rows) == len(load_evaluation(tmp_path).rows) == len(lines)
    assert "1 rows stand there more than once" in caplog.text
    row = json.loads(lines[0])
    log.write_text("".join([*lines, json.dumps(row | {"success": not row["success"]}) + "\n"]))
    with pytest.raises(DamagedFile, match=rf"two rows of task {row['task']}, seed {row['seed']} that differ"):
        load_evaluation(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"policy_id": "a", "plan": {"nonsense": 1}}'])
def test_a_damaged_plan_is_named(tmp_path, content):
    run(tmp_path)
    (tmp_path / "plan.json").write_text(content)
    for read in (load_evaluation, run):
        with pytest.raises(DamagedFile, match=r"plan.json is .*restore it from a copy"):
            read(tmp_path)


def test_a_plan_that_could_not_be_run_binds_nobody(tmp_path):
    configs = {"point": {"task": "point", "broken": "reset"}}
    with pytest.raises(WorkerError):
        run(tmp_path, plan=plan_of(env_configs=configs, first_seed=7, episodes_per_task=1))
    assert not (tmp_path / "plan.json").exists()
    assert len(run(tmp_path).rows) == 12


def test_policies_that_differ_on_paired_seeds_are_told_apart():
    a = [row_of(seed, seed % 10 != 0) for seed in range(50)]
    b = [row_of(seed, seed % 2 == 0) for seed in range(5, 60)]
    comparison = compare(a, b)
    counts = comparison.overall
    assert (counts.pairs, counts.both, counts.only_a, counts.only_b, counts.neither) == (45, 18, 23, 4, 0)
    assert (comparison.unpaired_a, comparison.unpaired_b) == (5, 10)
    assert comparison.verdict("new", "old").startswith("new is better than old: difference +42.2 points")
    text = format_comparison(comparison, name_a="new", name_b="old")
    assert "Left out, without a partner: 5 of A, 10 of B." in text


def test_policies_that_cannot_be_told_apart_are_called_so():
    a = [row_of(seed, seed not in (1, 2, 3)) for seed in range(20)]
    b = [row_of(seed, seed != 1) for seed in range(20)]
    verdict = compare(a, b).verdict()
    assert verdict.startswith("A and B cannot be told apart: difference -10.0 points")
    assert "pairs would show it" in verdict
    assert "pairs would show it" not in compare(a, a).verdict()


def test_rows_that_are_no_pairs_are_refused():
    a = [row_of(1, True)]
    with pytest.raises(ValueError, match="no episode in common"):
        compare(a, [row_of(1, True, instruction_mode="swapped")])
    with pytest.raises(ValueError, match="another scene in B"):
        compare(a, [row_of(1, True, instruction="push it")])
    with pytest.raises(ValueError, match="occurs twice"):
        compare(a + a, a)


def test_a_directory_is_compared_without_being_changed(tmp_path):
    run(tmp_path, plan=plan_of(episodes_per_task=1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    require_same_evaluation(tmp_path, plan_of(episodes_per_task=3), policy_id="a")
    with pytest.raises(EvaluationMismatch, match="first_seed: 10 there, 20 now"):
        require_same_evaluation(tmp_path, plan_of(first_seed=20), policy_id="a")
    require_same_evaluation(tmp_path / "new", plan_of(), policy_id="a")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_too_many_actions_are_refused_before_a_directory_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"evaluation\.execute_horizon is 500; it must lie in"):
        run(tmp_path / "new", plan=plan_of(execute_horizon=500))
    assert not (tmp_path / "new").exists()


def test_a_row_of_another_policy_than_the_plan_is_not_read_as_one_of_its_own(tmp_path):
    run(tmp_path, plan=plan_of(episodes_per_task=1))
    log = tmp_path / "episodes.jsonl"
    first, second = map(json.loads, log.read_text().splitlines())
    write_json_lines(log, [first, {**second, "policy_id": "b"}])
    with pytest.raises(DamagedFile, match=r"a row of policy 'b'.*but plan\.json is of 'a'"):
        load_evaluation(tmp_path)
