"""The check of an environment: that of the page has no finding, and each planted fault is found by name."""

import numpy as np
import pytest
from plugin_pages import imported

from envs.registry import ENVIRONMENTS
from experiments.checks.environments import check_tasks
from experiments.checks.examination import CHECKS, NOT_TRIED, PASSED, Examination
from experiments.config.robot import ROBOTS

TASKS = ("reach_red", "reach_blue")


@pytest.fixture
def point(tmp_path, monkeypatch):
    """The environment of the page, whose methods a test may replace."""
    for registry in (ENVIRONMENTS, ROBOTS):
        monkeypatch.setattr(registry, "_entries", registry.entries())
    return imported("An environment", tmp_path, monkeypatch).PointEnv


def check(tasks=TASKS):
    seen = Examination()
    check_tasks(seen, {"family": "point", "image_size": 24}, tasks, seeds=range(3))
    return seen


def names(seen):
    return {one.check for one in seen.findings}


@pytest.mark.usefixtures("point")
def test_the_environment_of_the_page_has_no_finding():
    seen = check()
    assert seen.findings == []
    assert {row[2] for row in seen.rows} == {PASSED}
    assert len(seen.strips) == 2 * len(TASKS)


def frozen(self, name):
    return np.full((24, 24, 3), 7, np.uint8)


def first_frame_again(self, name):
    if self.num_steps == 0:
        self.kept = self.draw(24)
    return self.kept


def stands_still(self):
    return np.zeros(2, np.float32)


def by_rote(self):
    if self.num_steps == 0:
        away = (self.goal - self.point).astype(np.float32)
        self.way = away / np.ceil(np.abs(away).max() / 0.02)
    return self.way


def too_fast(self):
    return 5 * np.clip(self.goal - self.point, -0.02, 0.02).astype(np.float32)


def one_channel(self, action):
    self.point = np.clip(self.point + action * [1, 0], -self.arena, self.arena)


def any_seed(self, options):
    rng = np.random.default_rng()
    self.point = rng.uniform(-0.2, 0.2, 2)
    self.discs = {"red": np.array([0.3, 0.0]), "blue": np.array([-0.3, 0.0])}
    return self.sentence(self.task)


def one_scene(self, options):
    self.point = np.array([0.0, 0.3])
    self.discs = {"red": np.array([0.3, 0.0]), "blue": np.array([-0.3, 0.0])}
    return self.sentence(self.task)


def begun_at_the_goal(self, options):
    self.discs = {"red": self.np_random.uniform(-0.2, 0.2, 2), "blue": np.array([-0.4, 0.4])}
    self.point = self.goal.copy()
    return self.sentence(self.task)


def other_size(self, name):
    return np.zeros((12, 12, 3), np.uint8)


def raises(self, action):
    raise KeyError("no such motor")


@pytest.mark.parametrize(
    ("method", "planted", "check_name", "where"),
    [
        ("render_camera", frozen, "camera_frozen", "top"),
        ("render_camera", frozen, "camera_empty", "top"),
        ("render_camera", first_frame_again, "camera_frozen", "top"),
        ("render_camera", other_size, "env_form", None),
        ("expert_action", stands_still, "expert_fails", None),
        ("expert_action", by_rote, "expert_lost", None),
        ("expert_action", too_fast, "expert_clipped", None),
        ("_apply", one_channel, "action_unused", "action/dy"),
        ("_apply", raises, "env_raises", None),
        ("_reset_scene", any_seed, "seed_not_kept", None),
        ("_reset_scene", one_scene, "seed_ignored", None),
        ("_reset_scene", begun_at_the_goal, "success_at_rest", None),
        ("swapped_instruction", lambda self: self.instruction, "swapped_same", None),
        ("swapped_instruction", lambda self: " ", "instruction_empty", None),
        ("sentence", lambda self, task: "go there", "tasks_alike", None),
        ("read_state", lambda self: (3 * self.point).astype(np.float32), "state_out_of_range", "state/x"),
        ("read_state", lambda self: np.float32([self.point[0], 0.0]), "state_constant", "state/y"),
    ],
)
def test_a_planted_fault_is_found(point, monkeypatch, method, planted, check_name, where):
    monkeypatch.setattr(point, method, planted)
    seen = check(TASKS if check_name == "tasks_alike" else TASKS[:1])
    assert check_name in names(seen)
    finding = next(one for one in seen.findings if one.check == check_name)
    assert finding.advice == CHECKS[check_name]
    assert where in (None, finding.camera, finding.channel)
    if check_name == "env_raises":
        assert "KeyError: 'no such motor'" in finding.message
        assert "test_check_env.py:" in finding.message


def test_an_unused_channel_is_the_only_finding(point, monkeypatch):
    """A fault of one kind makes no noise elsewhere: the expert of a task on a line needs one channel."""
    monkeypatch.setattr(point, "_apply", one_channel)
    monkeypatch.setattr(point, "_goal_holds", lambda self: abs(self.point[0] - self.goal[0]) < 0.05)
    assert [(one.check, one.channel) for one in check(TASKS[:1]).findings] == [("action_unused", "action/dy")]


def test_what_is_not_tried_is_said():
    seen = Examination()
    seen.not_tried("opening", "it moves")
    assert seen.rows == [["opening", "", NOT_TRIED, "it moves"]]
