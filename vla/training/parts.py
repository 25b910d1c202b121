"""Which parameters of a model train and how fast, by patterns over their names; and a table of them."""

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from vla.registry import SettingError

FROZEN = 0.0  # as a scale of the learning rate


def learning_rate_scales(
    names: Sequence[str], *, freeze: Sequence[str], scales: Mapping[str, float]
) -> dict[str, float]:
    """Return by what the learning rate of each parameter is multiplied; `FROZEN` for one that does not train.

    >>> names = ["backbone.a", "backbone.b", "head.c"]
    >>> learning_rate_scales(names, freeze=["*.a"], scales={"*": 0.5, "head.*": 2.0})
    {'backbone.a': 0.0, 'backbone.b': 0.5, 'head.c': 2.0}

    Args:
        names: of all parameters.
        freeze: patterns as in a shell (`*` stands for any characters, dots included).
        scales: by such a pattern; of several that match, the last counts.

    Raises:
        SettingError: a pattern matches nothing, or nothing is left to train.
    """
    found = dict.fromkeys(names, 1.0)
    for pattern, scale in scales.items():
        found |= dict.fromkeys(_matching(pattern, names, key="trainer.learning_rate_scale"), scale)
    for pattern in freeze:
        found |= dict.fromkeys(_matching(pattern, names, key="trainer.freeze"), FROZEN)
    if all(scale == FROZEN for scale in found.values()):
        raise SettingError(
            f"trainer.freeze={list(freeze)} freezes all {len(names)} parameters; leave some out"
        )
    return found


def _matching(pattern: str, names: Sequence[str], *, key: str) -> list[str]:
    matching = [name for name in names if fnmatchcase(name, pattern)]
    if not matching:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
        heads = {name: ".".join(name.split(".")[:2]) for name in names}
        groups = sorted({name if name == head else f"{head}.*" for name, head in heads.items()})
        raise SettingError(
            f"{key}: no parameter matches {pattern!r}; the nearest are {', '.join(near)}, and the parts are "
            + ", ".join(groups)
        )
    return matching


def freeze_parameters(model: nn.Module, scales: Mapping[str, float]) -> None:
    """Have the parameters train that the scales let train, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(scales[name] != FROZEN)


class _Row(NamedTuple):
    """Parameters of one part that begin alike and train alike."""

    names: list[str]
    num_weights: int
    num_kept: int


def parts_table(
    model: nn.Module, *, scales: Mapping[str, float], kept: Mapping[str, int] | None
) -> list[str]:
    """Return the lines of a table: parts of a model, how many weights, what they begin with, how they train.

    Args:
        model: whose parameters are listed.
        scales: of the learning rate, by parameter.
        kept: how many weights of each parameter begin as in another model; None leaves that out.
    """
    rows: dict[tuple[str, str, str], _Row] = {}
    for name, parameter in model.named_parameters():
        taken = 0 if kept is None else kept[name]
        begins = "" if kept is None else _begins(taken, parameter.numel())
        key = (".".join(name.split(".")[:2]), begins, _trains(scales[name]))
        row = rows.get(key, _Row([], 0, 0))
        rows[key] = _Row([*row.names, name], row.num_weights + parameter.numel(), row.num_kept + taken)
    cells = [("part", "weights", "" if kept is None else "begins", "trains")]
    for (part, begins, trains), row in rows.items():
        only = row.names[0] if len(row.names) == 1 else f"{part} ({len(row.names)} parameters)"
        share = f"{begins}, {row.num_kept:,} kept" if begins == IN_PART else begins
        cells.append((only, f"{row.num_weights:,}", share, trains))
    wide = [max(len(row[column]) for row in cells) for column in range(4)]
    return [
        f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c:<{wide[2]}}  {d:<{wide[3]}}".rstrip() for a, b, c, d in cells
    ]


IN_PART = "in part"


def _begins(kept: int, count: int) -> str:
    return "kept" if kept == count else "new" if kept == 0 else IN_PART


def _trains(scale: float) -> str:
    if scale == FROZEN:
        return "frozen"
    return "yes" if scale == 1.0 else f"learning rate x {scale:g}"
