"""The programs that drive robots: configuration, the course of a run, the delay table and its page."""

import dataclasses
import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from program_fixtures import composed

from envs.registry import make_env
from envs.tabletop.env import TabletopEnv
from envs.workers import WorkerError
from experiments import control
from experiments.config.control_setup import chosen_task, open_policy, task_config
from experiments.config.simulated_robot import SimulatedRobot
from experiments.controlled_run import StopSignals
from experiments.delay_episode import Key, run_episode
from experiments.delay_table import (
    play_in_workers,
    read_delay_rows,
    require_same_settings,
    run_missing,
)
from experiments.reports.pages import cells as cells_of
from experiments.reports.pages import delay_markdown, dry_lines, success_json, success_rows, write_delay_page
from experiments.stages import SettingsChanged
from policies.runtime.limits import SafetyLimits
from policies.serving.contract import PolicyUnavailable
from vla.spec import SpecMismatch

ROOT = Path(__file__).parents[2]


class ExpertPolicy:
    """Repeats what the task's expert would do now; it looks at the environment, not at the observation."""

    frame_offsets, action_horizon = (0,), 8

    def __init__(self, env):
        self.env, self.robot_spec, self.num_asked = env, env.robot_spec, 0

    def predict(self, observations):
        self.num_asked += 1
        step = self.env.expert_action()
        decay = 0.7 ** np.arange(8)[:, None]
        chunk = np.where(np.arange(7) < 6, step * decay, step).astype(np.float32)
        return chunk[None]


def test_the_limits_of_the_simulated_robot_fit_the_tabletop_and_survive_json():
    run = composed("control", "bundle=b")
    env = TabletopEnv(task="reach", image_size=16)
    limits = run.robot.limits
    limits.require_fitting(env.robot_spec)
    assert SafetyLimits.from_json(limits.to_json()) == limits
    reach = env.robot_spec.action_high[:3] * env.robot_spec.control_hz
    speeds = [channel.velocity for channel in list(limits.channels.values())[:3]]
    np.testing.assert_allclose(speeds, reach, rtol=1e-6)  # what the policy may ask for is not clamped


def test_a_task_that_is_not_there_and_a_policy_that_is_not_given_are_named():
    with pytest.raises(ValueError, match="did you mean 'reach'"):
        chosen_task(composed("control", "task=raech"))
    assert chosen_task(composed("control")) == "reach"
    nothing = open_policy(bundle=None, server=None, token_env="NONE", num_threads=1)
    with pytest.raises(ValueError, match="either bundle"), nothing:
        pass


def test_no_robot_is_touched_before_the_server_answers(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    monkeypatch.setattr(SimulatedRobot, "open", lambda *_, **__: pytest.fail("the robot was opened"))
    run = composed("control", f"server=ws://127.0.0.1:{port}", "server_wait_s=0.15")
    with pytest.raises(PolicyUnavailable, match="no connection"):
        control.control_robot(run, tmp_path, StopSignals())
    assert list(tmp_path.iterdir()) == []


def test_a_policy_for_other_cameras_is_refused(table):
    run, _, env, *_ = table
    other = ExpertPolicy(env)
    other.robot_spec = dataclasses.replace(env.robot_spec, cameras=env.robot_spec.cameras[::-1])
    with pytest.raises(SpecMismatch, match="cameras"):
        run_episode(env, other, Key("sync", 0.0, 1), max_committed=0, run=run)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of two cells and two episodes, by the expert, in 16 pixels."""
    run = composed(
        "delay_table",
        "bundle=b",
        "env.level=none",
        "env.image_size=16",
        "delays_ms=[0,100]",
        "schedules=[sync,async]",
        "episodes=1",
    )
    directory = tmp_path_factory.mktemp("table")
    env = make_env(task_config(run))
    policy = ExpertPolicy(env)

    def play_all(keys):
        return (run_episode(env, policy, key, max_committed=0, run=run) for key in keys)

    rows = run_missing(run, directory, play_all=play_all)
    yield run, directory, env, policy, play_all, rows
    env.close()


def test_the_expert_reaches_its_goal_through_the_controller_at_any_delay(table):
    _, _, _, _, _, rows = table
    assert [(row.schedule, row.delay_ms) for row in rows] == [
        ("sync", 0.0), ("async", 0.0), ("sync", 100.0), ("async", 100.0)
    ]  # fmt: skip
    assert all(row.success and row.end == "IDLE" and row.violations == 0 for row in rows)
    periods = {(row.schedule, row.delay_ms): row.periods for row in rows}
    assert periods["sync", 100.0] > periods["sync", 0.0]  # it waits
    assert periods["async", 100.0] < periods["sync", 100.0]


def test_a_table_continues_and_simulated_time_repeats_itself(table, tmp_path):
    run, directory, _, policy, play_all, rows = table
    asked = policy.num_asked
    assert run_missing(run, directory, play_all=play_all) == rows
    assert policy.num_asked == asked, "finished episodes were run again"
    path = directory / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # a torn last line
    assert len(read_delay_rows(path)) == len(rows) - 1
    assert run_missing(run, directory, play_all=play_all) == rows, "the same episode came out otherwise"


def open_expert(run, env):
    """A policy for workers: the expert, or nothing at all for a bundle of that name."""
    if run.bundle == "broken":
        sys.exit(7)
    return ExpertPolicy(env), 0


def test_workers_give_the_rows_that_one_process_gives(table):
    run, _, _, _, _, rows = table
    keys = [Key(row.schedule, row.delay_ms, row.seed) for row in rows]
    found = list(play_in_workers(dataclasses.replace(run, num_workers=1), keys, open_policy=open_expert))
    assert found == rows


def test_a_worker_that_dies_is_an_error_and_no_endless_wait(table):
    run = dataclasses.replace(table[0], bundle="broken")
    with pytest.raises(WorkerError, match=r"code 7 while doing: episode .*sync"):
        list(play_in_workers(run, [Key("sync", 0.0, run.first_seed)], open_policy=open_expert))


def test_chunk_underruns_are_reported(table):
    run, _, env, policy, _, rows = table
    assert all(row.dry == 0 for row in rows)
    slow = run_episode(env, policy, Key("async", 300.0, rows[0].seed), max_committed=0, run=run)
    assert slow.dry >= 1
    assert slow.idle > slow.dry
    assert slow.violations == 0
    (line,) = dry_lines(cells_of([*rows, slow]))
    assert line.startswith(f"async at 300 ms: {slow.dry} chunk underruns, in 1 of 1 episodes; 0 were")


def test_a_directory_with_other_settings_is_refused(table, tmp_path):
    run, rows = table[0], table[-1]
    require_same_settings(tmp_path, dataclasses.replace(run, execute_horizon=99), bundle_id="a" * 64)
    require_same_settings(tmp_path, run, bundle_id="a" * 64)  # no episode was played with 99
    (tmp_path / "rows.jsonl").write_text(json.dumps(dataclasses.asdict(rows[0])) + "\n")
    require_same_settings(tmp_path, dataclasses.replace(run, episodes=50), bundle_id="a" * 64)
    with pytest.raises(SettingsChanged, match="bundle"):
        require_same_settings(tmp_path, run, bundle_id="b" * 64)
    with pytest.raises(SettingsChanged, match="execute_horizon"):
        require_same_settings(tmp_path, dataclasses.replace(run, execute_horizon=2), bundle_id="a" * 64)


def test_the_table_and_its_page_show_rates_with_intervals(table, tmp_path):
    rows = table[-1]
    assert success_rows(cells_of(rows)) == [
        ["sync"] + ["100% [21, 100]"] * 2,
        ["async"] + ["100% [21, 100]"] * 2,
    ]
    words = {"title": "Success: reach", "note": "one episode each", "command": "python -m experiments"}
    write_delay_page(tmp_path / "report.html", rows, **words)
    (first, *_) = success_json(cells_of(rows))
    assert (first["schedule"], first["delay_ms"], first["successes"], first["episodes"]) == (
        "sync",
        0.0,
        1,
        1,
    )
    assert first["low"] == pytest.approx(0.2065, abs=1e-3)
    markdown = delay_markdown(rows, **words)
    assert "| sync | 100% [21, 100] | 100% [21, 100] |" in markdown
    assert "## Chunk underruns\n\nNone." in markdown
    page = (tmp_path / "report.html").read_text()
    assert "100% [21, 100]" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
