"""Checks of JSON data and arrays that several files of this room share."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from vla.interface import Arrays, ArraySpec


def require_keys(data: dict[str, Any], expected: Sequence[str], *, what: str) -> None:
    """Check that JSON data has exactly the expected keys.

    Raises:
        ValueError: it has not; the message names what is missing and what is unknown.
    """
    missing, unknown = sorted(set(expected) - set(data)), sorted(set(data) - set(expected))
    if missing or unknown:
        raise ValueError(f"{what} JSON lacks {missing} and has unknown keys {unknown}")


def require_form(
    arrays: Arrays, specs: Mapping[str, ArraySpec], *, num_samples: int, made_by: object
) -> None:
    """Check that a part makes the arrays that it announces.

    Args:
        arrays: batched, by name.
        specs: what its `specs` returned.
        num_samples: in the batch.
        made_by: the part, named in errors.

    Raises:
        ValueError: one is missing, unknown, or of another type or shape; the message names both.
    """
    part = f"{type(made_by).__module__}.{type(made_by).__qualname__}"
    if set(arrays) != set(specs):
        raise ValueError(
            f"{part} makes {sorted(arrays)}, but its specs() name {sorted(specs)}; correct either"
        )
    for name, spec in specs.items():
        wanted, array = f"{spec.dtype}{[num_samples, *spec.shape]}", arrays[name]
        found = f"{array.dtype}{list(array.shape)}"
        if found != wanted:
            raise ValueError(
                f"{part} makes {name!r} as {found}, but for a batch of {num_samples} its specs() say "
                f"{wanted}; correct either"
            )


def first_true(mask: Bool[np.ndarray, "..."]) -> tuple[int, ...]:
    """Return the index of the first True."""
    return tuple(int(i) for i in np.argwhere(mask)[0])
