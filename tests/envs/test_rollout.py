"""Episodes are what their requests say, whatever the workers do, and a failing worker is heard."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from fake_env import FACTORY, SPEC, PointEnv, PointPolicy

from envs.rollout import EpisodeRequest, _Road, _RunningEpisode, run_episodes
from envs.workers import Job, WorkerError, WorkerPool, Workspace
from policies.runtime.chunking import SCHEDULES
from policies.runtime.limits import ChannelLimits, SafetyLimits, audit
from vla.spec import SpecMismatch


def requests(count, *, task="point", first_seed=0, mode="original", **config):
    env_config = {"task": task, **config}
    return [
        EpisodeRequest(task=task, env_config=env_config, seed=first_seed + k, instruction_mode=mode)
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


def test_only_frames_that_are_looked_at_are_rendered(monkeypatch):
    rendered, render = [], PointEnv.render_camera

    def note(env, name):
        rendered.append((env.num_steps, name))
        return render(env, name)

    monkeypatch.setattr(PointEnv, "render_camera", note)
    env, policy = PointEnv(task="point"), PointPolicy(frame_offsets=(4, 0), action_horizon=10)
    env.start_episode(seed=0)
    road = _Road(
        frame_offsets=(4, 0),
        execute_horizon=10,
        schedule="sync",
        ensemble_decay=0.01,
        max_committed=0,
        limits=None,
    )
    episode = _RunningEpisode(env=env, given_instruction="", road=road)
    progress = episode.run(None)
    for _ in range(2):
        progress = episode.run(policy.predict([progress.observation])[0])
    assert sorted({step for step, _ in rendered}) == [0, 6, 10, 16, 20]
    assert len(rendered) == 5 * len(SPEC.camera_names)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_of_robots_runs_in_simulation_and_reaches_the_goal(schedule):
    policy = PointPolicy()
    results = run(policy, requests(3), schedule=schedule, max_committed=4)
    assert all(result.success for result in results)
    committed = {len(one.committed) for one in policy.seen}
    assert committed == ({0, 1} if schedule == "rtc" else {0})
    if schedule in ("sync", "async"):  # no time passes in an inference
        assert without_time(results) == without_time(run(PointPolicy(), requests(3)))


def test_a_schedule_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'later' is unknown"):
        run(PointPolicy(), requests(1), schedule="later")
    with pytest.raises(ValueError, match="'async' averages no chunks"):
        run(PointPolicy(), requests(1), schedule="async", ensemble_decay=0.1)


def point_limits(**changes):
    motion = {"low": -1.0, "high": 2.0, "velocity": 1.0, "acceleration": 20.0, "jerk": 800.0} | changes
    return SafetyLimits(
        channels={
            "x": ChannelLimits(measured_by="x", **motion),
            "y": ChannelLimits(measured_by="y", **motion),
            "gripper": ChannelLimits(kind="gripper", low=0.0, high=1.0, velocity=20.0),
        }
    )


def test_with_limits_no_executed_action_breaks_one():
    limits = point_limits(velocity=0.8, acceleration=8.0)
    free = run(PointPolicy(), requests(4))
    safe = run(PointPolicy(), requests(4), limits=limits)
    assert all(result.success for result in safe)
    assert sum(result.num_clipped for result in safe) > 0
    assert sum(result.steps for result in safe) > sum(result.steps for result in free)
    for result in safe:
        env = PointEnv(task="point")
        env.start_episode(seed=result.request.seed)
        start = np.append(env.read_state(), 0.0)
        assert audit(result.actions, start=start, spec=SPEC, limits=limits) == []


def test_limits_that_nothing_exceeds_change_no_more_than_rounding():
    wide = point_limits(velocity=50.0, acceleration=1e4, jerk=1e6)
    free = run(PointPolicy(), requests(4), execute_horizon=2)
    safe = run(PointPolicy(), requests(4), execute_horizon=2, limits=wide)
    for one, other in zip(free, safe, strict=True):
        np.testing.assert_allclose(one.actions[:, :2], other.actions[:, :2], atol=1e-6)


def test_an_unsafe_chunk_holds_the_arm_and_one_after_another_end_the_episode():
    class Wild(PointPolicy):
        is_always = False

        def chunk(self, observation):
            actions = super().chunk(observation)
            is_wild = self.is_always or len(self.seen) == 2
            return actions * np.float32([40, 40, 1]) if is_wild else actions

    once = run(Wild(), requests(1), limits=point_limits())[0]
    assert once.success
    assert once.stop_reason == ""
    Wild.is_always = True
    always = run(Wild(), requests(1), limits=point_limits())[0]
    assert not always.success
    assert "velocity limit" in always.stop_reason
    assert always.steps == 11  # more than refused for 0.5 s
    assert np.abs(always.actions[:, :2]).max() == 0.0


def test_limits_of_another_robot_are_refused():
    channels = dict(point_limits().channels)
    del channels["gripper"]
    limits = SafetyLimits(channels=channels)
    with pytest.raises(ValueError, match="safety limits are for"):
        run(PointPolicy(), requests(1), limits=limits)


def test_instruction_modes_change_what_is_given_but_not_the_goal():
    results = {mode: run(PointPolicy(), requests(8, mode=mode)) for mode in ("original", "swapped", "blank")}
    for original, swapped, blank in zip(*results.values(), strict=True):
        assert original.instruction == swapped.instruction == blank.instruction == original.given_instruction
        assert {original.instruction, swapped.given_instruction} == {"go to red", "go to blue"}
        assert blank.given_instruction == ""
    assert all(result.success for result in results["original"])
    assert sum(result.success for result in results["swapped"]) <= 2
    assert all(result.steps == 60 for result in results["blank"] if not result.success)


def test_an_exception_in_an_environment_names_task_seed_and_place():
    with pytest.raises(WorkerError, match=r"(?s)task point, seed 7.*the table fell over"):
        run(PointPolicy(), requests(12, broken="reset"))


def test_a_full_disk_in_a_worker_is_one_line_with_the_way_out():
    with pytest.raises(WorkerError, match=r"task point, seed 7.*videos/7\.mp4.*free space") as caught:
        run(PointPolicy(), requests(12, broken="disk"))
    assert "Traceback" not in str(caught.value)


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


def test_far_more_processes_than_cores_are_refused_before_any_starts():
    with pytest.raises(ValueError, match=r"^num_workers is 10000, but this machine has \d+ cores"):
        WorkerPool(num_workers=10_000)
