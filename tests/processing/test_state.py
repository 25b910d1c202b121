import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla.processing.state import Normalizer

NAMES = ("x", "opening")
LOW, HIGH = np.array([-3.0, 0.0]), np.array([6.0, 1.0])
ROWS = np.random.default_rng(0).uniform([-2.0, 0.0], [5.0, 1.0], size=(5000, 2)).astype(np.float32)


def fitted(batches, **settings) -> Normalizer:
    return Normalizer.fit(batches, names=NAMES, low=LOW, high=HIGH, **settings)


def test_the_1_and_99_percent_quantiles_become_minus_one_and_one() -> None:
    normalizer = fitted([ROWS])
    ends = np.quantile(ROWS.astype(np.float64), [0.01, 0.99], axis=0)
    np.testing.assert_allclose(normalizer.normalize(ends), [[-1, -1], [1, 1]], atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-4, 5e-3])
def test_a_gripper_that_is_hardly_ever_shut_keeps_its_positions_apart(noise: float) -> None:
    rows = ROWS.copy()
    rows[:, 1] = 0.9 + np.random.default_rng(1).normal(0, noise, len(rows))
    rows[: int(0.009 * len(rows)), 1] = 0.05
    normalizer = fitted([rows])
    unit = normalizer.normalize(np.array([[0, 0.9], [0, 0.475], [0, 0.05]], dtype=np.float32))
    np.testing.assert_allclose(unit[:, 1], [1, 0, -1], atol=0.05)
    assert normalizer.normalize(rows)[50:, 1].std() < 3 * noise + 1e-6


def test_noise_of_a_channel_that_never_moves_is_not_blown_up() -> None:
    rows = ROWS.copy()
    rows[:, 1] = 0.9 + np.random.default_rng(1).normal(0, 1e-4, len(rows))
    assert fitted([rows]).normalize(rows)[:, 1].std() < 0.03


def test_a_few_wrong_readings_do_not_widen_the_range() -> None:
    rows = ROWS.copy()
    rows[7] = [1000.0, -500.0]
    plain, wild = fitted([ROWS]), fitted([rows])
    np.testing.assert_allclose(wild.scale, plain.scale, rtol=0.01)


def test_values_all_outside_the_declared_range_still_have_a_width() -> None:
    np.testing.assert_allclose(fitted([ROWS + 100.0]).scale, fitted([ROWS]).scale, rtol=1e-5)


def test_fitting_in_pieces_is_fitting_at_once() -> None:
    pieces = (ROWS[i : i + 700] for i in range(0, len(ROWS), 700))
    assert fitted(pieces).to_json() == fitted([ROWS]).to_json()


@given(hnp.arrays(np.float32, (10, 2), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_values_are_clipped(values) -> None:
    unit = fitted([ROWS]).normalize(values)
    assert unit.dtype == np.float32
    assert (np.abs(unit) <= 1.5).all()


@given(hnp.arrays(np.float32, (10, 2), elements=st.floats(0, 1, width=32)))
def test_what_was_not_clipped_comes_back(values) -> None:
    normalizer = fitted([ROWS])
    np.testing.assert_allclose(normalizer.denormalize(normalizer.normalize(values)), values, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.04, 1000.0])
def test_a_channel_of_zero_width_is_refused_by_name_unless_listed(value: float) -> None:
    rows = ROWS.copy()
    rows[:, 1] = value
    with pytest.raises(ValueError, match=r"channel 'opening' has zero width.*constant_dims"):
        fitted([rows])

    normalizer = fitted([rows], constant_dims=("opening",))
    unit = normalizer.normalize(np.array([[0.0, value], [0.0, 0.7]], dtype=np.float32))
    np.testing.assert_array_equal(unit[:, 1], [0, 0])
    np.testing.assert_allclose(normalizer.denormalize(unit)[:, 1], value, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    rows = ROWS.copy()
    rows[3, 1] = bad
    with pytest.raises(ValueError, match=rf"channel 'opening' is {bad} at position \(3,\)"):
        fitted([rows])
    with pytest.raises(ValueError, match=rf"channel 'opening' is {bad} at position \(3,\)"):
        fitted([ROWS]).normalize(rows)


def test_a_constant_channel_that_reads_nan_is_refused_too() -> None:
    normalizer = fitted([ROWS], constant_dims=("x",))
    with pytest.raises(ValueError, match="channel 'x' is nan"):
        normalizer.normalize(np.array([np.nan, 0.0], dtype=np.float32))


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        fitted([])
    with pytest.raises(ValueError, match="no rows"):
        fitted([ROWS[:0]])
    with pytest.raises(ValueError, match=r"must hold \['x', 'opening'\]"):
        fitted([ROWS[:, :1]])
    with pytest.raises(ValueError, match=r"\['openning'\], which do not exist"):
        fitted([ROWS], constant_dims=("openning",))
    with pytest.raises(ValueError, match=r"scale 0\.0"):
        Normalizer(names=("x",), offset=np.zeros(1), scale=np.zeros(1))
    with pytest.raises(ValueError, match="clip is 0"):
        Normalizer(names=("x",), offset=np.zeros(1), scale=np.ones(1), clip=0.0)
    with pytest.raises(ValueError, match=r"both must be \(2,\)"):
        Normalizer(names=NAMES, offset=np.zeros(1), scale=np.ones(1))


def test_json_gives_back_the_same_outputs() -> None:
    normalizer = fitted([ROWS], constant_dims=("x",))
    again = Normalizer.from_json(json.loads(json.dumps(normalizer.to_json())))
    np.testing.assert_array_equal(again.normalize(ROWS), normalizer.normalize(ROWS))
    assert again.to_json() == normalizer.to_json()
