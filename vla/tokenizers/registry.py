"""Action tokenizers by name. To add one, fit the protocol in `interface.py` and add a line here."""

import difflib
from collections.abc import Mapping
from typing import Any

from vla.tokenizers.interface import ActionTokenizer
from vla.tokenizers.quantile import QuantileBinTokenizer
from vla.tokenizers.uniform import UniformBinTokenizer

ACTION_TOKENIZERS: Mapping[str, type[ActionTokenizer]] = {
    "uniform": UniformBinTokenizer,
    "quantile": QuantileBinTokenizer,
}


def action_tokenizer_class(kind: str) -> type[ActionTokenizer]:
    """Return the class of that name.

    Raises:
        ValueError: there is none; the message lists the names and the nearest one.
    """
    if kind not in ACTION_TOKENIZERS:
        nearest = difflib.get_close_matches(kind, ACTION_TOKENIZERS, n=1, cutoff=0.0)
        raise ValueError(
            f"action tokenizer {kind!r} does not exist; available: {sorted(ACTION_TOKENIZERS)}. "
            f"Did you mean {nearest[0]!r}?"
        )
    return ACTION_TOKENIZERS[kind]


def action_tokenizer_from_json(data: dict[str, Any]) -> ActionTokenizer:
    """Rebuild any registered action tokenizer from its `to_json`."""
    if "kind" not in data:
        raise ValueError(f"action tokenizer JSON has no 'kind' among its keys {sorted(data)}")
    return action_tokenizer_class(data["kind"]).from_json(data)
