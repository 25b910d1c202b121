"""The root of the errors that are for the user, and the hint that they give for a misspelt name."""

import difflib
from collections.abc import Iterable


class VLAError(ValueError):
    """A value, file or setting is wrong; the message says what was wrong, what exists and what to do."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return a hint with the choice closest to a misspelt name, if one is close, and all choices.

    >>> nearest("lfit", ["lift", "push"])
    "did you mean 'lift'? choose from ['lift', 'push']"
    >>> nearest("?", ["lift", "push"])
    "choose from ['lift', 'push']"
    """
    known = list(choices)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}? choose from {known}" if close else f"choose from {known}"
