"""Which of a task's instructions are used: those of training, or those that it never sees."""

from collections.abc import Mapping
from typing import Annotated

from vla.registry import Choices, did_you_mean

WORDINGS = ("train", "heldout")
Wording = Annotated[str, Choices(*WORDINGS), 'of instructions; reset(options={"wording": ...}) overrides it']


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
    if wording not in WORDINGS:
        raise ValueError(f"wording {wording!r} is unknown; {did_you_mean(wording, WORDINGS)}")
    return (train if wording == "train" else heldout)[task]
