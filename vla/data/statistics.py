"""Exact statistics in the form of stats.json: min, max, mean, std, count and five quantiles.

LeRobot averages the quantiles of its episodes, which is wrong whenever episodes differ; here a quantile is
always taken over all values. Images are counted in 256 bins a channel, which loses nothing for uint8.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def numeric_statistics(values: Shaped[np.ndarray, "frames dims"]) -> dict[str, Float[np.ndarray, " dims"]]:
    """Return min, max, mean, std (population) and quantiles of each column (linear interpolation)."""
    exact = values.astype(np.float64)
    quantiles = np.quantile(exact, list(QUANTILES.values()), axis=0)
    return {
        "min": exact.min(axis=0),
        "max": exact.max(axis=0),
        "mean": exact.mean(axis=0),
        "std": exact.std(axis=0),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def numeric_stats_json(values: Shaped[np.ndarray, "frames dims"]) -> dict[str, Any]:
    """Return `numeric_statistics` as stats.json has it: lists of [dims] and `count` [1] in frames."""
    statistics = {name: value.tolist() for name, value in numeric_statistics(values).items()}
    return {**statistics, "count": [len(values)]}


def image_histogram(frame: UInt8[np.ndarray, "h w 3"]) -> Int64[np.ndarray, "3 256"]:
    """Count how often each value occurs in each color channel."""
    return np.stack([np.bincount(frame[..., channel].ravel(), minlength=256) for channel in range(3)])


def _histogram_quantile(counts: Int64[np.ndarray, " 256"], share: float) -> float:
    """Return the quantile of the counted values, as `numpy.quantile` does on the values themselves."""
    cumulative = np.cumsum(counts)
    position = share * (int(cumulative[-1]) - 1)
    below, above = np.floor(position), np.ceil(position)
    low, high = np.searchsorted(cumulative, [below, above], side="right")
    return float(low + (high - low) * (position - below))


def image_stats_json(histogram: Int64[np.ndarray, "3 256"], num_frames: int) -> dict[str, Any]:
    """Return the statistics of counted pixels in 0..1, shaped [3][1][1] as LeRobot keeps them."""
    levels = np.arange(256, dtype=np.float64)
    totals = histogram.sum(axis=1)
    mean = histogram @ levels / totals
    variance = (histogram * (levels - mean[:, None]) ** 2).sum(axis=1) / totals
    occurring = [np.flatnonzero(channel) for channel in histogram]
    statistics = {
        "min": [float(values[0]) for values in occurring],
        "max": [float(values[-1]) for values in occurring],
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
    }
    for name, share in QUANTILES.items():
        statistics[name] = [_histogram_quantile(channel, share) for channel in histogram]
    nested = {name: [[[value / 255.0]] for value in values] for name, values in statistics.items()}
    return {**nested, "count": [num_frames]}
