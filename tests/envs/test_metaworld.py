"""Meta-World behind our interface: seeds, units, views, endings; drawing that leaves physics alone."""

import json

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs.gymnasium_ids  # noqa: F401  (registers the ids)
from envs.collection import collect_episodes
from envs.disturbance import Disturbance
from envs.evaluation.evaluate import evaluate
from envs.evaluation.results import EvaluationPlan
from envs.metaworld.coarse_model import cluster, model_to_draw
from envs.metaworld.instructions import HELDOUT_WORDINGS, TRAIN_WORDINGS
from envs.registry import make_env

pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install -e '.[metaworld]'")


def small(task, **more):
    return make_env({"family": "metaworld", "task": task, "image_size": 32, **more})


@pytest.fixture
def drawer():
    env = small("drawer-open")
    yield env
    env.close()


def test_gymnasium_checker_has_nothing_to_say():
    env = gymnasium.make("vla/MetaWorld-drawer-close-v0", render_mode="rgb_array", image_size=32)
    check_env(env.unwrapped)
    assert env.unwrapped.task == "drawer-close"
    env.close()


@pytest.mark.parametrize("task", ["pick-place", "faucet-open"])
def test_same_seed_same_episode_whatever_came_before(task):
    first, second = small(task), small(task)
    second.start_episode(seed=7)
    for _ in range(20):
        second.advance(second.expert_action())
    rows = []
    for env in (first, second):
        observation, info = env.reset(seed=123)
        row = [observation["images"]["corner2"], info["instruction"], env.swapped_instruction()]
        for _ in range(15):
            env.advance(env.expert_action())
        rows.append([*row, env.read_state(), env.render_camera("corner2"), env._simulation.data.qpos.copy()])
        env.close()
    for left, right in zip(*rows, strict=True):
        np.testing.assert_array_equal(left, right)


def test_other_seeds_give_other_scenes(drawer):
    layouts = []
    for seed in (1, 2, 3):
        drawer.start_episode(seed=seed)
        layouts.append(tuple(drawer._simulation.model.body("drawer").pos))
    assert len(set(layouts)) == 3


def test_the_spec_is_that_of_the_simulation(drawer):
    spec = drawer.robot_spec
    assert spec.control_hz == pytest.approx(80.0)
    assert spec.camera_names == ("corner2",)
    assert spec.action_names == ("delta_x", "delta_y", "delta_z", "gripper_effort")
    np.testing.assert_allclose(spec.action_high, [0.01, 0.01, 0.01, 1.0])
    assert spec.state_names == ("hand_x", "hand_y", "hand_z", "gripper_opening")
    assert (drawer.max_steps, drawer.metadata["render_fps"]) == (400, 80)


def test_actions_are_meters_of_the_commanded_hand_and_a_closing_effort():
    env = small("pick-place")
    env.start_episode(seed=0)
    before = env._simulation.data.mocap_pos[0].copy()
    openings = []
    for effort in (-1.0, 1.0):
        for _ in range(20):
            env.advance(np.array([0.0025, -0.00125, 0.0, effort], np.float32))
        openings.append(env.read_state()[3])
    assert openings[0] > 0.9
    assert openings[1] < 0.5
    np.testing.assert_allclose(env._simulation.data.mocap_pos[0] - before, [0.1, -0.05, 0.0], atol=1e-6)


def test_the_picture_of_corner2_is_moved_closer_and_stands_upright():
    env = small("reach", cameras=["corner2", "topview"], image_size=64)
    env.start_episode(seed=0)
    np.testing.assert_array_equal(env._simulation.model.camera("corner2").pos, [0.75, 0.075, 0.7])
    frames = {name: env.render_camera(name) for name in env.robot_spec.camera_names}
    raw = {
        name: env._renderer.render(
            env._simulation.data, camera_id=env._simulation.model.camera(name).id, height=64, width=64
        )
        for name in frames
    }
    np.testing.assert_array_equal(frames["corner2"], raw["corner2"][::-1, ::-1])
    np.testing.assert_array_equal(frames["topview"], raw["topview"])
    red, green, blue = (frames["corner2"][..., i].astype(int) for i in range(3))
    robot = (red > 2 * green) & (red > 2 * blue) & (red > 60)
    assert np.nonzero(robot)[0].mean() < 0.5 * 64, "the arm comes from above"
    env.close()


@pytest.mark.parametrize("task", ["handle-press", "button-press", "window-close"])
def test_the_expert_succeeds_and_the_episode_ends_at_once(task):
    env = small(task)
    env.start_episode(seed=11)
    for _ in range(env.max_steps):
        outcome = env.advance(env.expert_action())
        if outcome.terminated:
            break
        assert not env._simulation.evaluate_state(env._seen, np.zeros(4, np.float32))[1]["success"]
    assert outcome.success
    assert outcome.reward == 1.0
    assert env.num_clipped == 0


def test_time_runs_out_after_the_horizon_and_stepping_on_is_allowed():
    env = small("drawer-open", max_steps=3)
    env.start_episode(seed=0)
    still = np.zeros(4, np.float32)
    outcomes = [env.advance(still) for _ in range(3)]
    assert [outcome.truncated for outcome in outcomes] == [False, False, True]
    for _ in range(500):
        env.advance(still)
    assert env.num_steps == 503


def test_the_goal_is_drawn_where_it_is_from_the_first_frame_on():
    env = small("reach")
    for seed in range(3):
        env.start_episode(seed=seed)
        simulation = env._simulation
        np.testing.assert_allclose(simulation.data.site("goal").xpos, simulation._target_pos)


@pytest.mark.parametrize("task", ["dial-turn", "window-open", "window-close", "drawer-open"])
def test_the_expert_sees_objects_where_they_are_from_the_first_step_on(task):
    env = small(task)
    for seed in range(3):
        env.start_episode(seed=seed)
        now = env.simulation._get_curr_obs_combined_no_goal()
        np.testing.assert_allclose(env._seen[:36], np.tile(now, 2))
    env.close()


def test_drawing_never_touches_physics():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (40, 4)).astype(np.float32) * [0.01, 0.01, 0.01, 1.0]
    tracks = []
    for quality, looks in (("simplified", True), ("fast", True), ("simplified", False)):
        env = small("hammer", render_quality=quality)
        env.start_episode(seed=5)
        track = []
        for action in actions.astype(np.float32):
            env.advance(action)
            if looks:
                env.render_camera("corner2")
            data = env._simulation.data
            track.append(np.concatenate([data.qpos, data.qvel, data.qacc, env._seen]))
        tracks.append(np.stack(track))
        env.close()
    np.testing.assert_array_equal(tracks[0], tracks[1])
    np.testing.assert_array_equal(tracks[0], tracks[2])


def test_environments_of_a_process_share_opengl_and_still_draw_apart():
    alone = []
    for task in ("reach", "soccer"):
        env = small(task)
        env.start_episode(seed=2)
        alone.append((env.render_camera("corner2"), env.render_video_frame()))
        env.close()
    first, second = small("reach"), small("soccer")
    for env in (first, second):
        env.start_episode(seed=2)
    np.testing.assert_array_equal(first.render_camera("corner2"), alone[0][0])
    np.testing.assert_array_equal(second.render_camera("corner2"), alone[1][0])
    np.testing.assert_array_equal(first.render_video_frame(), alone[0][1])
    first.close()
    np.testing.assert_array_equal(second.render_camera("corner2"), alone[1][0])
    np.testing.assert_array_equal(second.render_video_frame(), alone[1][1])
    second.close()


def test_the_drawn_model_is_much_simpler_and_looks_alike():
    env = small("hammer")
    model = env._simulation.model
    faces = model.mesh_face.copy()
    drawn = model_to_draw(model, "simplified")
    assert drawn.mesh_facenum.sum() < 0.25 * model.mesh_facenum.sum()
    np.testing.assert_array_equal(model.mesh_face, faces)
    pictures = {}
    for quality in ("simplified", "fast"):
        other = small("hammer", image_size=96, render_quality=quality)
        other.start_episode(seed=1)
        pictures[quality] = other.render_camera("corner2").astype(float)
        other.close()
    assert 0 < np.abs(pictures["simplified"] - pictures["fast"]).mean() < 3.0, "of 255"
    with pytest.raises(ValueError, match="simplified"):
        model_to_draw(model, "simple")


def test_clustering_keeps_the_outline_of_a_grid_and_drops_what_collapses():
    n = 21
    x, y = np.meshgrid(np.linspace(0, 0.2, n), np.linspace(0, 0.2, n), indexing="ij")
    vertices = np.stack([x.ravel(), y.ravel(), np.zeros(n * n)], axis=1)
    corner = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    triangles = np.concatenate(
        [
            np.stack([corner, corner + n, corner + 1], axis=1),
            np.stack([corner + 1, corner + n, corner + n + 1], axis=1),
        ]
    )
    coarse, kept = cluster(vertices, triangles, cell=0.05)
    assert 8 <= len(coarse) < 0.15 * len(triangles)
    assert len(kept) == len(coarse)
    ordered = np.sort(coarse, axis=1)
    assert (np.diff(ordered, axis=1) > 0).all()
    assert len(np.unique(ordered, axis=0)) == len(coarse)
    same, everything = cluster(vertices, triangles, cell=0.001)
    np.testing.assert_array_equal(same, triangles)
    np.testing.assert_array_equal(everything, np.arange(len(triangles)))


def test_wording_and_swapped_instruction(drawer):
    drawer.start_episode(seed=3)
    assert drawer.instruction in TRAIN_WORDINGS["drawer-open"]
    assert drawer.swapped_instruction() in TRAIN_WORDINGS["drawer-close"]
    drawer.start_episode(seed=3, options={"wording": "heldout"})
    assert drawer.instruction in HELDOUT_WORDINGS["drawer-open"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"task": "drawer-opne"}, "did you mean 'drawer-open'"),
        ({"task": "reach", "cameras": ["corner5"]}, "corner"),
        ({"task": "reach", "cameras": []}, "name at least one"),
        ({"task": "reach", "level": "train"}, "unknown key 'env.level'"),
        ({"task": "reach", "wording": "tran"}, "train"),
        ({"task": "reach", "render_quality": "simple"}, "simplified"),
    ],
)
def test_bad_config_names_what_is_right(config, message):
    with pytest.raises(ValueError, match=message):
        make_env({"family": "metaworld", **config})


def test_demonstrations_are_recorded_as_those_of_any_family():
    config = {"family": "metaworld", "task": "handle-press", "image_size": 16, "cameras": ["topview"]}
    episode = next(
        collect_episodes(
            {"handle-press": config},
            {"handle-press": range(4, 8)},
            disturbance=Disturbance(noise_std=0.2, probability=1.0, bump_probability=0.02),
            num_workers=1,
        )
    )
    assert episode.noisy
    assert episode.images["topview"].shape == (len(episode.actions), 16, 16, 3)
    assert np.abs(episode.actions[:, :3]).max() <= 0.01


def test_a_policy_is_evaluated_as_in_any_family(tmp_path):
    config = {"family": "metaworld", "task": "reach", "image_size": 16, "max_steps": 12}
    plan = EvaluationPlan(
        env_configs={"reach": config},
        episodes_per_task=2,
        first_seed=20,
        execute_horizon=4,
        num_workers=1,
        envs_per_worker=1,
        videos_per_task=1,
    )
    policy = StillPolicy(make_env(config).robot_spec)
    result = evaluate(policy, plan, run_dir=tmp_path, policy_id="still", show_progress=False)
    assert [(row.seed, row.steps, row.success) for row in result.rows] == [(20, 12, False), (21, 12, False)]
    assert json.loads((tmp_path / "results.json").read_text())["tiers"]["easy"]["episodes"] == 2
    assert result.videos[0].replay_agrees
    assert len(policy.seen) == 6
    assert policy.seen[0].images["corner2"].shape == (1, 16, 16, 3)


class StillPolicy:
    """Does not move."""

    def __init__(self, robot_spec):
        self.robot_spec, self.frame_offsets, self.action_horizon, self.seen = robot_spec, (0,), 8, []

    def predict(self, observations):
        self.seen += observations
        return np.zeros((len(observations), self.action_horizon, 4), np.float32)
