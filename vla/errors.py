"""The root of the errors that are for the user, and the hint that they give for a misspelled name."""

import difflib
from collections.abc import Iterable


class VLAError(ValueError):
    """A value, file or setting is wrong; the message says what was wrong, what exists and what to do."""


class Refusal(VLAError):
    """A command asks for what cannot be done with what is there; nothing was begun and nothing changed."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return what exists in place of an unknown name, the nearest first.

    >>> did_you_mean("lfit", ["lift", "push"])
    "did you mean 'lift'? choose from lift, push"
    >>> did_you_mean("zebra", ["lift", "push"])
    'choose from lift, push'
    """
    names = list(names)
    close = difflib.get_close_matches(str(name), names, n=1)
    question = f"did you mean {close[0]!r}? " if close else ""
    return f"{question}choose from {', '.join(names)}" if names else "there are none"
