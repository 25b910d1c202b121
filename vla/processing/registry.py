"""Action tokenizers by name. To add one, fit the protocol in `interface.py` and add a line here."""

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.processing.interface import ActionTokenizer
from vla.processing.quantile import QuantileBinTokenizer
from vla.processing.uniform import UniformBinTokenizer

ACTION_TOKENIZERS: Mapping[str, type[ActionTokenizer]] = {
    "uniform": UniformBinTokenizer,
    "quantile": QuantileBinTokenizer,
}


def fit_action_tokenizer(
    kind: str,
    actions: Float[np.ndarray, "demonstration action"],
    *,
    low: Float[np.ndarray, " action"],
    high: Float[np.ndarray, " action"],
    num_bins: int,
) -> ActionTokenizer:
    """Make the action tokenizer of that name for actions in [low, high], given the demonstrated ones.

    Raises:
        ValueError: no tokenizer has that name (the message lists the names), or the data is unfit.
    """
    _require_known(kind)
    return ACTION_TOKENIZERS[kind].fit(actions, low=low, high=high, num_bins=num_bins)


def action_tokenizer_from_json(data: dict[str, Any]) -> ActionTokenizer:
    """Rebuild any registered action tokenizer from its `to_json`.

    Raises:
        ValueError: `kind` is missing or unknown, or the data lacks a key.
    """
    if "kind" not in data:
        raise ValueError(f"action tokenizer JSON has no 'kind' among its keys {sorted(data)}")
    _require_known(data["kind"])
    return ACTION_TOKENIZERS[data["kind"]].from_json(data)


def _require_known(kind: str) -> None:
    if kind not in ACTION_TOKENIZERS:
        nearest = difflib.get_close_matches(kind, ACTION_TOKENIZERS, n=1, cutoff=0.0)
        raise ValueError(
            f"action tokenizer {kind!r} does not exist; available: {sorted(ACTION_TOKENIZERS)}. "
            f"Did you mean {nearest[0]!r}?"
        )
