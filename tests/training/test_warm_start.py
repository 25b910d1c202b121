"""A model that begins with another one's weights: what is kept by name, what is refused, how it resumes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import SPEC, tiny_model, train_for

from vla.model.checkpoint import (
    CheckpointError,
    ModelCheckpoint,
    list_checkpoints,
    load_checkpoint,
    load_tensors,
    read_state,
)
from vla.model.vla import VLAModel
from vla.processing.moments import Demonstrations
from vla.processing.names import axis_names
from vla.processing.processor import DEFAULT_INPUTS, Processor
from vla.processing.text import InstructionTooLong
from vla.spec import CameraSpec, Channel, RobotSpec, SpecMismatch
from vla.training.warm_start import (
    names_in_common,
    open_start,
    take_weights,
    with_statistics_of,
)

CODECS = {"parallel": "uniform", "autoregressive": "quantile", "fast": "fast", "flow": "continuous"}
BINS = ("parallel", "autoregressive")  # heads over bins
LATER = {"later": {"kind": "later_states", "offsets": [2, 4]}}
WORDS = ["push the red cube", "lift the blue ball"]


def robot(
    cameras: Sequence[str] = ("front", "wrist"),
    state: Sequence[str] = ("x", "y", "grip"),
    action: Sequence[str] = ("dx", "dy", "gripper"),
    **others: str,
) -> RobotSpec:
    return dataclasses.replace(
        SPEC,
        cameras=tuple(CameraSpec(name=name, height=32, width=32) for name in cameras),
        state=tuple(Channel(name=name, unit="m", low=-1.0, high=1.0) for name in state),
        action=tuple(Channel(name=name, unit="m", low=-1.0, high=1.0) for name in action),
        **others,
    )


def fitted(
    spec: RobotSpec,
    *,
    head: str = "parallel",
    instructions: Sequence[str] = WORDS,
    horizon: int = 3,
    max_committed: int = 1,
    frame_offsets: Sequence[int] = (0,),
    spread: float = 1.0,
) -> Processor:
    """Return a processor whose constants do not depend on the order of the channels."""
    line = np.linspace(-spread, spread, 60, dtype=np.float32)
    actions = np.repeat(line[:, None], len(spec.action), axis=1)
    chunks = np.repeat(actions[:, None], horizon, axis=1)
    return Processor.fit(
        Demonstrations(
            robot_spec=spec,
            states=np.repeat(line[:, None], len(spec.state), axis=1),
            actions=actions,
            chunks=chunks,
            instructions=list(instructions),
        ),
        codec={"kind": CODECS[head], **({"num_bins": 16} if head in BINS else {})},
        inputs={**DEFAULT_INPUTS, "text": {"kind": "text", "max_tokens": 12, "vocab_size": 300}},
        frame_offsets=frame_offsets,
        max_committed=max_committed,
    )


def trained(
    processor: Processor, *, head: str = "parallel", seed: int = 5, width: int = 32
) -> ModelCheckpoint:
    """Return a model all of whose weights are random, as if it had been trained."""
    model = tiny_model(processor, head=head, auxiliaries=LATER, width=width)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return ModelCheckpoint(
        model=model,
        processor_json=processor.to_json(),
        provenance={},
        checkpoint_id="abc",
        path=Path("runs/old/checkpoints/step_1"),
    )


def new_model(processor: Processor, *, head: str = "parallel", width: int = 32) -> VLAModel:
    return tiny_model(processor, head=head, auxiliaries=LATER, width=width)


@pytest.mark.parametrize("head", list(CODECS))
def test_labels_are_as_many_as_entries_and_each_is_there_once(head: str) -> None:
    processor = fitted(robot(), head=head, frame_offsets=(4, 0))
    model = new_model(processor, head=head)
    parameters = dict(model.named_parameters())
    labels = model.axis_labels(axis_names(processor))
    assert {name for name in parameters if name.startswith("head.position")} <= set(labels)
    for name, axes in labels.items():
        for axis, size in zip(axes, parameters[name].shape, strict=True):
            assert axis is None or len(axis) == len(set(axis)) == size, name


@pytest.mark.parametrize("head", list(CODECS))
def test_with_the_same_data_all_is_kept(head: str) -> None:
    processor = fitted(robot(), head=head)
    source, model = trained(processor, head=head), new_model(processor, head=head)
    kept = take_weights(model, processor, source)
    old = dict(source.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert kept[name] == parameter.numel(), name
        assert torch.equal(parameter, old[name]), name


@pytest.mark.parametrize("head", list(CODECS))
def test_a_model_for_the_same_things_in_another_order_answers_the_same(head: str) -> None:
    """Cameras, joints and words are counted differently; where a head does not chain them, actions too."""
    chained = head in ("autoregressive", "fast")
    old = fitted(robot(), head=head)
    new = fitted(
        robot(
            cameras=("wrist", "front"),
            state=("grip", "x", "y"),
            action=("dx", "dy", "gripper") if chained else ("gripper", "dx", "dy"),
        ),
        head=head,
        instructions=[*WORDS, "take the green brick"],
    )
    source, model = trained(old, head=head), new_model(new, head=head)
    take_weights(model, new, source)
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.standard_normal((2, 3, 3), dtype=np.float32))
    images = rng.integers(0, 256, size=(2, 2, 32, 32, 3), dtype=np.uint8)
    state = rng.uniform(-1, 1, size=(2, 3)).astype(np.float32)

    def inputs(processor: Processor, cameras: list[int], joints: list[int], dims: list[int]) -> dict:
        text = next(one for name, one in processor.inputs.items() if name == "text")
        committed = {
            name: np.zeros((2, *spec.shape), spec.dtype) for name, spec in processor.specs().inputs.items()
        }
        if head in BINS:
            committed["committed"] = committed["committed"] - 1
        arrays = {
            **committed,
            "images": images[:, cameras],
            "state": state[:, joints],
            "text_ids": text.encode_text(WORDS),
        }
        return {**{k: torch.from_numpy(v) for k, v in arrays.items()}, "noise": noise[..., dims]}

    order = [0, 1, 2] if chained else [2, 0, 1]
    with torch.no_grad():
        wanted = source.model.sample(inputs(old, [0, 1], [0, 1, 2], [0, 1, 2]))
        answer = model.sample(inputs(new, [1, 0], [2, 0, 1], order))
    (name,) = wanted
    expected = wanted[name] if head == "fast" else wanted[name][..., order]
    torch.testing.assert_close(answer[name], expected, rtol=1e-4, atol=1e-4)


def test_what_only_one_robot_has_is_new() -> None:
    old = fitted(robot())
    new = fitted(
        robot(cameras=("front", "side"), state=("x", "z"), action=("dy", "droll"), name="other"),
        instructions=["push the drawer shut"],
        horizon=5,
        max_committed=0,
    )
    source, model = trained(old), new_model(new)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    kept = take_weights(model, new, source)
    mine, theirs = dict(model.named_parameters()), dict(source.model.named_parameters())
    position = "backbone.image_tokenizer.position"
    assert torch.equal(mine[position][0], theirs[position][0])  # the front camera
    assert torch.equal(mine[position][1], before[position][1])  # the side camera
    assert torch.equal(mine["head.position"][:3], theirs["head.position"])
    assert torch.equal(mine["head.position"][3:], before["head.position"][3:])
    assert torch.equal(mine["head.bin_logits.mean"][0], theirs["head.bin_logits.mean"][1])  # dy
    assert torch.equal(mine["head.bin_logits.mean"][1], before["head.bin_logits.mean"][1])
    rows = {name: axis_names(one)["text_ids"] for name, one in (("new", new), ("old", old))}
    table = "backbone.token_embedding.weight"
    for token in rows["new"]:
        row = mine[table][rows["new"].index(token)]
        known = token in rows["old"]
        there = theirs[table][rows["old"].index(token)] if known else before[table][rows["new"].index(token)]
        assert torch.equal(row, there), token
    assert 0 < kept[table] < mine[table].numel()
    assert kept["backbone.trunk.blocks.0.attention.qkv.weight"] == 32 * 96
    lines = names_in_common(new, old)
    assert "frames: kept front; new side; not needed wrist" in lines
    assert "action: kept dy; new droll; not needed dx, gripper" in lines


def test_a_gripper_that_goes_the_other_way_is_another_channel() -> None:
    one, other = (axis_names(fitted(robot(gripper_sign=s))) for s in ("positive_opens", "positive_closes"))
    assert one["action"][:2] == other["action"][:2]
    assert one["action"][2] != other["action"][2]
    assert one["state"] == other["state"]


def test_a_robot_of_another_kind_is_refused_by_name() -> None:
    source = trained(fitted(robot()))
    new = fitted(robot(name="arm", action_convention="joint_target"))
    with pytest.raises(
        SpecMismatch, match=r"'arm', is of another kind .* 'toy': .*joint_target.*end_effector_"
    ):
        take_weights(new_model(new), new, source)


def test_statistics_are_taken_over_only_from_the_same_channels() -> None:
    old = fitted(robot(), head="flow", spread=0.5, instructions=["grasp a mug"])
    new = fitted(robot(), head="flow", horizon=3)
    both = with_statistics_of(new, old, instructions=["a mug"], source=Path("old"))
    assert both.to_json()["codec"] == old.to_json()["codec"] != new.to_json()["codec"]
    assert both.to_json()["inputs"]["state"] == old.to_json()["inputs"]["state"]
    assert both.to_json()["inputs"]["text"] == old.to_json()["inputs"]["text"]
    with pytest.raises(InstructionTooLong):
        with_statistics_of(new, old, instructions=["a " * 99], source=Path("old"))
    other = fitted(robot(state=("x", "y")), head="flow")
    with pytest.raises(SpecMismatch, match=r"(?s)init_statistics=checkpoint.*state: .*init_statistics=data"):
        with_statistics_of(other, old, instructions=[], source=Path("old"))


def test_a_run_that_begins_with_another_one_keeps_what_fits_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    train_for(old, tmp_path, steps=3)
    train_for(new, tmp_path, steps=2, now=1, init_from=old, max_committed=1, freeze=("backbone.*",))
    printed = capsys.readouterr().err
    assert "action: kept x, g; new 0; not needed 0" in printed
    rows = {row.split("  ")[0]: row for row in printed.splitlines()}
    assert rows["backbone.trunk (13 parameters)"].endswith("kept    frozen")
    assert rows["head.committed_tokenizer (2 parameters)"].endswith("new     yes")
    averaged = load_tensors(list_checkpoints(old)[-1] / "model.safetensors")
    raw = load_tensors(list_checkpoints(new)[-1] / "training.safetensors")
    backbone = [name for name in averaged if name.startswith("backbone.")]
    assert all(torch.equal(raw[f"weights.{name}"], averaged[name]) for name in backbone)
    assert not any(name.startswith(("exp_avg.backbone", "momentum_buffer.backbone")) for name in raw)
    began = read_state(list_checkpoints(new)[-1])["init_from"]
    assert began == {"given": str(old), "checkpoint_id": load_checkpoint(old).checkpoint_id, "step": 3}


def test_resuming_goes_on_with_its_own_weights_and_refuses_another_start(tmp_path: Path) -> None:
    old, new, whole = tmp_path / "old", tmp_path / "new", tmp_path / "whole"
    train_for(old, tmp_path, steps=2)
    train_for(whole, tmp_path, steps=4, init_from=old)
    train_for(new, tmp_path, steps=4, now=2, init_from=old)
    for other in (None, whole):
        with pytest.raises(CheckpointError, match=r"was begun with those of .*old \(step 2\), and init_from"):
            train_for(new, tmp_path, steps=4, init_from=other)
    train_for(new, tmp_path, steps=4, now=1, init_from=list_checkpoints(old)[-1])  # the same by its hash
    old.rename(tmp_path / "gone")
    train_for(new, tmp_path, steps=4, init_from=old)
    assert load_checkpoint(new).checkpoint_id == load_checkpoint(whole).checkpoint_id
    with pytest.raises(CheckpointError, match=r"begun with random weights, and init_from=.*new is something"):
        open_start(tmp_path / "gone", str(new))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"width": 16},
            r"another size: width=32 there, 16 in the new model\. Give model\.backbone\.width=32",
        ),
        ({"head": "flow", "codec": "continuous"}, r"another family: its head is 'parallel', .* is 'flow'"),
    ],
)
def test_another_family_or_size_is_refused_and_nothing_is_written(
    tmp_path: Path, changes: dict, message: str
) -> None:
    train_for(tmp_path / "old", tmp_path, steps=1)
    with pytest.raises(CheckpointError, match=message):
        train_for(tmp_path / "new", tmp_path, steps=1, init_from=tmp_path / "old", **changes)
    assert not (tmp_path / "new").exists()


def test_a_head_of_another_size_is_refused_by_both_sizes(tmp_path: Path) -> None:
    train_for(tmp_path / "old", tmp_path, steps=1, head="flow", codec="continuous")
    source = load_checkpoint(tmp_path / "old")
    processor = Processor.from_json(source.processor_json)
    config = source.model.config._replace(head={**source.model.config.head, "expert_width": 64})
    model = VLAModel(specs=processor.specs(), config=config)
    with pytest.raises(CheckpointError, match=r"expert_width=128 there, 64 in the new model"):
        take_weights(model, processor, source)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_parts_stay_others_learn_and_a_resumed_run_is_the_same(tmp_path: Path, optimizer: str) -> None:
    settings = {
        "optimizer": optimizer,
        "freeze": ("backbone.image_tokenizer.*", "*.blocks.0.*"),
        "learning_rate_scale": {"backbone.*": 0.1, "*.blocks.1.up.*": 0.5},
    }
    train_for(tmp_path / "whole", tmp_path, steps=4, **settings)
    train_for(tmp_path / "parts", tmp_path, steps=4, now=2, **settings)
    train_for(tmp_path / "parts", tmp_path, steps=4, **settings)
    assert (
        load_checkpoint(tmp_path / "whole").checkpoint_id == load_checkpoint(tmp_path / "parts").checkpoint_id
    )
    with pytest.raises(CheckpointError, match=r"trainer\.freeze=None \(was \["):
        train_for(tmp_path / "parts", tmp_path, steps=4, optimizer=optimizer)
