"""A policy is not evaluated on scenes of which it was given demonstrations."""

import dataclasses

import pytest
from program_fixtures import composed

from experiments.collect import collect_dataset
from experiments.improve import require_own_scenes
from experiments.recorded_seeds import (
    KEY,
    SeedsWereRecorded,
    recorded_seeds,
    require_unseen_scenes,
    with_seeds_of,
)
from experiments.train import resumed_by, train_policy
from experiments.training_parts import (
    episodes_of,
    open_data,
    recorded_scenes,
    require_trainable,
    samples_before,
    trained_before,
)
from policies.pretrained_names import FOLDER
from vla.model.checkpoint import CheckpointError, load_checkpoint
from vla.spec import SpecMismatch
from vla.training.warm_start import open_start

PLAYED = ("trainer.rollout_every_samples=8", "rollouts.first_seed=700000")
OTHER_CODEC = ("codec.num_bins=99", "init_statistics=checkpoint")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("recorded")
    run = composed(
        "train",
        "tasks=[reach]",
        "collect.episodes_per_task=3",
        "collect.first_seed=700000",
        f"dataset={root / 'dataset'}",
        f"data.cache_dir={root / 'cache'}",
        "evaluation.first_seed=699999",
        "evaluation.episodes_per_task=2",
    )
    collect_dataset(root=root / "dataset", env=run.env, tasks=run.tasks, collect=run.collect)
    return run


@pytest.mark.timeout(300)
def test_training_is_refused_when_its_evaluation_would_be_on_recorded_scenes(run, tmp_path):
    seeds = recorded_seeds(scene for source in open_data(run) for scene in recorded_scenes(source))
    first, last = seeds["tabletop"]["reach"][0][0], seeds["tabletop"]["reach"][-1][1]
    assert (first, list(seeds), list(seeds["tabletop"])) == (700000, ["tabletop"], ["reach"])
    with pytest.raises(SeedsWereRecorded, match=rf"'reach' with seeds from 700000 to 700000.*={last + 1} or"):
        train_policy(run, tmp_path / "run")


def test_scenes_of_what_training_began_with_count_as_seen():
    before = {KEY: {"tabletop": {"lift": [[0, 2], [9, 9]]}}}
    merged = with_seeds_of(before, [("tabletop", "lift", 3), ("metaworld", "reach-v3", 7)])
    assert merged == {KEY: {"tabletop": {"lift": [[0, 3], [9, 9]]}, "metaworld": {"reach-v3": [[7, 7]]}}}
    assert with_seeds_of(merged, [("tabletop", "lift", 3)]) == merged


@pytest.mark.timeout(300)
def test_what_a_run_begins_with_is_in_its_record_with_all_that_it_was_trained_on(run, tmp_path):
    tiny = (
        "tasks=[reach]",
        f"dataset={run.dataset}",
        f"data.cache_dir={run.data['cache_dir']}",
        "data.validation_share=0.4",
        "model.backbone.width=32",
        "model.backbone.depth=2",
        "model.backbone.stem_channels=[8,16]",
        "trainer.num_samples=8",
        "trainer.batch_size=8",
        "trainer.num_threads=1",
        "evaluation.instruction_modes=[]",
    )
    first = train_policy(composed("train", *tiny), tmp_path / "first")
    begun = composed(
        "train", *tiny, f"init_from={tmp_path / 'first'}", "data.split_seed=3", "init_statistics=checkpoint"
    )
    second = train_policy(begun, tmp_path / "second")
    old, new = (load_checkpoint(one.checkpoint) for one in (first, second))
    assert new.provenance["init_from"]["checkpoint_id"] == old.checkpoint_id
    assert new.processor_json["inputs"]["state"] == old.processor_json["inputs"]["state"]
    assert set(old.provenance["episodes"]["trained"]) <= set(new.provenance["episodes"]["trained"])
    assert set(new.provenance["episodes"]["held_out"]).isdisjoint(old.provenance["episodes"]["trained"])
    assert new.provenance[KEY] == old.provenance[KEY]
    assert train_policy(begun, tmp_path / "second").step == second.step  # resumed: its own statistics
    start = open_start(tmp_path / "second", begun.init_from)
    assert trained_before(start) == old.provenance["episodes"]["trained"]  # its own are told apart
    assert samples_before(start) == new.provenance["init_from"]["num_samples"] == 8
    assert episodes_of(*open_data(begun), start) == new.provenance["episodes"]
    assert resumed_by(begun, tmp_path / "second").changed == {}
    with pytest.raises(CheckpointError, match="was begun with those of"):
        resumed_by(dataclasses.replace(begun, init_from=None), tmp_path / "second")
    measured = ("evaluation.instruction_modes=[original]", "evaluation.first_seed=700000")
    again = composed("train", *tiny, *measured, f"init_from={tmp_path / 'first'}", "data.cache_dir=none")
    with pytest.raises(SeedsWereRecorded):
        require_trainable(again)
    again = composed("train", *tiny, f"init_from={tmp_path / 'first'}", *PLAYED)
    with pytest.raises(SeedsWereRecorded, match=r"Give rollouts\.first_seed="):
        require_trainable(again)
    other = composed("train", *tiny, f"init_from={tmp_path / 'first'}", *OTHER_CODEC)
    with pytest.raises(SpecMismatch, match=r"codec: .*num_ids=99"):
        require_trainable(other)


@pytest.mark.parametrize(
    ("family", "task", "first_seed", "is_refused"),
    [
        ("tabletop", "lift", 0, True),
        ("tabletop", "lift", 9, True),
        ("tabletop", "lift", 10, False),
        ("tabletop", "lift", 13, True),
        ("tabletop", "push", 0, False),
        ("metaworld", "lift", 0, False),
    ],
)
def test_seeds_count_by_family_and_task(family, task, first_seed, is_refused):
    provenance = {KEY: {"tabletop": {"lift": [[0, 9], [15, 20]], "reach": [[0, 40]]}}}

    def check(first_seed):
        require_unseen_scenes(provenance, family=family, tasks=[task], first_seed=first_seed, num_episodes=5)

    if not is_refused:
        check(first_seed)
        return
    with pytest.raises(SeedsWereRecorded, match=r"evaluation\.first_seed=21"):
        check(first_seed)
    check(21)


def test_a_policy_of_unknown_origin_is_evaluated():
    require_unseen_scenes({}, family="tabletop", tasks=["lift"], first_seed=0, num_episodes=5)


def test_a_policy_practices_in_scenes_that_are_new_to_it():
    path = f"path={FOLDER / 'tabletop'}"  # it has practiced on 310000 to 310299
    with pytest.raises(SeedsWereRecorded, match=r"corrections\.first_seed=310300 or more"):
        require_own_scenes(composed("improve", path, "corrections.first_seed=310299"))
    require_own_scenes(composed("improve", path, "corrections.first_seed=310300"))
