"""Meta-World as data: tiers, wordings, configuration files. Runs without Meta-World installed."""

import importlib.util
import re
import sys

import pytest

from envs.metaworld.instructions import HELDOUT_WORDINGS, TRAIN_WORDINGS, phrase
from envs.metaworld.tasks import MT10, MT50, SHARED_SCENES, TIERS, swapped_task
from envs.registry import expand_tasks, make_env, task_groups
from vla.registry import NotInstalled


def test_the_tiers_are_the_published_ones():
    assert {name: len(tasks) for name, tasks in TIERS.items()} == {
        "easy": 28,
        "medium": 11,
        "hard": 6,
        "very hard": 5,
    }
    assert len(MT50) == len(set(MT50)) == 50
    assert set(MT10) < set(MT50)
    assert task_groups("metaworld").tasks == TIERS
    assert task_groups("tabletop") is None


def test_no_two_tasks_share_a_wording():
    assert set(TRAIN_WORDINGS) == set(HELDOUT_WORDINGS) == set(MT50)
    texts = [text for table in (TRAIN_WORDINGS, HELDOUT_WORDINGS) for task in MT50 for text in table[task]]
    assert len(texts) == len(set(texts))
    assert all(re.fullmatch(r"[a-z][a-z ,']*[a-z]", text) for text in texts)


@pytest.mark.parametrize("task", MT50)
def test_a_task_has_paraphrases_and_another_task_to_be_confused_with(task):
    assert 3 <= len(TRAIN_WORDINGS[task]) <= 5
    assert 1 <= len(HELDOUT_WORDINGS[task]) <= 2
    assert phrase(task, "train", len(TRAIN_WORDINGS[task])) == TRAIN_WORDINGS[task][0]
    assert swapped_task(task) in MT50
    assert swapped_task(task) != task


def test_a_task_of_a_shared_scene_is_swapped_within_it():
    for scene in SHARED_SCENES:
        assert {swapped_task(task) for task in scene} == set(scene)


def test_sets_of_tasks_are_known_by_name():
    assert tuple(expand_tasks("metaworld", ["mt50"])) == MT50
    assert tuple(expand_tasks("metaworld", ["mt10"])) == MT10
    assert expand_tasks("metaworld", ["reach", "no-such-task"]) == ["reach", "no-such-task"]


def test_an_installation_without_meta_world_is_told_what_to_install(monkeypatch):
    for name in ("metaworld", "metaworld.env_dict"):  # the second may have been imported by another test
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "envs.metaworld.env", raising=False)
    with pytest.raises(NotInstalled, match=r"env 'metaworld' needs .*install -e '\.\[metaworld\]'"):
        make_env({"family": "metaworld", "task": "reach"})


@pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="Meta-World is not installed")
def test_sets_and_scenes_agree_with_the_package():
    from metaworld.env_dict import ENV_CLS_MAP, MT10_V3

    assert {name.removesuffix("-v3") for name in ENV_CLS_MAP} == set(MT50)
    assert {name.removesuffix("-v3") for name in MT10_V3} == set(MT10)
    tasks_of = {}
    for name, env_class in ENV_CLS_MAP.items():
        tasks_of.setdefault(env_class.model_name.fget(None), []).append(name.removesuffix("-v3"))
    shared = {tuple(sorted(tasks)) for tasks in tasks_of.values() if len(tasks) > 1}
    assert shared == {tuple(sorted(tasks)) for tasks in SHARED_SCENES}
