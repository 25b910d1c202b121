"""The pretrained policies that come with the repository are whole, small, described, and as good as told."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

from envs.evaluation.evaluate import evaluate
from envs.evaluation.results import EvaluationPlan
from experiments.release import MOST_BYTES, MOST_BYTES_IN_ALL
from experiments.reports.card import read_card
from policies.pretrained_names import FOLDER, policy_path, pretrained_names, require_pretrained
from policies.vla_policy import VLAPolicy, load_policy_checkpoint
from vla.files import verify_manifest
from vla.model.checkpoint import WEIGHTS_NAME

ROOT = Path(__file__).parents[2]
NAMES = pretrained_names()
each = pytest.mark.parametrize(
    "name", NAMES or [pytest.param("", marks=pytest.mark.skip("none is here yet"))]
)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@each
def test_a_pretrained_policy_is_whole_small_and_acts(name):
    directory = FOLDER / name
    files = verify_manifest(directory)["files"]
    assert size_of(directory) <= MOST_BYTES
    loaded = load_policy_checkpoint(f"pretrained/{name}")
    assert loaded.checkpoint_id == files[WEIGHTS_NAME]["sha256"]
    chunks = VLAPolicy(model=loaded.model, processor=loaded.processor).predict(loaded.golden[:2])
    assert np.isfinite(chunks).all()


@each
def test_its_card_is_complete(name):
    card, page = read_card(FOLDER / name), (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert card.name == name
    assert card.shortfall() is None
    assert card.weights_id == verify_manifest(FOLDER / name)["files"][WEIGHTS_NAME]["sha256"]
    for told in (card.weights_id, card.license, card.command, *card.limits, "Not complete"):
        assert (told in page) == (told != "Not complete"), told
    for one in card.results:
        assert f"{100 * one.success_rate:.1f} % {one.interval.in_percent()}" in page


@pytest.mark.slow
@pytest.mark.timeout(1800)
@each
def test_it_succeeds_on_development_seeds_as_its_card_says(name, tmp_path):
    told = read_card(FOLDER / name).development
    assert told is not None
    loaded = load_policy_checkpoint(FOLDER / name)
    plan = EvaluationPlan(
        env_configs={task: {**told.env, "task": task} for task in told.tasks},
        episodes_per_task=told.episodes_per_task,
        first_seed=told.first_seed,
        execute_horizon=told.execute_horizon,
        videos_per_task=0,
    )
    policy = VLAPolicy(model=loaded.model, processor=loaded.processor)
    found = evaluate(policy, plan, run_dir=tmp_path, policy_id=loaded.checkpoint_id, show_progress=False)
    assert len(found.rows) >= 20
    # Not the rate itself: where two actions are nearly as likely, another processor may choose the other.
    assert found.mean_success_rate >= told.interval.low


def test_they_are_small_together_and_the_wheel_has_that_of_the_demo():
    assert size_of(FOLDER) <= MOST_BYTES_IN_ALL if FOLDER.exists() else not NAMES
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (pattern,) = settings["tool"]["setuptools"]["package-data"]["policies"]
    packed = pattern.removeprefix("pretrained/").removesuffix("/*")
    demo = yaml.safe_load((ROOT / "conf" / "demo.yaml").read_text(encoding="utf-8"))
    assert f"pretrained/{packed}" == demo["path"]


def test_a_short_name_is_a_path_and_an_existing_path_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert policy_path("pretrained/mine") == str(FOLDER / "mine")
    assert policy_path("pretrained/mine/", folder=tmp_path) == str(tmp_path / "mine")
    assert policy_path("outputs/pretrained/mine") == str(tmp_path / "outputs/pretrained/mine")
    (tmp_path / "pretrained" / "mine").mkdir(parents=True)
    assert policy_path("pretrained/mine") == str(tmp_path / "pretrained" / "mine")


def test_a_wrong_short_name_is_told_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"'tabletop', as .* is empty; make a policy with `make quickstart`"):
        require_pretrained(tmp_path / "tabletop", folder=tmp_path)
    for name in ("tabletop", "metaworld_mt50"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    require_pretrained(tmp_path / "tabletop", folder=tmp_path)
    require_pretrained(tmp_path / "elsewhere" / "tabletpo", folder=tmp_path)
    with pytest.raises(ValueError, match="did you mean 'tabletop'"):
        require_pretrained(tmp_path / "tabletpo", folder=tmp_path)
