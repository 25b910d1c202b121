"""Checks of JSON data and arrays that several files of this room share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool


def require_keys(data: dict[str, Any], expected: Sequence[str], *, what: str) -> None:
    """Check that JSON data has exactly the expected keys.

    Raises:
        ValueError: it has not; the message names what is missing and what is unknown.
    """
    missing, unknown = sorted(set(expected) - set(data)), sorted(set(data) - set(expected))
    if missing or unknown:
        raise ValueError(f"{what} JSON lacks {missing} and has unknown keys {unknown}")


def first_true(mask: Bool[np.ndarray, "..."]) -> tuple[int, ...]:
    """Return the index of the first True."""
    return tuple(int(i) for i in np.argwhere(mask)[0])
