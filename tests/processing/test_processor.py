import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla.interface import DecodeError, ObservationError
from vla.processing.interface import InstructionTooLong
from vla.processing.processor import NO_BIN, Processor
from vla.processing.registry import ACTION_TOKENIZERS, action_tokenizer_from_json
from vla.spec import CameraSpec

INSTRUCTIONS = ["push the red cube to the green mat", "lift the blue ball", "Reach for the yellow cylinder."]


def altered(observation, **changes):
    """Change fields without the constructor, as a driver that skips the shape checks would."""
    copy = dataclasses.replace(observation)
    for name, value in changes.items():
        object.__setattr__(copy, name, value)
    return copy


def fit(robot_spec, states, actions, **changes) -> Processor:
    arguments = {"instructions": INSTRUCTIONS, "action_horizon": 5, **changes}
    return Processor.fit(robot_spec=robot_spec, states=states, actions=actions, **arguments)


def test_inputs_have_the_promised_shapes_and_order(processor, observation) -> None:
    inputs = processor.encode([observation, altered(observation, instruction="")])

    assert inputs.images.shape == (2, 4, 4, 6, 3)
    for k, (frame, camera) in enumerate([(0, "exterior"), (0, "wrist"), (1, "exterior"), (1, "wrist")]):
        np.testing.assert_array_equal(inputs.images[0, k], observation.images[camera][frame])
    assert inputs.text_ids.shape == (2, 16)
    assert inputs.text_ids[1].tolist() == [processor.vocabulary.bos_id] + [processor.vocabulary.pad_id] * 15
    assert inputs.state.shape == (2, 2)
    assert (np.abs(inputs.state) <= 1.5).all()


def test_the_fast_paths_of_training_equal_encode(processor, observation) -> None:
    inputs = processor.encode([observation])
    np.testing.assert_array_equal(inputs.text_ids, processor.encode_text([observation.instruction]))
    np.testing.assert_array_equal(inputs.state, processor.encode_state(observation.state[None]))


def test_json_gives_back_equal_outputs(processor, observation) -> None:
    again = Processor.from_json(json.loads(json.dumps(processor.to_json())))

    assert again.to_json() == processor.to_json()
    before, after = processor.encode([observation]), again.encode([observation])
    for field in dataclasses.fields(before):
        np.testing.assert_array_equal(getattr(before, field.name), getattr(after, field.name))
    bins = np.random.default_rng(0).integers(0, 256, (7, 5, 3))
    np.testing.assert_array_equal(processor.decode(bins), again.decode(bins))
    actions = processor.decode(bins)
    np.testing.assert_array_equal(again.encode_actions(actions), bins)
    assert again.vocabulary.size == processor.vocabulary.size


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=hnp.arrays(np.float32, (2, 5, 3), elements=st.floats(-2, 2, width=32)))
def test_decoded_actions_are_legal_and_stable(processor, actions) -> None:
    bins = processor.encode_actions(actions)
    decoded = processor.decode(bins)
    assert (processor.robot_spec.action_low <= decoded).all()
    assert (decoded <= processor.robot_spec.action_high).all()
    np.testing.assert_array_equal(processor.encode_actions(decoded), bins)


def test_standing_still_and_the_gripper_ends_are_exact(processor) -> None:
    action = np.array([[[0, 0, 0], [0, 0, 1]]], dtype=np.float32)
    np.testing.assert_array_equal(processor.action_tokenizer.decode(processor.encode_actions(action)), action)


def test_committed_actions_become_bins_and_too_many_are_refused(processor, observation) -> None:
    assert (processor.encode([observation]).committed == NO_BIN).all()
    committed = np.array([[0.0, 0.0, 1.0], [0.01, 0.0, 0.0]], dtype=np.float32)
    promised = altered(observation, committed=committed)
    with pytest.raises(ObservationError, match=r"2 actions are already committed; .* at most 0"):
        processor.encode([promised])
    data = {**processor.to_json(), "max_committed": 2}
    bins = Processor.from_json(data).encode([promised]).committed[0]
    np.testing.assert_array_equal(bins[:2], processor.encode_actions(committed[None])[0])
    assert (bins[2:] == NO_BIN).all()
    committed[1, 0] = np.nan
    with pytest.raises(ObservationError, match=r"committed actions: .*nan"):
        Processor.from_json(data).encode([altered(observation, committed=committed)])
    with pytest.raises(ValueError, match=r"max_committed is 5; it must lie in \[0, action_horizon 5\)"):
        Processor.from_json({**data, "max_committed": 5})


def test_processors_from_before_committed_actions_still_load(processor) -> None:
    old = {**processor.to_json(), "schema_version": 1}
    del old["max_committed"]
    assert Processor.from_json(old).to_json() == processor.to_json()


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
            r"uint8\[2, 4, 6, 3\].*needed.*\(4, 0\)",
        ),
        (lambda o: {"images": {**o.images, "wrist": o.images["wrist"] / 255}}, r"'wrist': float64"),
        (lambda o: {"state": o.state[:1]}, r"float32\[1\]; float32\[2\] is needed: \['x', 'opening'\]"),
        (lambda o: {"state": o.state.astype(np.float64)}, r"float64\[2\]; float32\[2\] is needed"),
        (
            lambda o: {"state": np.array([0, np.nan], dtype=np.float32)},
            r"channel 'opening' is nan at position \(1,\)",
        ),
        (lambda o: {"instruction": "zygomorphic " * 9}, "limit max_text_tokens is 16"),
    ],
)
def test_a_bad_observation_is_refused_by_name(processor, observation, change, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        processor.encode([observation, altered(observation, **change(observation))])


def test_no_observation_is_refused(processor) -> None:
    with pytest.raises(ObservationError, match="no observations"):
        processor.encode([])


def test_an_instruction_fits_up_to_the_limit_and_not_beyond(processor) -> None:
    word = processor.text_tokenizer.encode("lift")
    assert len(word) == 1
    assert processor.encode_text(["lift " * 15])[0].min() >= processor.vocabulary.bos_id
    with pytest.raises(InstructionTooLong, match=r"has 17 tokens .* limit max_text_tokens is 16"):
        processor.encode_text(["lift " * 16])


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
        processor.decode(bins)


def test_an_empty_batch_decodes_to_an_empty_batch(processor) -> None:
    assert processor.decode(np.zeros((0, 5, 3), dtype=np.int64)).shape == (0, 5, 3)


def test_bad_demonstrations_are_refused(robot_spec, demonstrated_states, demonstrated_actions) -> None:
    states, actions = demonstrated_states, demonstrated_actions
    still = states.copy()
    still[:, 1] = 1.0
    bad = actions.copy()
    bad[7, 2] = np.nan
    with pytest.raises(ValueError, match="'opening' has zero width"):
        fit(robot_spec, still, actions)
    assert fit(robot_spec, still, actions, constant_state_dims=("opening",)).encode_state(still)[0, 1] == 0
    for kind in ACTION_TOKENIZERS:
        with pytest.raises(ValueError, match=r"position \(7,\), dimension 2 is nan"):
            fit(robot_spec, states, bad, action_tokenizer=kind)
        with pytest.raises(ValueError, match=r"no (demonstrations|rows)"):
            fit(robot_spec, states[:0], actions[:0], action_tokenizer=kind)
    with pytest.raises(ValueError, match=r"2 action channels, robot spec 'toy' has 3: \('dx'"):
        fit(robot_spec, states, actions[:, :2])
    with pytest.raises(ValueError, match=r"100% of the demonstrated actions of channel 'roll' lie outside"):
        fit(robot_spec, states, actions + np.float32([0, 0.2, 0]))
    with pytest.raises(InstructionTooLong, match="max_text_tokens is 4"):
        fit(robot_spec, states, actions, max_text_tokens=4)
    with pytest.raises(ValueError, match=r"'quantil' does not exist.*Did you mean 'quantile'"):
        fit(robot_spec, states, actions, action_tokenizer="quantil")


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
    renamed = {**data["state_normalizer"], "names": ["y", "opening"]}
    cases = [
        ({"robot_spec": unequal.to_json()}, "one size is needed"),
        (
            {"robot_spec": dataclasses.replace(robot_spec, action=robot_spec.action[:2]).to_json()},
            "3 dimensions",
        ),
        ({"state_normalizer": renamed}, r"normaliser is for \('y', 'opening'\)"),
        ({"action_horizon": 0}, "action_horizon is 0"),
        ({"schema_version": 3}, "schema version 3"),
        ({"surprise": 1}, r"unknown keys \['surprise'\]"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            Processor.from_json({**data, **change})
    with pytest.raises(ValueError, match="no 'kind'"):
        action_tokenizer_from_json({"num_bins": 3})


@pytest.mark.parametrize(
    ("kind", "bins"),
    [
        ("uniform", [[134, 128, 255], [121, 128, 255], [161, 128, 255]]),
        ("quantile", [[141, 128, 255], [117, 128, 255], [190, 128, 255]]),
    ],
)
def test_golden_bins(robot_spec, demonstrated_states, demonstrated_actions, kind: str, bins) -> None:
    """What a recipe learns depends on these numbers: change them knowingly."""
    processor = fit(robot_spec, demonstrated_states, demonstrated_actions, action_tokenizer=kind)
    assert processor.encode_actions(demonstrated_actions[None, :3]).tolist() == [bins]


def test_importing_the_processor_is_quick_and_needs_no_torch() -> None:
    code = "import sys, vla.processing.processor; print(sorted({'torch', 'onnxruntime'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"
