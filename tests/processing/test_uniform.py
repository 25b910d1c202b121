import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla.interface import DecodeError
from vla.processing.uniform import UniformBinCodec

LOW, HIGH = [-0.025, -0.1, 0.0], [0.025, 0.3, 1.0]


def codec(*, low=LOW, high=HIGH, num_bins: int = 256) -> UniformBinCodec:
    return UniformBinCodec(low=low, high=high, num_bins=num_bins, action_horizon=1)


ranges = st.tuples(st.floats(-10, 10, width=32), st.floats(0.015625, 10, width=32), st.integers(2, 300)).map(
    lambda t: (t[0], float(np.float32(t[0] + t[1])), t[2])
)


@pytest.mark.parametrize("num_bins", [2, 3, 255, 256])
def test_round_trip_error_is_at_most_half_a_bin(num_bins: int) -> None:
    one = codec(low=LOW, high=HIGH, num_bins=num_bins)
    actions = np.random.default_rng(0).uniform(LOW, HIGH, size=(1000, 3))

    error = np.abs(one.actions_of(one.nearest_bins(actions)) - actions)

    assert (error <= one.half_bin + 1e-7).all(), f"worst {error.max(axis=0)}, bound {one.half_bin}"


def test_half_a_bin_is_what_256_evenly_spaced_bins_promise() -> None:
    one = codec(low=LOW, high=HIGH)
    even = np.subtract(HIGH, LOW) / (2 * 255)
    np.testing.assert_allclose(one.half_bin, even, rtol=0.02)


@given(ranges)
def test_limits_and_zero_are_reconstructed_exactly(case) -> None:
    low, high, num_bins = case
    one = codec(low=[low], high=[high], num_bins=num_bins)
    values = [low, high] + ([0.0] if low < 0 < high and num_bins >= 3 else [])
    actions = np.array(values, dtype=np.float32)[:, None]

    np.testing.assert_array_equal(one.actions_of(one.nearest_bins(actions)), actions)


@given(ranges)
def test_every_bin_decodes_into_the_range_and_encodes_back_to_itself(case) -> None:
    low, high, num_bins = case
    one = codec(low=[low], high=[high], num_bins=num_bins)
    bins = np.arange(num_bins)[:, None]

    actions = one.actions_of(bins)

    assert actions.dtype == np.float32
    assert (np.float32(low) <= actions).all()
    assert (actions <= np.float32(high)).all()
    np.testing.assert_array_equal(one.nearest_bins(actions), bins)


@given(hnp.arrays(np.float32, (20, 3), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_encoding_is_monotonic_and_clips_what_is_out_of_range(actions) -> None:
    one = codec(low=LOW, high=HIGH)
    actions = np.sort(actions, axis=0)
    bins = one.nearest_bins(actions)

    assert (np.diff(bins, axis=0) >= 0).all()
    assert (bins[actions >= np.float32(HIGH)] == 255).all()
    assert (bins[actions <= np.float32(LOW)] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_raises_and_is_located(bad: float) -> None:
    actions = np.zeros((2, 4, 3), dtype=np.float32)
    actions[1, 3, 2] = bad
    with pytest.raises(ValueError, match=r"position \(1, 3\), dimension 2 is -?(nan|inf)"):
        codec(low=LOW, high=HIGH).nearest_bins(actions)


@pytest.mark.parametrize("bad", [-1, 256, 10**12])
def test_an_id_out_of_range_raises_and_is_located(bad: int) -> None:
    bins = np.zeros((2, 4, 3), dtype=np.int64)
    bins[1, 0, 2] = bad
    with pytest.raises(DecodeError, match=rf"{bad} at position \(1, 0\), dimension 2 is outside \[0, 256\)"):
        codec(low=LOW, high=HIGH).actions_of(bins)


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        (np.zeros((2, 3), dtype=np.float32), "dtype float32"),
        (np.zeros((2, 3), dtype=np.bool_), "dtype bool"),
        (np.zeros((2, 4), dtype=np.int64), r"shape \(2, 4\)"),
        (np.zeros((), dtype=np.int64), r"shape \(\)"),
    ],
)
def test_what_is_no_array_of_action_ids_does_not_decode(bins, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        codec(low=LOW, high=HIGH).actions_of(bins)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_every_integer_dtype_decodes(dtype) -> None:
    actions = codec(low=LOW, high=HIGH).actions_of(np.full((2, 3), 255, dtype=dtype))
    np.testing.assert_array_equal(actions, np.float32([HIGH, HIGH]))


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_range_without_width_is_refused_by_its_dimension(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="action dimension 1 has the range"):
        codec(low=[0.0, low], high=[1.0, high])


def test_a_range_finer_than_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="increasing in float32"):
        codec(low=[1e6], high=[1e6 + 1])


def test_one_bin_and_a_wrong_number_of_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="num_bins is 1"):
        codec(low=LOW, high=HIGH, num_bins=1)
    with pytest.raises(ValueError, match="must hold 3 dimensions"):
        codec(low=LOW, high=HIGH).nearest_bins(np.zeros((5, 2), dtype=np.float32))


@given(ranges)
def test_json_gives_back_the_same_centers(case) -> None:
    low, high, num_bins = case
    one = codec(low=[low], high=[high], num_bins=num_bins)
    again = UniformBinCodec.from_json(json.loads(json.dumps(one.to_json())))
    np.testing.assert_array_equal(again.centers, one.centers)


def test_golden_ids() -> None:
    """Checkpoints depend on these numbers; a change needs a new processor schema version."""
    one = codec(low=LOW, high=HIGH)
    actions = np.array([[-0.025, -0.1, 0.0], [-0.01, -0.05, 0.25], [0.0, 0.0, 0.45], [0.02, 0.2, 0.999]])
    assert one.nearest_bins(actions).tolist() == [[0, 0, 0], [77, 32, 64], [128, 64, 115], [230, 191, 255]]
