"""Statistics of success counts: intervals, paired tests, and how many episodes a question needs.

It knows numbers only: no policies, environments or files. Everything here is exact or a score interval, as
normal approximations mislead near 0 % and 100 %, where robot policies live. Standard library alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A closed interval of rates or of differences of rates."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the distance between the ends."""
        return (self.high - self.low) / 2

    def in_percent(self, form: str = ".0f") -> str:
        """Return the ends in percent, in brackets.

        >>> Interval(low=0.786, high=0.957).in_percent()
        '[79, 96]'
        """
        return f"[{100 * self.low:{form}}, {100 * self.high:{form}}]"


def _critical_value(confidence: float) -> float:
    """Return the two-sided standard normal critical value, 1.96 for 0.95."""
    if not 0 < confidence < 1:
        raise ValueError(
            f"confidence is {confidence}; it must lie strictly between 0 and 1, for example 0.95"
        )
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a success rate (Wilson 1927, JASA 22:209).

    Raises:
        ValueError: `trials` is below 1 or `successes` lies outside of [0, trials].

    >>> interval = wilson_interval(45, 50)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.786, 0.957)
    >>> wilson_interval(10, 10).high
    1.0
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(
            f"{successes} successes of {trials} trials; need trials >= 1 and 0 <= successes <= trials"
        )
    z = _critical_value(confidence)
    rate = successes / trials
    center = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else (center - spread) / scale
    high = 1.0 if successes == trials else (center + spread) / scale
    return Interval(low=low, high=high)


def interval_of_mean(rates: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Return the interval of the mean of independent rates, each with an interval of its own.

    It has the confidence of the given intervals, by the method of variance estimates recovery (Zou and
    Donner 2008, Statistics in Medicine 27:1693), which keeps the asymmetry of Wilson's intervals.

    Raises:
        ValueError: there are no rates, or not as many intervals as rates.

    >>> tiers = [wilson_interval(45, 50), wilson_interval(20, 50)]
    >>> interval = interval_of_mean([0.9, 0.4], tiers)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.566, 0.725)
    """
    if not rates or len(rates) != len(intervals):
        raise ValueError(f"{len(rates)} rates and {len(intervals)} intervals; need as many, and at least one")
    mean = sum(rates) / len(rates)
    pairs = list(zip(rates, intervals, strict=True))
    below = math.sqrt(sum((rate - interval.low) ** 2 for rate, interval in pairs)) / len(rates)
    above = math.sqrt(sum((interval.high - rate) ** 2 for rate, interval in pairs)) / len(rates)
    return Interval(low=mean - below, high=mean + above)


def mcnemar_p_value(only_a: int, only_b: int) -> float:
    """Return the two-sided exact McNemar p-value (a binomial test at 1/2 on the pairs that disagree).

    Args:
        only_a: pairs in which A alone succeeded.
        only_b: pairs in which B alone succeeded.

    >>> round(mcnemar_p_value(1, 7), 4)
    0.0703
    >>> mcnemar_p_value(0, 0)
    1.0
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts of disagreeing pairs are {only_a} and {only_b}; neither may be negative")
    disagreeing = only_a + only_b
    tail = sum(math.comb(disagreeing, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**disagreeing)


def _tango_score(only_a: int, only_b: int, pairs: int, difference: float) -> float:
    """Return Tango's score statistic for the hypothesis rate_a - rate_b = `difference`."""
    linear = -only_a - only_b + (2 * pairs - only_a + only_b) * difference
    constant = -only_b * difference * (1 - difference)
    root = math.sqrt(max(linear * linear - 8 * pairs * constant, 0.0))
    rate_only_b = (root - linear) / (4 * pairs)  # its maximum likelihood estimate under the hypothesis
    variance = pairs * (2 * rate_only_b + difference * (1 - difference))
    distance = only_a - only_b - pairs * difference
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def paired_difference_interval(only_a: int, only_b: int, pairs: int, confidence: float = 0.95) -> Interval:
    """Return Tango's score interval of rate_a - rate_b over paired trials (Tango 1998, Stat. Med. 17:891).

    It stays within [-1, 1] and keeps its coverage for few disagreements, where the Wald interval does not.

    Args:
        only_a: pairs in which A alone succeeded.
        only_b: pairs in which B alone succeeded.
        pairs: all pairs, agreeing ones included.
        confidence: coverage, 0.95 by default.

    Raises:
        ValueError: the counts are negative or exceed `pairs`, or there are no pairs.

    >>> interval = paired_difference_interval(1, 7, 21)  # Fagerland et al. 2014, airway example
    >>> round(interval.low, 3), round(interval.high, 3)
    (-0.517, -0.026)
    """
    if pairs < 1 or only_a < 0 or only_b < 0 or only_a + only_b > pairs:
        raise ValueError(
            f"{only_a} + {only_b} disagreeing of {pairs} pairs; need 0 <= disagreeing <= pairs >= 1"
        )
    z = _critical_value(confidence)
    estimate = (only_a - only_b) / pairs
    low = _score_crossing(only_a, only_b, pairs, target=z, inside=estimate, outside=-1.0)
    high = _score_crossing(only_a, only_b, pairs, target=-z, inside=estimate, outside=1.0)
    return Interval(low=low, high=high)


def _score_crossing(
    only_a: int, only_b: int, pairs: int, *, target: float, inside: float, outside: float
) -> float:
    """Bisect for the difference at which the falling score statistic passes `target`."""
    for _ in range(60):
        middle = (inside + outside) / 2
        if abs(_tango_score(only_a, only_b, pairs, middle)) < abs(target):
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2


def pairs_needed(*, only_a_rate: float, only_b_rate: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Return the pairs at which McNemar's test finds a difference (Connor 1987, Biometrics 43:207).

    Args:
        only_a_rate: share of pairs in which A alone is expected to succeed.
        only_b_rate: share of pairs in which B alone is expected to succeed.
        alpha: two-sided size of the test.
        power: chance of finding the difference.

    Raises:
        ValueError: the rates are equal (no number suffices) or no rates at all.

    >>> pairs_needed(only_a_rate=0.20, only_b_rate=0.10)
    234
    """
    disagreement, difference = only_a_rate + only_b_rate, only_a_rate - only_b_rate
    if min(only_a_rate, only_b_rate) < 0 or disagreement > 1 or difference == 0:
        raise ValueError(
            f"only_a_rate={only_a_rate} and only_b_rate={only_b_rate}; need unequal shares >= 0 with sum <= 1"
        )
    z_alpha, z_power = _critical_value(1 - alpha), NormalDist().inv_cdf(power)
    spread = math.sqrt(max(disagreement - difference**2, 0.0))
    return math.ceil(((z_alpha * math.sqrt(disagreement) + z_power * spread) / difference) ** 2)
