"""A checkpoint becomes a pretrained policy: half the size, a card, nothing of this machine."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.evaluation.episodes import EpisodeRow
from envs.evaluation.results import Evaluation, EvaluationPlan
from experiments import release as release_module
from experiments.config.releasing import ReleaseRun
from experiments.config.trained_setting import read_provenance
from experiments.release import TooLarge, release, require_name, without_places
from experiments.reports.card import card_of, read_card
from policies.vla_policy import VLAPolicy, load_policy_checkpoint
from vla.files import JsonLinesAppender, ManifestError, atomic_write_json
from vla.model.checkpoint import load_checkpoint, load_tensors
from vla.registry import SettingError

sys.path.append(str(Path(__file__).parents[1] / "training"))
from training_fixtures import train_for  # noqa: E402


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_for(folder / "run", folder, steps=2)
    return folder / "run"


def run_for(checkpoint, folder, **more):
    settings = {"name": "toy", "out_dir": str(folder / "out"), "folder": str(folder / "pretrained"), **more}
    return ReleaseRun(checkpoint=str(checkpoint), **settings)


def evaluation_of(policy_id, folder, *, first_seed=500000, episodes=20, finished=20):
    """Write an evaluation in which every other episode succeeds."""
    plan = EvaluationPlan(
        env_configs={"reach": {"family": "tabletop", "task": "reach", "level": "none"}},
        episodes_per_task=episodes,
        first_seed=first_seed,
    )
    folder.mkdir(parents=True)
    atomic_write_json(folder / "plan.json", {"policy_id": policy_id, "plan": plan.to_json()})
    rows = [
        EpisodeRow(
            task="reach",
            seed=first_seed + i,
            instruction_mode="original",
            instruction="reach it",
            given_instruction="reach it",
            level="none",
            steps=9,
            success=i % 2 == 0,
            num_clipped=0,
            wall_s=1.0,
            policy_id=policy_id,
            versions={},
        )
        for i in range(finished)
    ]
    with JsonLinesAppender(folder / "episodes.jsonl") as log:
        for row in rows:
            log.append(row.to_json())
    whole = Evaluation(run_dir=folder, plan=plan, policy_id=policy_id, rows=tuple(rows))
    atomic_write_json(folder / "results.json", whole.to_json())
    return str(folder)


def test_it_has_half_the_size_and_answers_nearly_as_before(trained, tmp_path):
    card = release(run_for(trained, tmp_path))
    place = tmp_path / "pretrained" / "toy"
    weights = load_tensors(place / "model.safetensors")
    assert {one.dtype for one in weights.values()} == {torch.bfloat16}
    assert not (place / "training.safetensors").exists()
    released, original = load_checkpoint(place), load_checkpoint(trained)
    assert {one.dtype for one in released.model.parameters()} == {torch.float32}
    for name, parameter in original.model.named_parameters():
        torch.testing.assert_close(
            dict(released.model.named_parameters())[name], parameter, rtol=2**-8, atol=0
        )
    assert released.checkpoint_id == card.weights_id
    loaded = load_policy_checkpoint(place)
    policies = [VLAPolicy(model=one.model, processor=loaded.processor) for one in (released, original)]
    before, after = (policy.predict(loaded.golden) for policy in policies)
    assert np.mean(before == after) > 0.5  # near-ties of a policy that was hardly trained may fall otherwise


def test_again_it_is_the_same_and_replaces_only_if_asked(trained, tmp_path):
    first = release(run_for(trained, tmp_path))
    with pytest.raises(FileExistsError, match="replace=true"):
        release(run_for(trained, tmp_path))
    again = release(run_for(trained, tmp_path, replace=True, limits=["It sees one camera."]))
    assert again.weights_id == first.weights_id
    assert "- It sees one camera." in (tmp_path / "pretrained/toy/README.md").read_text()
    assert sorted(path.name for path in (tmp_path / "pretrained").iterdir()) == ["toy"]


def test_of_a_pretrained_policy_it_adds_to_the_card(trained, tmp_path):
    first = release(run_for(trained, tmp_path, limits=["It sees one camera."]))
    place = tmp_path / "pretrained" / "toy"
    weights, origin = (place / "model.safetensors").read_bytes(), read_provenance(place)
    for number, (seed, expected) in enumerate([(500000, 1), (500100, 2), (500000, 2)]):
        folder = tmp_path / str(number) / "original"
        measured = evaluation_of(first.weights_id, folder, first_seed=seed)
        again = release(run_for(place, tmp_path, replace=True, evaluations=[measured]))
        assert len(again.results) == expected  # of the same scenes the newer one counts
    assert again.weights_id == first.weights_id
    assert again.limits == first.limits
    assert (place / "model.safetensors").read_bytes() == weights
    assert read_provenance(place) == origin  # so it still tells which checkpoint it was made of
    assert read_card(place).development is not None


def test_a_changed_byte_is_an_error_that_names_the_file(trained, tmp_path):
    release(run_for(trained, tmp_path))
    weights = tmp_path / "pretrained" / "toy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    there = sorted(weights.parent.iterdir())
    with pytest.raises(ManifestError, match=r"damaged: model.safetensors has sha256 \w+ instead of"):
        load_policy_checkpoint(weights.parent)
    assert weights.read_bytes() == bytes(content)
    assert sorted(weights.parent.iterdir()) == there


def test_what_is_too_large_is_refused_and_leaves_nothing(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(release_module, "MOST_BYTES", 1000)
    with pytest.raises(TooLarge, match=r"toy has .* MB \(.*at most 0.001 are kept"):
        release(run_for(trained, tmp_path))
    assert not list((tmp_path / "pretrained").iterdir())
    monkeypatch.undo()
    release(run_for(trained, tmp_path))
    size = sum(path.stat().st_size for path in (tmp_path / "pretrained/toy").iterdir())
    monkeypatch.setattr(release_module, "MOST_BYTES_IN_ALL", int(1.5 * size))
    with pytest.raises(TooLarge, match="all together may have"):
        release(run_for(trained, tmp_path, name="other"))
    release(run_for(trained, tmp_path, replace=True))  # itself counts once


def test_the_card_has_the_results_and_says_what_is_missing(trained, tmp_path):
    card = release(run_for(trained, tmp_path))
    assert "results" in card.shortfall()
    before = evaluation_of(load_checkpoint(trained).checkpoint_id, tmp_path / "before/original")
    after = evaluation_of(card.weights_id, tmp_path / "after" / "original")
    card = release(run_for(trained, tmp_path, replace=True, evaluations=[before]))
    assert "development seeds" in card.shortfall()
    assert "Not complete: the card lacks" in (tmp_path / "pretrained/toy/README.md").read_text()
    given = [str(tmp_path / "before"), after]
    release(run_for(trained, tmp_path, replace=True, evaluations=given))
    stored = read_card(tmp_path / "pretrained" / "toy")
    assert [one.is_released for one in stored.results] == [False, True]
    assert stored.development.tasks == {"reach": 10}
    assert stored.development.interval.low == pytest.approx(0.299, abs=1e-3)
    told = dataclasses.replace(stored, command="c", data=["d"], recipe=["r"])  # the toy keeps no provenance
    assert told.shortfall() is None
    page = (tmp_path / "pretrained/toy/README.md").read_text()
    assert "| original | 1 x 20 | 500000 to 500019 | level none | 10 | bf16 | 50.0 % [30, 70] |" in page
    settings = "first_seed=500000 evaluation.episodes_per_task=20 evaluation.instruction_modes=[original]"
    settings += " evaluation.execute_horizon=10"
    assert f"experiments.evaluate path=pretrained/toy evaluation.{settings}\n" in page


@pytest.mark.parametrize(
    ("samples", "told", "teacher", "rollouts"),
    [
        (3000, "3,000 samples", "expert", "its own rollouts, corrected by the expert: teacher expert"),
        (None, "70 steps", "itself", "successes of its own: teacher itself"),
    ],
)
def test_the_card_of_an_improved_policy_says_what_was_before(samples, told, teacher, rollouts):
    begun = {"given": "outputs/first", "checkpoint_id": "ab12", "step": 70, "num_samples": samples}
    card = card_of(
        name="toy",
        weights_id="cd34",
        num_parameters=5,
        provenance={"init_from": begun, "config": {"corrections": {"teacher": teacher}}},
        state={},
        results=[],
        limits=[],
    )
    assert f"before that, {told}: it began with outputs/first (sha256 ab12)" in card.recipe
    assert f"and {rollouts}" in card.data


def test_an_evaluation_of_another_policy_or_unfinished_is_refused(trained, tmp_path):
    other = evaluation_of("0" * 64, tmp_path / "other")
    with pytest.raises(ValueError, match="is an evaluation of the policy 000000000000, not of"):
        release(run_for(trained, tmp_path, evaluations=[other]))
    half = evaluation_of(load_checkpoint(trained).checkpoint_id, tmp_path / "half", finished=7)
    with pytest.raises(ValueError, match="half is not finished"):
        release(run_for(trained, tmp_path, evaluations=[half]))
    with pytest.raises(FileNotFoundError, match="nothing, which holds no evaluation"):
        release(run_for(trained, tmp_path, evaluations=[str(tmp_path / "nothing")]))
    assert not list((tmp_path / "pretrained").iterdir())


def test_no_place_of_this_machine_is_kept(trained, tmp_path):
    newest = sorted((trained / "checkpoints").glob("step_*"))[-1]
    stored = json.dumps(without_places({"where": str(newest), "command": f"train dataset={newest} a=b/c"}))
    assert json.loads(stored) == {
        "where": f".../{newest.name}",
        "command": f"train dataset=.../{newest.name} a=b/c",
    }
    assert without_places(["[/a/b,'/c/d']", "~/mine/x", "ws://host/a", "reach/push", 3]) == [
        "[.../b,'.../d']",
        ".../x",
        "ws://host/a",
        "reach/push",
        3,
    ]
    release(run_for(trained, tmp_path))
    place = tmp_path / "pretrained" / "toy"
    assert read_provenance(place)["released_from"] == load_checkpoint(trained).checkpoint_id
    for name in ("manifest.json", "card.json", "README.md", "state.json"):
        assert str(trained.parent) not in (place / name).read_text()


@pytest.mark.parametrize("name", ["", "../up", "My policy", "a/b", "_x"])
def test_a_name_can_be_typed_everywhere(name):
    with pytest.raises(SettingError, match="small letters, digits and _"):
        require_name(name)
