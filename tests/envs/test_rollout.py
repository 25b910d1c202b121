"""Episodes are what their requests say, whatever the workers do, and a failing worker is heard."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from fake_env import FACTORY, SPEC, PointPolicy

from envs.rollout import EpisodeRequest, run_episodes
from envs.workers import Job, WorkerError, WorkerPool, Workspace
from vla.spec import SpecMismatch


def requests(count, *, task="point", first_seed=0, condition="right", **config):
    env_config = {"task": task, **config}
    return [
        EpisodeRequest(task=task, env_config=env_config, seed=first_seed + k, condition=condition)
        for k in range(count)
    ]


def run(policy, wanted, **options):
    options = {"execute_horizon": 5, "num_workers": 2, "env_factory": FACTORY} | options
    results = run_episodes(policy, wanted, **options)
    return sorted(results, key=lambda result: (result.request.task, result.request.seed))


def without_time(results):
    rows = []
    for result in results:
        row = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        rows.append(row | {"wall_s": 0.0, "actions": row["actions"].tolist()})
    return rows


def test_rows_do_not_depend_on_the_workers():
    wanted = requests(9) + requests(6, task="other", first_seed=100)

    one = run(PointPolicy(), wanted, num_workers=1, envs_per_worker=1)
    three = run(PointPolicy(), wanted, num_workers=3, envs_per_worker=2)

    assert without_time(one) == without_time(three)
    assert [result.request.seed for result in one] == [*range(100, 106), *range(9)]
    assert all(result.success for result in one)
    assert len({result.steps for result in one}) > 3


def test_batches_hold_several_observations():
    policy = PointPolicy()
    run(policy, requests(12, step_s=0.002), envs_per_worker=3)
    assert max(policy.batch_sizes) > 1
    assert sum(policy.batch_sizes) == len(policy.seen)


@pytest.mark.parametrize("execute_horizon", [1, 3, 8])
def test_a_policy_sees_the_frames_at_its_offsets(execute_horizon):
    policy = PointPolicy(frame_offsets=(4, 1, 0))
    result = run(policy, requests(1), execute_horizon=execute_horizon)[0]

    for decision, observation in enumerate(policy.seen):
        now = decision * execute_horizon
        expected = [max(now - offset, 0) for offset in (4, 1, 0)]
        for index, name in enumerate(SPEC.camera_names):
            assert observation.images[name].shape == (3, 8, 8, 3)
            assert observation.images[name][:, 0, 0, 2].tolist() == expected
            assert (observation.images[name][:, 0, 1, 2] == index).all()
        assert observation.committed.shape == (0, 3)
    assert result.steps > (len(policy.seen) - 1) * execute_horizon
    assert result.actions.shape == (result.steps, 3)


def test_only_frames_that_are_looked_at_are_rendered():
    from fake_env import PointEnv

    from envs.rollout import _RunningEpisode

    env = PointEnv(task="point")
    env.start_episode(seed=0)
    episode = _RunningEpisode(env=env, frame_offsets=(4, 0), execute_horizon=10, given_instruction="")
    episode.render_if_needed()
    episode.observe()
    episode.advance(np.zeros((10, 3), np.float32))
    assert sorted(episode.frames) == [0, 6, 10]


def test_controls_change_what_is_told_but_not_the_goal():
    told = {
        condition: run(PointPolicy(), requests(8, condition=condition))
        for condition in ("right", "blank", "swapped")
    }
    for right, swapped, blank in zip(told["right"], told["swapped"], told["blank"], strict=True):
        assert right.instruction == swapped.instruction == blank.instruction == right.given_instruction
        assert {right.instruction, swapped.given_instruction} == {"go to red", "go to blue"}
        assert blank.given_instruction == ""
    assert all(result.success for result in told["right"])
    assert sum(result.success for result in told["swapped"]) <= 2
    assert all(result.steps == 60 for result in told["blank"] if not result.success)


def test_an_exception_in_an_environment_names_task_seed_and_place():
    with pytest.raises(WorkerError, match=r"(?s)task point, seed 7.*the table fell over"):
        run(PointPolicy(), requests(12, broken="reset"))


def test_a_dying_worker_is_reported_and_nothing_hangs():
    with pytest.raises(WorkerError, match=r"killed by SIGKILL.*task point, seed 7"):
        run(PointPolicy(), requests(8, broken="die"), num_workers=1, envs_per_worker=1)


def test_a_policy_for_another_robot_is_refused():
    policy = PointPolicy()
    policy.robot_spec = dataclasses.replace(SPEC, control_hz=10.0)
    with pytest.raises(SpecMismatch, match="control_hz"):
        run(policy, requests(1))


@pytest.mark.parametrize("horizon", [0, 9])
def test_an_impossible_execute_horizon_is_refused(horizon):
    with pytest.raises(ValueError, match=r"execute_horizon is .* \[1, 8\]"):
        run(PointPolicy(), requests(1), execute_horizon=horizon)


def test_frame_offsets_must_run_from_oldest_to_newest():
    with pytest.raises(ValueError, match="oldest first"):
        run(PointPolicy(frame_offsets=(0, 4)), requests(1))


def test_nan_from_a_policy_stops_with_the_place():
    class NanPolicy(PointPolicy):
        def chunk(self, observation):
            return np.full((8, 3), np.nan, np.float32)

    with pytest.raises(ValueError, match=r"NaN or infinity in task point, seed 0.*step 0"):
        run(NanPolicy(), requests(1))


def test_a_chunk_of_the_wrong_shape_is_refused():
    class ShortPolicy(PointPolicy):
        def chunk(self, observation):
            return super().chunk(observation)[:3]

    with pytest.raises(ValueError, match=r"\(1, 3, 3\).*expected \(1, 8, 3\)"):
        run(ShortPolicy(), requests(1))


def test_closing_the_iterator_early_ends_the_workers():
    results = run_episodes(PointPolicy(), requests(20), execute_horizon=5, num_workers=2, env_factory=FACTORY)
    next(results)
    results.close()


def test_with_osmesa_a_worker_holds_one_environment(monkeypatch):
    wanted = requests(5) + requests(3, task="other")
    expected = without_time(run(PointPolicy(), wanted))
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    policy = PointPolicy()
    assert without_time(run(policy, wanted, num_workers=1)) == expected
    assert max(policy.batch_sizes) == 1


def test_an_environment_is_closed_before_the_next_is_made():
    workspace = Workspace(env_factory=FACTORY, max_envs=1)
    first = workspace.env(0, {"task": "point"})
    assert workspace.env(0, {"task": "point"}) is first
    events = []
    first.close = lambda: events.append("closed")
    assert workspace.env(0, {"task": "other"}) is not first
    assert events == ["closed"]
    workspace.close()


def test_an_environment_in_use_outlives_those_that_were_used_since():
    workspace = Workspace(env_factory=FACTORY, max_envs=3)
    playing = workspace.env(0, {"task": "point"})
    events = []
    playing.close = lambda: events.append("playing")
    for k in range(4):
        env = workspace.env(1, {"task": f"point {k}"})
        env.close = lambda k=k: events.append(k)
    assert events == [0, 1]
    workspace.env(2, {"task": "point"})
    assert events == [0, 1, 2]
    with pytest.raises(RuntimeError, match="4 slots cannot share 3 environment"):
        workspace.env(3, {"task": "point"})
    workspace.close()


@dataclasses.dataclass(frozen=True)
class ListModules(Job):
    def describe(self):
        return "list modules"

    def run(self, workspace, slot):
        return sorted(sys.modules)


def test_workers_import_no_torch():
    with WorkerPool(num_workers=1, env_factory=FACTORY) as pool:
        pool.submit(0, ListModules())
        loaded = pool.completed()[0].result
    for heavy in ("torch", "hydra", "wandb", "vla.model", "vla.data", "vla.processing"):
        assert heavy not in loaded


def test_workers_of_a_program_with_torch_import_none():
    program = (
        "import torch\n"
        "from test_rollout import ListModules, WorkerPool\n"
        "with WorkerPool(num_workers=1, env_factory='fake_env:make_fake') as pool:\n"
        "    pool.submit(0, ListModules())\n"
        "    print('torch' in pool.completed()[0].result)\n"
    )
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    output = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert output.stdout.strip() == "False"
