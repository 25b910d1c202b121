import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla.interface import DecodeError
from vla.processing.quantile import QuantileBinCodec

LOW, HIGH = np.array([-1.0]), np.array([1.0])


def fit(values, *, low: float = -1.0, high: float = 1.0, num_bins: int = 256) -> QuantileBinCodec:
    column = np.asarray(values, dtype=np.float64)[:, None]
    return QuantileBinCodec.fit(
        column, column[:, None], low=np.array([low]), high=np.array([high]), num_bins=num_bins
    )


def round_trip(tokenizer: QuantileBinCodec, values) -> np.ndarray:
    return tokenizer.actions_of(tokenizer.nearest_bins(np.asarray(values, dtype=np.float64)[:, None]))[:, 0]


# Columns with and without ties: a few repeated atoms mixed with arbitrary values, some out of range.
columns = st.lists(
    st.one_of(st.sampled_from([-1.0, 0.0, 0.3, 1.0]), st.floats(-1.5, 1.5, width=32)),
    min_size=1,
    max_size=300,
)


@given(columns, st.integers(2, 300))
def test_bins_are_distinct_in_range_and_encode_back_to_themselves(values, num_bins: int) -> None:
    tokenizer = fit(values, num_bins=num_bins)
    assert tokenizer.centers.shape == (1, num_bins)
    assert (np.diff(tokenizer.centers) > 0).all()
    bins = np.arange(num_bins)[:, None]
    actions = tokenizer.actions_of(bins)
    assert -1.0 <= actions.min() <= actions.max() <= 1.0
    np.testing.assert_array_equal(tokenizer.nearest_bins(actions), bins)


@given(columns, st.integers(3, 300))
def test_limits_and_zero_are_exact_and_demonstrations_stay_in_their_own_range(values, num_bins: int) -> None:
    tokenizer = fit(values, num_bins=num_bins)
    np.testing.assert_array_equal(round_trip(tokenizer, [-1.0, 0.0, 1.0]), [-1.0, 0.0, 1.0])


@given(columns)
def test_a_demonstrated_value_is_reconstructed_within_half_the_gap_it_lies_in(values) -> None:
    tokenizer = fit(values)
    clipped = np.clip(values, -1.0, 1.0)
    centers = tokenizer.centers[0].astype(np.float64)
    right = np.clip(np.searchsorted(centers, clipped), 1, 255)
    half_gap = (centers[right] - centers[right - 1]) / 2
    assert (np.abs(round_trip(tokenizer, values) - clipped) <= half_gap + 1e-7).all()


def test_bins_of_continuous_demonstrations_have_nearly_equal_mass() -> None:
    values = np.clip(np.random.default_rng(0).normal(0, 0.2, 200_000), -0.999, 0.999)
    tokenizer = fit(values)
    counts = np.bincount(tokenizer.nearest_bins(values[:, None])[:, 0], minlength=256)
    inner = np.sort(counts)[8:-8]  # but for the limits, zero, the extremes and their neighbors
    assert inner.min() > 0.6 * values.size / 256, inner.min()
    assert inner.max() < 1.4 * values.size / 256, inner.max()


def test_bins_are_finer_than_uniform_ones_where_demonstrations_are_dense() -> None:
    values = np.random.default_rng(0).normal(0, 0.05, 50_000)
    error = np.abs(round_trip(fit(values), values) - np.clip(values, -1, 1))
    assert error.mean() < 0.5 * (2 / 256) / 4  # half the mean error of a uniform bin


def test_a_gripper_that_is_only_open_or_closed_round_trips_exactly() -> None:
    values = np.random.default_rng(0).integers(0, 2, 1000).astype(np.float64)
    tokenizer = fit(values, low=0.0, high=1.0)
    np.testing.assert_array_equal(round_trip(tokenizer, values), values)
    assert np.abs(round_trip(tokenizer, np.linspace(0, 1, 999)) - np.linspace(0, 1, 999)).max() < 1 / 256


@pytest.mark.parametrize("constant", [-1.0, 0.0, 0.123, 1.0])
def test_a_dimension_that_never_changes_round_trips_and_still_spans_the_range(constant: float) -> None:
    tokenizer = fit(np.full(500, constant))
    np.testing.assert_allclose(round_trip(tokenizer, [constant]), [constant], atol=1e-7)
    assert np.diff(tokenizer.centers[0]).max() < 4 * 2 / 256


def test_saturated_deltas_get_bins_of_their_own_beside_the_dense_middle() -> None:
    values = np.clip(np.random.default_rng(0).normal(0, 1.0, 10_000), -1, 1)  # a third at the limits
    values[:3000] = 0.0
    tokenizer = fit(values)
    atoms = np.array([-1.0, 0.0, 1.0])
    np.testing.assert_array_equal(round_trip(tokenizer, atoms), atoms)
    assert np.abs(round_trip(tokenizer, values) - values).max() < 0.02


def test_noise_far_below_a_bin_does_not_use_up_the_bins() -> None:
    values = np.random.default_rng(0).normal(0.2, 1e-7, 10_000)
    tokenizer = fit(values)
    assert np.diff(tokenizer.centers[0]).min() >= 2 / 256 / 8 * 0.999
    np.testing.assert_allclose(round_trip(tokenizer, values), values, atol=1e-3)


def test_a_tail_is_not_rounded_out_to_a_limit_that_nobody_demonstrated() -> None:
    values = np.random.default_rng(0).normal(0, 0.02, 10_000)
    decoded = round_trip(fit(values), values)
    assert decoded.min() >= values.min() - 1e-7
    assert decoded.max() <= values.max() + 1e-7


@given(hnp.arrays(np.float64, 20, elements=st.floats(-1e30, 1e30)))
def test_encoding_is_monotonic_and_clips(values) -> None:
    tokenizer = fit(np.random.default_rng(0).normal(0, 0.3, 1000))
    bins = tokenizer.nearest_bins(np.sort(values)[:, None])[:, 0]
    assert (np.diff(bins) >= 0).all()
    assert (bins[np.sort(values) >= 1] == 255).all()
    assert (bins[np.sort(values) <= -1] == 0).all()


def test_bad_demonstrations_are_refused() -> None:
    with pytest.raises(ValueError, match="no demonstrations"):
        fit([])
    with pytest.raises(ValueError, match=r"position \(1,\), dimension 0 is nan"):
        fit([0.0, np.nan])
    with pytest.raises(ValueError, match="action dimension 0 has the range"):
        fit([0.0], low=1.0, high=1.0)
    with pytest.raises(ValueError, match="num_bins is 1"):
        fit([0.0], num_bins=1)


def test_an_id_out_of_range_raises() -> None:
    with pytest.raises(DecodeError, match=r"256 at position \(0,\), dimension 0"):
        fit([0.0, 0.5]).actions_of(np.array([[256]]))


@given(columns)
def test_json_gives_back_the_same_centers(values) -> None:
    tokenizer = fit(values)
    again = QuantileBinCodec.from_json(json.loads(json.dumps(tokenizer.to_json())))
    np.testing.assert_array_equal(again.centers, tokenizer.centers)
