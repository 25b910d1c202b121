"""Intervals and tests against published values, against an independent package, and by their properties."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs.evaluation.statistics
from envs.evaluation.statistics import (
    mcnemar_p_value,
    paired_difference_interval,
    pairs_needed,
    wilson_interval,
)


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(envs.evaluation.statistics).failed == 0


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe 1998, Stat. Med. 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_the_published_table(successes, trials, low, high):
    interval = wilson_interval(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    ("only_a", "only_b", "pairs", "low", "high"),
    [  # the first is from Fagerland et al. 2014; robostats 0.2.0 gives all of them
        (1, 7, 21, -0.5172, -0.0260),
        (12, 2, 50, 0.0611, 0.3447),
        (0, 0, 20, -0.1611, 0.1611),
        (20, 0, 20, 0.6777, 1.0),
        (5, 5, 150, -0.0474, 0.0474),
    ],
)
def test_tango_agrees_with_references(only_a, only_b, pairs, low, high):
    interval = paired_difference_interval(only_a, only_b, pairs)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"), [(6, 16, 0.05248), (9, 1, 0.02148), (0, 5, 0.0625), (3, 3, 1.0)]
)
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b, p_value):
    assert mcnemar_p_value(only_a, only_b) == pytest.approx(p_value, abs=5e-6)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_stays_in_range(counts):
    successes, trials = counts
    interval = wilson_interval(successes, trials)
    assert 0 <= interval.low <= successes / trials <= interval.high <= 1
    mirrored = wilson_interval(trials - successes, trials)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - interval.high, 1 - interval.low))


@given(st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100)).filter(lambda c: sum(c) > 0))
def test_tango_holds_the_difference_and_is_antisymmetric(counts):
    only_a, only_b, agreeing = counts
    pairs = only_a + only_b + agreeing
    interval = paired_difference_interval(only_a, only_b, pairs)
    assert -1 <= interval.low <= (only_a - only_b) / pairs <= interval.high <= 1
    mirrored = paired_difference_interval(only_b, only_a, pairs)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low))
    assert mcnemar_p_value(only_a, only_b) == mcnemar_p_value(only_b, only_a)


def test_more_disagreement_needs_more_pairs():
    assert pairs_needed(only_a_rate=0.25, only_b_rate=0.15) > pairs_needed(only_a_rate=0.15, only_b_rate=0.05)


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="5 successes of 4 trials"):
        wilson_interval(5, 4)
    with pytest.raises(ValueError, match="0 successes of 0 trials"):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match=r"3 \+ 3 disagreeing of 5 pairs"):
        paired_difference_interval(3, 3, 5)
    with pytest.raises(ValueError, match="confidence is 95"):
        wilson_interval(1, 2, confidence=95.0)
    with pytest.raises(ValueError, match="neither may be negative"):
        mcnemar_p_value(-1, 2)
    with pytest.raises(ValueError, match="need unequal shares"):
        pairs_needed(only_a_rate=0.1, only_b_rate=0.1)
