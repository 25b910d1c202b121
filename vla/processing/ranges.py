"""The range of demonstrated values that normalizing is based on, for states and actions alike."""

import numpy as np
from jaxtyping import Float64

QUANTILES = (0.01, 0.99)  # a few wrong readings or wild motions do not widen the range
FAR_NARROWER = 0.04  # times the range of all values: then what moves is rare, and no outlier
NARROWEST = 0.01  # times the declared range: what moves less is noise, and is not blown up


def typical_range(
    values: Float64[np.ndarray, "demonstration channel"],
    *,
    low: Float64[np.ndarray, " channel"],
    high: Float64[np.ndarray, " channel"],
) -> tuple[Float64[np.ndarray, " channel"], Float64[np.ndarray, " channel"]]:
    """Return the range of each channel from the 1 % to the 99 % quantile, but no range of mere noise.

    Quantiles alone take the noise of a gripper that is shut in less than 1 % of the frames for its motion.
    So where they are far narrower than all values within the declared range, the range is that of all these;
    and it is at least a share of the declared range wide, unless all values are the same.

    Args:
        values: at least one row, in the units of the channels.
        low: declared limits; values may lie outside.
        high: declared limits.
    """
    least, greatest = np.quantile(values, QUANTILES, axis=0)
    inside = np.clip(values, low, high)
    lowest, highest = inside.min(axis=0), inside.max(axis=0)
    is_rare = greatest - least < FAR_NARROWER * (highest - lowest)
    least = np.where(is_rare, np.minimum(least, lowest), least)
    greatest = np.where(is_rare, np.maximum(greatest, highest), greatest)
    missing = np.maximum(NARROWEST * (high - low) - (greatest - least), 0.0)
    missing = np.where(values.min(axis=0) < values.max(axis=0), missing, 0.0)
    return least - missing / 2, greatest + missing / 2
