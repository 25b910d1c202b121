"""Which of a task's instructions are used: those of training, or those that it never sees. Knows no tasks."""

from collections.abc import Mapping
from typing import Literal, get_args

Wording = Literal["train", "heldout"]


def choose_wordings(
    task: str,
    wording: str,
    *,
    train: Mapping[str, tuple[str, ...]],
    heldout: Mapping[str, tuple[str, ...]],
) -> tuple[str, ...]:
    """Return the instructions of a task, from one of two tables by task.

    Raises:
        ValueError: `wording` is neither ``"train"`` nor ``"heldout"``.
    """
    if wording not in get_args(Wording):
        raise ValueError(f"wording {wording!r} is unknown; choose from {get_args(Wording)}")
    return (train if wording == "train" else heldout)[task]
