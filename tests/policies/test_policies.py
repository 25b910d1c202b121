"""What every policy promises, for the torch policy and the bundle alike."""

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_fixtures import tiny_observations, tiny_processor
from policy_models import tiny_model

from policies.attention_map import attention_map
from policies.conformance import compare_policies
from policies.exported import BundlePolicy
from policies.vla_policy import VLAPolicy, threads_beside
from vla.interface import DecodeError, Observation, ObservationError, Policy
from vla.processing.processor import Processor
from vla.training.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["torch", "bundle"])
def policy(request, processor, parallel_export) -> Policy:
    if request.param == "torch":
        return VLAPolicy(model=tiny_model(processor), processor=processor)
    return BundlePolicy.load(parallel_export.directory)


def test_chunks_have_the_promised_shape_and_lie_within_the_limits(policy, observations):
    actions = policy.predict(observations)
    spec = policy.robot_spec
    assert actions.shape == (6, policy.action_horizon, len(spec.action))
    assert (actions >= spec.action_low).all()
    assert (actions <= spec.action_high).all()
    assert policy.frame_offsets == (0,)


def test_an_answer_does_not_depend_on_the_batch_or_on_earlier_calls(policy, observations):
    together = policy.predict(observations)
    alone = np.concatenate([policy.predict([observation]) for observation in reversed(observations)])
    np.testing.assert_array_equal(together, alone[::-1])


def test_one_bundle_answers_several_threads(parallel_export, observations):
    policy = BundlePolicy.load(parallel_export.directory)
    expected = policy.predict(observations)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(policy.predict, [observations] * 20))
    assert all((answer == expected).all() for answer in answers)


def test_it_computes_on_the_threads_that_it_was_given_and_leaves_others_theirs(
    processor, observations, monkeypatch
):
    model, used = tiny_model(processor), []
    sample = model.sample
    monkeypatch.setattr(
        model, "sample", lambda inputs: used.append(torch.get_num_threads()) or sample(inputs)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        expected = VLAPolicy(model=model, processor=processor).predict(observations)
        answer = VLAPolicy(model=model, processor=processor, num_threads=1).predict(observations)
        assert (used, torch.get_num_threads()) == ([3, 1], 3)
        assert [threads_beside(count) for count in (1, 2, 5)] == [2, 1, 1]
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(answer, expected, atol=1e-5)


def without_wrist(observation):
    return dataclasses.replace(observation, images={"exterior": observation.images["exterior"]})


def with_small_frames(observation):
    return dataclasses.replace(
        observation, images={name: frames[:, :16] for name, frames in observation.images.items()}
    )


def with_nan(observation):
    return dataclasses.replace(observation, state=np.array([0.0, np.nan, 0.0], dtype=np.float32))


def with_short_state(observation):
    return dataclasses.replace(observation, state=np.zeros(2, dtype=np.float32))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_wrist, "no camera 'wrist'.*exterior"),
        (with_small_frames, r"32, 32"),
        (with_nan, "'y' is nan"),
        (with_short_state, "opening"),
    ],
)
def test_a_spoilt_observation_is_refused_and_named(policy, observations, spoil, message):
    with pytest.raises(ObservationError, match=message):
        policy.predict([observations[0], spoil(observations[1])])


def test_no_observation_is_an_error(policy):
    with pytest.raises(ObservationError, match="no observations"):
        policy.predict([])


def test_tokens_that_are_no_bins_are_a_decode_error(policy):
    with pytest.raises(DecodeError, match=r"outside \[0, 16\)"):
        policy.processor.decode({"bins": np.full((1, 4, 3), 16)})


def test_a_bundle_needs_no_torch(parallel_export):
    program = f"""
import sys
import numpy as np
from policies.exported import BundlePolicy
from vla.interface import Observation
policy = BundlePolicy.load({str(parallel_export.directory)!r})
frames = np.zeros((1, 32, 32, 3), dtype=np.uint8)
observation = Observation(images={{"exterior": frames, "wrist": frames}}, state=np.zeros(3, np.float32),
    instruction="lift the red cube", committed=np.zeros((0, 3), np.float32), stamp=0.0)
print(policy.predict([observation]).shape)
heavy = {{"torch", "onnx", "onnxscript", "mujoco", "hydra"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 4, 3)"
    assert done.stderr == ""


def test_a_model_for_another_processor_is_refused_with_every_difference(processor):
    other = tiny_processor(frame_offsets=(4, 0))
    with pytest.raises(ValueError, match=r"inputs images: .*\[2, 32, 32, 3\].* against .*\[4, 32, 32, 3\]"):
        VLAPolicy(model=tiny_model(processor), processor=other)
    data = processor.to_json()
    data["codec"]["action_horizon"], data["inputs"]["text"]["max_tokens"] = 5, 30
    with pytest.raises(ValueError, match=r"inputs text_ids: .*\n  targets bins: .*\[4, 3\]"):
        VLAPolicy(model=tiny_model(processor), processor=Processor.from_json(data))


def test_weights_that_are_not_finite_are_refused(processor):
    model = tiny_model(processor)
    with torch.no_grad():
        model.head.bin_logits.residual.bias[3] = torch.nan
    with pytest.raises(ValueError, match=r"'head\.bin_logits\.residual\.bias' holds NaN"):
        VLAPolicy(model=model, processor=processor)


def test_comparing_tells_how_far_two_policies_differ(processor, observations):
    first = VLAPolicy(model=tiny_model(processor), processor=processor)
    other_model = tiny_model(processor)
    with torch.no_grad():
        other_model.head.bin_logits.residual.bias[16:32] = torch.linspace(
            0, 1e3, 16
        )  # yaw always in its last bin
    comparison = compare_policies(first, VLAPolicy(model=other_model, processor=processor), observations)
    assert not comparison.passed
    assert comparison.max_difference[0] == comparison.max_difference[2] == 0.0
    assert comparison.max_action_difference == comparison.max_difference[1] > 0.5
    assert 0.6 < comparison.token_match < 0.75
    assert "DIFFERENT" in comparison.table()


def test_policies_of_different_robots_or_without_observations_are_not_compared(processor, observations):
    policy = VLAPolicy(model=tiny_model(processor), processor=processor)
    with pytest.raises(ValueError, match="at least one"):
        compare_policies(policy, policy, [])
    data = processor.to_json()
    data["robot_spec"]["control_hz"] = 10.0
    slower = VLAPolicy(model=tiny_model(processor), processor=Processor.from_json(data))
    with pytest.raises(ValueError, match="control_hz"):
        compare_policies(policy, slower, observations)


def test_frames_of_a_history_are_asked_for(processor):
    history = tiny_processor(frame_offsets=(4, 0))
    policy = VLAPolicy(model=tiny_model(history), processor=history)
    assert policy.frame_offsets == (4, 0)
    assert policy.predict(tiny_observations(2, num_frames=2)).shape == (2, 4, 3)
    with pytest.raises(ObservationError, match="frames"):
        policy.predict(tiny_observations(2, num_frames=1))


def gymnasium_observation(observation):
    """What an environment would have returned."""
    return {
        "images": {name: frames[-1] for name, frames in observation.images.items()},
        "state": observation.state,
    }


def test_an_observation_of_gymnasium_and_a_sentence_are_enough(policy, observations):
    made = [Observation.of(gymnasium_observation(one), one.instruction) for one in observations]
    np.testing.assert_array_equal(policy.predict(made), policy.predict(observations))


def test_an_observation_without_images_is_refused():
    flat = {"image_wrist": np.zeros((32, 32, 3), np.uint8), "state": np.zeros(3, np.float32)}
    with pytest.raises(ObservationError, match=r"needs 'images'.*has \['image_wrist', 'state'\]"):
        Observation.of(flat, "lift")
    with pytest.raises(ObservationError, match="needs 'images', by camera"):
        Observation.of({"images": np.zeros((32, 32, 3), np.uint8), "state": flat["state"]}, "lift")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_checkpoint_is_loaded_by_its_path(kind, processor, observations, tmp_path):
    model = tiny_model(processor)
    directory = tmp_path / "checkpoints" / "step_00000001"
    save_checkpoint(
        directory,
        model=model,
        processor=processor,
        averaged=dict(model.named_parameters()),
        training={},
        golden=observations,
        state={},
        provenance={},
    )
    expected = VLAPolicy(model=model, processor=processor).predict(observations)
    for path in (directory, tmp_path):
        np.testing.assert_array_equal(VLAPolicy.load(kind(path)).predict(observations), expected)


@pytest.mark.parametrize("head", ["parallel", "autoregressive"])
def test_attention_is_shown_and_changes_nothing(head, observations):
    processor = tiny_processor(frame_offsets=(2, 0))
    policy = VLAPolicy(model=tiny_model(processor, head=head), processor=processor)
    (observation,) = tiny_observations(1, num_frames=2)
    before = policy.predict([observation])
    looks = attention_map(policy, observation)
    for _, weights in looks.weights:
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert {name: shares.shape for name, shares in looks.patches.items()} == dict.fromkeys(
        ("exterior", "wrist"), (2, 2, 2)
    )
    assert 0 < sum(shares.sum() for shares in looks.patches.values()) < 1
    np.testing.assert_array_equal(looks.frames["wrist"], observation.images["wrist"][-1])
    assert looks.picture().shape == (2 * 32 * 4, 2 * 32 * 4, 3)
    np.testing.assert_array_equal(policy.predict([observation]), before)
    assert all(module.observer is None for module in policy.model.modules() if hasattr(module, "observer"))
