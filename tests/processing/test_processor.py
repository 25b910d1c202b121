import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from processing_fixtures import fit

from vla.interface import NOTHING, PAD_ID, DecodeError, ObservationError
from vla.processing.moments import Demonstrations
from vla.processing.processor import DEFAULT_INPUTS, Processor
from vla.processing.text import BOS_ID, InstructionTooLong
from vla.spec import CameraSpec


def altered(observation, **changes):
    """Change fields without the constructor, as a driver that skips the shape checks would."""
    copy = dataclasses.replace(observation)
    for name, value in changes.items():
        object.__setattr__(copy, name, value)
    return copy


def encode_actions(processor: Processor, actions: np.ndarray) -> np.ndarray:
    return processor.codec.encode(actions, np.ones(actions.shape[:2], dtype=bool))["bins"]


def decode(processor: Processor, bins: np.ndarray) -> np.ndarray:
    return processor.decode({"bins": bins})


def test_inputs_have_the_promised_shapes_and_order(processor, observation) -> None:
    inputs = processor.encode_observations([observation, altered(observation, instruction="")])

    assert inputs["images"].shape == (2, 4, 4, 6, 3)
    for k, (frame, camera) in enumerate([(0, "exterior"), (0, "wrist"), (1, "exterior"), (1, "wrist")]):
        np.testing.assert_array_equal(inputs["images"][0, k], observation.images[camera][frame])
    assert inputs["text_ids"].shape == (2, 16)
    assert inputs["text_ids"][1].tolist() == [BOS_ID] + [PAD_ID] * 15
    assert inputs["state"].shape == (2, 2)
    assert (np.abs(inputs["state"]) <= 1.5).all()


def test_specs_say_what_is_encoded(processor, observation) -> None:
    inputs, specs = processor.encode_observations([observation] * 3), processor.specs()
    assert {name: (array.dtype.name, array.shape[1:]) for name, array in inputs.items()} == {
        name: (spec.dtype, spec.shape) for name, spec in specs.inputs.items()
    }
    targets = processor.codec.encode(np.zeros((3, 5, 3), np.float32), np.ones((3, 5), bool))
    assert {name: (array.dtype.name, array.shape[1:]) for name, array in targets.items()} == {
        name: (spec.dtype, spec.shape) for name, spec in specs.targets.items()
    }


def test_json_gives_back_equal_outputs(processor, observation) -> None:
    again = Processor.from_json(json.loads(json.dumps(processor.to_json())))

    assert again.to_json() == processor.to_json()
    before, after = processor.encode_observations([observation]), again.encode_observations([observation])
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name])
    bins = np.random.default_rng(0).integers(0, 256, (7, 5, 3))
    np.testing.assert_array_equal(decode(processor, bins), decode(again, bins))
    actions = decode(processor, bins)
    np.testing.assert_array_equal(encode_actions(again, actions), bins)
    assert again.specs() == processor.specs()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=hnp.arrays(np.float32, (2, 5, 3), elements=st.floats(-2, 2, width=32)))
def test_decoded_actions_are_legal_and_stable(processor, actions) -> None:
    bins = encode_actions(processor, actions)
    decoded = decode(processor, bins)
    assert (processor.robot_spec.action_low <= decoded).all()
    assert (decoded <= processor.robot_spec.action_high).all()
    np.testing.assert_array_equal(encode_actions(processor, decoded), bins)


def test_standing_still_and_the_gripper_ends_are_exact(processor) -> None:
    action = np.array([[[0, 0, 0], [0, 0, 1]] + [[0, 0, 0]] * 3], dtype=np.float32)
    np.testing.assert_array_equal(decode(processor, encode_actions(processor, action)), action)


def test_committed_actions_become_bins_and_too_many_are_refused(processor, observation) -> None:
    assert (processor.encode_observations([observation])["committed"] == NOTHING).all()
    committed = np.array([[0.0, 0.0, 1.0], [0.01, 0.0, 0.0]], dtype=np.float32)
    given = altered(observation, committed=committed)
    bins = processor.encode_observations([given])["committed"][0]
    whole = np.concatenate([committed, np.zeros((3, 3), np.float32)])
    np.testing.assert_array_equal(bins[:2], encode_actions(processor, whole[None])[0, :2])
    assert (bins[2:] == NOTHING).all()
    bad = committed.copy()
    bad[1, 0] = np.nan
    with pytest.raises(ObservationError, match=r"committed actions: .*nan"):
        processor.encode_observations([altered(observation, committed=bad)])
    data = {**processor.to_json(), "max_committed": 0}
    without = Processor.from_json(data)
    assert "committed" not in without.specs().inputs
    assert "committed" not in without.encode_observations([observation])
    with pytest.raises(ObservationError, match=r"2 actions are already committed; .* at most 0"):
        without.encode_observations([given])
    with pytest.raises(ValueError, match=r"max_committed is 5; it must lie in \[0, action_horizon 5\)"):
        Processor.from_json({**data, "max_committed": 5})


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", ["uniform", "quantile"])
def test_processors_of_older_bundles_still_load(
    robot_spec, demonstrated_states, demonstrated_actions, kind: str, version: int
) -> None:
    now = fit(robot_spec, demonstrated_states, demonstrated_actions, codec=kind).to_json()
    codec = {key: value for key, value in now["codec"].items() if key != "action_horizon"}
    if kind == "quantile":
        codec["centres"] = codec.pop("centers")
    old = {
        "schema_version": version,
        "robot_spec": now["robot_spec"],
        "action_horizon": 5,
        "frame_offsets": now["frame_offsets"],
        "max_committed": 2,
        "max_text_tokens": now["inputs"]["text"]["max_tokens"],
        "text_tokenizer": now["inputs"]["text"]["tokenizer"],
        "action_tokenizer": codec,
        "state_normalizer": now["inputs"]["state"]["normalizer"],
    }
    if version == 1:
        del old["max_committed"]
        now["max_committed"] = 0
    assert Processor.from_json(old).to_json() == now


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda o: {"images": {"exterior": o.images["exterior"]}},
            r"no camera 'wrist'; it has \['exterior'\]",
        ),
        (
            lambda o: {"images": {**o.images, "wrist": o.images["wrist"][:, :3]}},
            r"'wrist': uint8\[2, 3, 6, 3\] given",
        ),
        (
            lambda o: {"images": {**o.images, "wrist": o.images["wrist"][:1]}},
            r"'wrist' has 1 frames, 2 are needed.*\(4, 0\)",
        ),
        (lambda o: {"images": {**o.images, "wrist": o.images["wrist"] / 255}}, r"'wrist': float64"),
        (lambda o: {"state": o.state[:1]}, r"float32\[1\]; float32\[2\] is needed: \['x', 'opening'\]"),
        (lambda o: {"state": o.state.astype(np.float64)}, r"float64\[2\]; float32\[2\] is needed"),
        (
            lambda o: {"state": np.array([0, np.nan], dtype=np.float32)},
            r"channel 'opening' is nan at position \(0,\)",
        ),
        (
            lambda o: {"instruction": "zygomorphic " * 9},
            "limit is 16",
        ),
    ],
)
def test_a_bad_observation_is_refused_by_name(processor, observation, change, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        processor.encode_observations([altered(observation, **change(observation))])


def test_no_observation_is_refused(processor) -> None:
    with pytest.raises(ObservationError, match="no observations"):
        processor.encode_observations([])


def test_an_instruction_fits_up_to_the_limit_and_not_beyond(processor) -> None:
    word = processor.inputs["text"].tokenizer.encode("lift")
    assert len(word) == 1
    assert processor.inputs["text"].encode_text(["lift " * 15])[0].min() >= BOS_ID
    with pytest.raises(InstructionTooLong, match=r"has 17 tokens .* limit is 16"):
        processor.inputs["text"].encode_text(["lift " * 16])


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        (np.zeros((2, 4, 3), dtype=np.int64), r"shape \(2, 4, 3\); expected \(batch, 5, 3\)"),
        (np.zeros((5, 3), dtype=np.int64), r"shape \(5, 3\)"),
        (np.zeros((2, 5, 3), dtype=np.float32), "dtype float32"),
        (np.full((2, 5, 3), 256), r"256 at position \(0, 0\), dimension 0"),
        (np.full((2, 5, 3), -1), r"-1 at position \(0, 0\), dimension 0"),
    ],
)
def test_what_is_no_chunk_does_not_decode(processor, bins, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode(processor, bins)


def test_an_answer_without_bins_does_not_decode(processor) -> None:
    with pytest.raises(DecodeError, match=r"\['actions'\], but no 'bins'"):
        processor.decode({"actions": np.zeros((1, 5, 3), dtype=np.float32)})


def test_an_empty_batch_decodes_to_an_empty_batch(processor) -> None:
    assert decode(processor, np.zeros((0, 5, 3), dtype=np.int64)).shape == (0, 5, 3)


def test_bad_demonstrations_are_refused(robot_spec, demonstrated_states, demonstrated_actions) -> None:
    states, actions = demonstrated_states, demonstrated_actions
    still = states.copy()
    still[:, 1] = 1.0
    bad = actions.copy()
    bad[7, 2] = np.nan
    with pytest.raises(ValueError, match="'opening' has zero width"):
        fit(robot_spec, still, actions)
    encoder = fit(robot_spec, still, actions, constant_dims=["opening"]).inputs["state"]
    assert encoder.normalize(still)[0, 1] == 0
    for kind in ("uniform", "quantile"):
        with pytest.raises(ValueError, match=r"position \(7,\), dimension 2 is nan"):
            fit(robot_spec, states, bad, codec=kind)
        with pytest.raises(ValueError, match=r"no (demonstrations|rows)"):
            fit(robot_spec, states[:0], actions[:0], codec=kind)
    with pytest.raises(ValueError, match=r"2 action channels, robot spec 'toy' has 3: \('dx'"):
        fit(robot_spec, states, actions[:, :2])
    with pytest.raises(ValueError, match=r"100% of the demonstrated actions of channel 'roll' lie outside"):
        fit(robot_spec, states, actions + np.float32([0, 0.2, 0]))
    with pytest.raises(InstructionTooLong, match="limit is 4"):
        fit(robot_spec, states, actions, max_tokens=4)
    with pytest.raises(ValueError, match=r"'quantil'.*did you mean 'quantile'"):
        fit(robot_spec, states, actions, codec="quantil")


@pytest.mark.parametrize("offsets", [(), (4,), (0, 4), (4, 4, 0), (0, -1)])
def test_frame_offsets_must_fall_to_now(
    robot_spec, demonstrated_states, demonstrated_actions, offsets
) -> None:
    with pytest.raises(ValueError, match="frame_offsets"):
        fit(robot_spec, demonstrated_states, demonstrated_actions, frame_offsets=offsets)


def test_parts_that_do_not_fit_together_are_refused(processor, robot_spec) -> None:
    data = processor.to_json()
    unequal = dataclasses.replace(
        robot_spec, cameras=(robot_spec.cameras[0], CameraSpec(name="wrist", height=8, width=8))
    )
    state = data["inputs"]["state"]
    renamed = {**state, "normalizer": {**state["normalizer"], "names": ["y", "opening"]}}
    cases = [
        ({"robot_spec": unequal.to_json()}, "the policy sees one"),
        (
            {"robot_spec": dataclasses.replace(robot_spec, action=robot_spec.action[:2]).to_json()},
            "3 dimensions",
        ),
        ({"inputs": {**data["inputs"], "state": renamed}}, r"normalizer is for \('y', 'opening'\)"),
        ({"inputs": {**data["inputs"], "more": state}}, "two parts of the processor make the array 'state'"),
        ({"inputs": {**data["inputs"], "more": {"kind": "sound"}}}, "input encoder 'sound' is unknown"),
        ({"codec": {**data["codec"], "action_horizon": 0}}, "action_horizon is 0"),
        ({"codec": {"num_bins": 3}}, "no 'kind'"),
        ({"schema_version": 4}, "schema version 4"),
        ({"surprise": 1}, r"unknown keys \['surprise'\]"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            Processor.from_json({**data, **change})


@pytest.mark.parametrize(
    ("kind", "bins"),
    [
        ("uniform", [[134, 128, 255], [121, 128, 255], [161, 128, 255]]),
        ("quantile", [[141, 128, 255], [117, 128, 255], [190, 128, 255]]),
    ],
)
def test_golden_bins(robot_spec, demonstrated_states, demonstrated_actions, kind: str, bins) -> None:
    """What a recipe learns depends on these numbers: change them knowingly."""
    processor = fit(robot_spec, demonstrated_states, demonstrated_actions, codec=kind)
    assert encode_actions(processor, demonstrated_actions[None, :5])[0, :3].tolist() == bins


def test_importing_the_processor_is_quick_and_needs_no_torch() -> None:
    code = "import sys, vla.processing.processor; print(sorted({'torch', 'onnxruntime'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"


def test_instructions_that_no_policy_can_tell_apart_are_refused(
    robot_spec, demonstrated_states, demonstrated_actions
) -> None:
    def fitted(*instructions: str, **settings) -> Processor:
        demonstrations = Demonstrations(
            robot_spec=robot_spec,
            states=demonstrated_states,
            actions=demonstrated_actions,
            chunks=demonstrated_actions[:100].reshape(-1, 5, 3),
            instructions=instructions,
        )
        inputs = {**DEFAULT_INPUTS, "text": {"kind": "text", **settings}}
        return Processor.fit(demonstrations, codec={"kind": "uniform"}, inputs=inputs)

    fitted("Lift it.", "lift it", "turn by 90", "turn by -90", "turn by 1.5", "turn by 15", "10%", "10")
    with pytest.raises(ValueError, match=r"by - 90' and 'turn by 90' have the same tokens.*same_tokens="):
        fitted("turn by - 90", "lift it", "turn by 90")
    fitted("turn by - 90", "lift it", "turn by 90", same_tokens="allow")
