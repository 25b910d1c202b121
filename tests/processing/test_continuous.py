import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla.interface import DecodeError
from vla.processing.codec import ActionCodec
from vla.processing.continuous import ContinuousCodec, quantile_range

LOW = np.array([-0.025, -0.1, 0.0], dtype=np.float32)
HIGH = np.array([0.025, 0.3, 1.0], dtype=np.float32)
HORIZON = 4


def demonstrations(*, num_chunks: int = 500, horizon: int = HORIZON) -> np.ndarray:
    """Return chunks of a slow axis, an axis that never turns and a gripper of 0 or 1."""
    generator = np.random.default_rng(0)
    x = np.clip(generator.normal(0, 0.01, (num_chunks, horizon)), LOW[0], HIGH[0])
    gripper = generator.random((num_chunks, horizon)) < 0.7
    return np.stack([x, np.full_like(x, 0.05), gripper], axis=2).astype(np.float32)


def fitted(*, horizon: int = HORIZON) -> ContinuousCodec:
    chunks = demonstrations(horizon=horizon)
    return ContinuousCodec.fit(chunks.reshape(-1, 3), chunks, low=LOW, high=HIGH)


def all_valid(actions: np.ndarray) -> np.ndarray:
    return np.ones(actions.shape[:2], dtype=np.bool_)


@pytest.mark.parametrize("horizon", [1, 4])
def test_actions_within_the_limits_survive_up_to_rounding(horizon: int) -> None:
    codec, actions = fitted(horizon=horizon), demonstrations(horizon=horizon)

    outputs = codec.encode(actions, all_valid(actions))

    (name, spec), *rest = codec.specs().items()
    assert not rest
    assert (outputs[name].dtype, outputs[name].shape[1:]) == (spec.dtype, spec.shape)
    np.testing.assert_allclose(codec.decode(outputs), actions, atol=1e-8, rtol=0)


def test_the_quantiles_become_plus_and_minus_one() -> None:
    actions = demonstrations()
    unit = fitted().encode(actions, all_valid(actions))["actions"]
    np.testing.assert_allclose(np.quantile(unit[..., 0], [0.01, 0.99]), [-1.0, 1.0], atol=1e-5)
    np.testing.assert_array_equal(np.unique(unit[..., 2]), [-1.0, 1.0])


def test_actions_outside_the_limits_are_encoded_as_the_limits() -> None:
    codec = fitted()
    outside = np.full((1, HORIZON, 3), 1e30, dtype=np.float32)
    limits = np.tile(HIGH, (1, HORIZON, 1))
    np.testing.assert_array_equal(
        codec.encode(outside, all_valid(outside))["actions"],
        codec.encode(limits, all_valid(limits))["actions"],
    )


def test_a_dimension_of_zero_width_is_zero_and_decodes_to_its_one_value() -> None:
    codec, actions = fitted(), demonstrations()
    assert (codec.encode(actions, all_valid(actions))["actions"][..., 1] == 0).all()

    sampled = np.full((2, HORIZON, 3), 0.7, dtype=np.float32)
    assert (codec.decode({"actions": sampled})[..., 1] == np.float32(0.05)).all()


def test_a_gripper_that_hardly_ever_opens_keeps_both_values() -> None:
    opening = np.zeros((1000, 1), dtype=np.float32)
    opening[500] = 1.0
    offset, half_width = quantile_range(opening, low=np.zeros(1), high=np.ones(1))
    assert (offset.tolist(), half_width.tolist()) == ([0.5], [0.5])


@pytest.mark.parametrize("noise", [1e-5, 1e-4, 2e-3])
def test_noise_is_neither_taken_for_motion_nor_blown_up(noise: float) -> None:
    opening = 0.5 + np.random.default_rng(0).normal(0, noise, (1000, 1)).astype(np.float32)
    _, half_width = quantile_range(opening, low=np.zeros(1), high=np.ones(1))
    assert half_width > 0.00499
    opening[:9] = 0.0
    offset, half_width = quantile_range(opening, low=np.zeros(1), high=np.ones(1))
    assert abs(offset - 0.25) < 0.02
    assert abs(half_width - 0.25) < 0.02


@given(
    hnp.arrays(
        np.float32, (2, HORIZON, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_whatever_is_sampled_decodes_into_the_limits(sampled: np.ndarray) -> None:
    actions = fitted().decode({"actions": sampled})
    assert actions.dtype == np.float32
    assert (actions >= LOW).all()
    assert (actions <= HIGH).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_place(bad: float) -> None:
    codec, chunks = fitted(), np.zeros((2, HORIZON, 3), dtype=np.float32)
    chunks[1, 3, 2] = bad
    with pytest.raises(DecodeError, match=r"position \(1, 3\), dimension 2 is -?(nan|inf)"):
        codec.decode({"actions": chunks})
    with pytest.raises(ValueError, match=r"position \(1, 3\), dimension 2 is -?(nan|inf)"):
        codec.encode(chunks, all_valid(chunks))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "'actions' is needed"),
        ({"actions": np.zeros((2, 3, 3), dtype=np.float32)}, r"shape \(2, 3, 3\); \(batch, 4, 3\)"),
        ({"actions": np.zeros((4, 3), dtype=np.float32)}, r"shape \(4, 3\)"),
        ({"actions": np.zeros((2, 4, 3), dtype=np.int64)}, "dtype int64"),
    ],
)
def test_what_is_no_sampled_chunk_does_not_decode(outputs: dict, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        fitted().decode(outputs)


def test_committed_actions_are_normalized_and_the_rest_is_not_read() -> None:
    codec, actions = fitted(), demonstrations()[:3]
    unit = codec.encode(actions, all_valid(actions))["actions"]
    actions[0], actions[1, 2:] = np.nan, np.inf

    inputs = codec.encode_committed(actions, np.array([0, 2, HORIZON]))

    for name, spec in codec.committed_specs().items():
        assert (inputs[name].dtype, inputs[name].shape[1:]) == (spec.dtype, spec.shape)
    assert inputs["num_committed"].tolist() == [0, 2, HORIZON]
    assert (inputs["committed"][0] == 0).all()
    np.testing.assert_array_equal(inputs["committed"][1, :2], unit[1, :2])
    assert (inputs["committed"][1, 2:] == 0).all()
    np.testing.assert_array_equal(inputs["committed"][2], unit[2])


def test_committed_actions_that_are_unfit_are_refused() -> None:
    codec, actions = fitted(), np.zeros((2, HORIZON, 3), dtype=np.float32)
    for num_committed in ([0, HORIZON + 1], [-1, 0]):
        with pytest.raises(ValueError, match=r"num_committed is .* each in \[0, 4\]"):
            codec.encode_committed(actions, np.array(num_committed))
    actions[1, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"position \(1, 1\), dimension 0 is nan"):
        codec.encode_committed(actions, np.array([0, 2]))


def test_wrong_shapes_are_refused() -> None:
    codec = fitted()
    for shape in ((2, HORIZON + 1, 3), (2, HORIZON, 2)):
        with pytest.raises(ValueError, match=r"\(batch, 4, 3\) is needed"):
            codec.encode(np.zeros(shape, dtype=np.float32), np.ones(shape[:2], dtype=np.bool_))


def test_unfit_demonstrations_are_refused() -> None:
    chunks = demonstrations()
    actions = chunks.reshape(-1, 3)
    with pytest.raises(ValueError, match="neither of them empty"):
        ContinuousCodec.fit(actions[:0], chunks, low=LOW, high=HIGH)
    with pytest.raises(ValueError, match="neither of them empty"):
        ContinuousCodec.fit(actions, chunks[:0], low=LOW, high=HIGH)
    with pytest.raises(ValueError, match="action dimension 0 has the range"):
        ContinuousCodec.fit(actions, chunks, low=HIGH, high=LOW)
    actions[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"position \(7,\), dimension 1 is nan"):
        ContinuousCodec.fit(actions, demonstrations(), low=LOW, high=HIGH)


def test_json_gives_back_the_same_codec() -> None:
    codec, actions = fitted(), demonstrations()
    data = json.loads(json.dumps(codec.to_json()))

    again = ContinuousCodec.from_json(data)

    assert data["kind"] == "continuous"
    assert again.to_json() == codec.to_json()
    outputs = codec.encode(actions, all_valid(actions))
    np.testing.assert_array_equal(again.encode(actions, all_valid(actions))["actions"], outputs["actions"])
    np.testing.assert_array_equal(again.decode(outputs), codec.decode(outputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"half_width": [1.0, -1.0, 1.0]}, "action dimension 1 has offset"),
        ({"offset": [1.0, 1.0, float("nan")]}, "action dimension 2 has offset nan"),
        ({"offset": [1.0]}, "each must hold one number per action dimension"),
        ({"action_horizon": 0}, "action_horizon is 0"),
        ({"extra": 0}, "unknown keys"),
    ],
)
def test_json_of_no_codec_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContinuousCodec.from_json({**fitted().to_json(), **change})


def test_it_keeps_the_contract() -> None:
    codec: ActionCodec = fitted()
    assert (codec.action_horizon, codec.action_dim, codec.constants()) == (HORIZON, 3, {})
