"""A scene drawn around an arm that moves elsewhere: same pictures, same kinematics, same goal."""

import numpy as np
import pytest

from envs.registry import make_env
from envs.tabletop.arm import HOME_JOINTS
from envs.tabletop.live_view import LiveView

CONFIG = {"family": "tabletop", "image_size": 32, "level": "none", "cameras": ["exterior", "wrist"]}

# Joints [rad], then where the hand is [m] and its x and z axes, computed by franky-sim 1.0.4 (pinocchio on
# Franka's FR3 description): what a robot would report as O_T_EE.
FRANKY_SIM = (
    (HOME_JOINTS, (0.30702, 0.0, 0.48687), (1.0, 0.0004, 0.0), (0.0, 0.0, -1.0)),
    (
        (0.676, -0.739, -2.397, -2.855, 1.583, 4.006, 0.579),
        (-0.13404, -0.1524, 0.0202),
        (-0.9472, -0.1399, 0.2886),
        (-0.3187, 0.3098, -0.8958),
    ),
    (
        (1.133, 0.14, 2.272, -0.775, -2.512, 3.808, -2.532),
        (-0.39965, -0.15828, 0.99783),
        (0.0641, 0.4448, 0.8933),
        (-0.7648, -0.5531, 0.3303),
    ),
    (
        (1.134, -1.041, 1.896, -1.489, -1.012, 2.254, -2.561),
        (-0.76504, -0.08344, 0.42134),
        (0.7139, 0.3397, 0.6123),
        (-0.5407, 0.823, 0.1739),
    ),
)


@pytest.fixture(scope="module")
def view():
    scene = LiveView(make_env(CONFIG | {"task": "reach"}))
    yield scene
    scene.close()


@pytest.mark.parametrize(("joints", "position", "x_axis", "z_axis"), FRANKY_SIM)
def test_the_hand_is_where_franky_sim_says_to_a_millimeter(view, joints, position, x_axis, z_axis):
    view.begin(seed=1)
    view.show(np.array(joints), 1.0)
    np.testing.assert_allclose(view.hand().position, position, atol=1e-4)
    np.testing.assert_allclose(view.rotation()[:, 0], x_axis, atol=2e-4)
    np.testing.assert_allclose(view.rotation()[:, 2], z_axis, atol=2e-4)


def test_pictures_are_those_of_the_simulated_task(view):
    start = view.begin(seed=7)
    frames, stamps = view.frames(start, 1.0, stamp=3.0)
    assert stamps == {"exterior": 3.0, "wrist": 3.0}
    env = make_env(CONFIG | {"task": "reach"})
    env.start_episode(seed=7)
    assert env.instruction == view.instruction
    for name in ("exterior", "wrist"):
        difference = np.abs(frames[name].astype(int) - env.render_camera(name).astype(int))
        assert difference.mean() < 0.5
    env.close()


def test_an_arm_elsewhere_is_drawn_elsewhere(view):
    start = view.begin(seed=7)
    there, _ = view.frames(start, 1.0, stamp=0.0)
    moved, _ = view.frames(start + np.array([0.3, 0, 0, 0, 0, 0, 0]), 0.0, stamp=0.1)
    assert all((there[name] != moved[name]).any() for name in there)
    assert view.hand().opening == 0.0


def test_the_expert_leads_a_hand_that_follows_exactly_to_the_goal(view):
    start = view.begin(seed=3)
    view.show(start, 1.0)
    hand = view.hand()
    way = view.expert_chunk(hand, horizon=60)[:, :3].sum(0)
    assert np.linalg.norm(way) > 0.05
    assert np.abs(view.expert_chunk(hand, horizon=80)[60:, :3]).max() < 1e-3  # it has arrived


def test_success_is_held_for_five_periods_and_stays(view, monkeypatch):
    view.begin(seed=3)
    holds = iter([True] * 4 + [False] + [True] * 5 + [False])
    monkeypatch.setattr(view._env, "goal_holds", lambda: next(holds))
    seen = []
    for _ in range(11):
        view.note_period()
        seen.append(view.success)
    assert seen == [False] * 9 + [True] * 2
    view.begin(seed=4)
    assert not view.success


def test_tasks_that_move_objects_are_refused():
    env = make_env(CONFIG | {"task": "lift"})
    with pytest.raises(ValueError, match="task of a live view 'lift'"):
        LiveView(env)
    env.close()
