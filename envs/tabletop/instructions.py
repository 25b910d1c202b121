"""The sentences that name a task, several wordings each, some of which training never sees.

A wording is a template: `{object}` stands for a phrase such as ``red cube``, `{target}` for another object,
`{where}` for ``in the bowl`` or ``on the blue mat``, `{mat}` for ``blue mat``, `{drawer}` for ``red drawer``.
"""

import difflib
import functools
import re

from envs.tabletop.scene import COLORS, SHAPES
from envs.wordings import choose_wordings
from vla.errors import Refusal

TRAIN_WORDINGS: dict[str, tuple[str, ...]] = {
    "reach": (
        "reach the {object}",
        "move to the {object}",
        "go to the {object}",
        "point at the {object}",
        "move the hand over the {object}",
        "hover above the {object}",
    ),
    "push": (
        "push the {object} to the {mat}",
        "slide the {object} onto the {mat}",
        "move the {object} to the {mat} without lifting it",
        "push the {object} onto the {mat}",
        "shove the {object} to the {mat}",
    ),
    "lift": (
        "lift the {object}",
        "pick up the {object}",
        "raise the {object}",
        "grab the {object} and lift it",
        "take the {object} off the table",
        "pick the {object} up",
    ),
    "place": (
        "put the {object} {where}",
        "place the {object} {where}",
        "pick up the {object} and put it {where}",
        "set the {object} down {where}",
        "drop the {object} {where}",
    ),
    "stack": (
        "stack the {object} on the {target}",
        "put the {object} on top of the {target}",
        "place the {object} on the {target}",
        "set the {object} on top of the {target}",
        "pick up the {object} and stack it on the {target}",
    ),
    "open_drawer": (
        "open the {drawer}",
        "pull the {drawer} open",
        "pull out the {drawer}",
        "slide the {drawer} open",
        "open up the {drawer}",
    ),
    "close_drawer": (
        "close the {drawer}",
        "push the {drawer} closed",
        "shut the {drawer}",
        "push the {drawer} in",
        "slide the {drawer} shut",
    ),
}

HELDOUT_WORDINGS: dict[str, tuple[str, ...]] = {
    "reach": ("bring the gripper above the {object}", "approach the {object}"),
    "push": ("please push the {object} over to the {mat}", "get the {object} onto the {mat} by pushing"),
    "lift": ("please pick up the {object}", "hold the {object} up in the air"),
    "place": ("please put the {object} {where}", "move the {object} so that it lies {where}"),
    "stack": ("please stack the {object} on the {target}", "build a tower with the {object} on the {target}"),
    "open_drawer": ("please open the {drawer}", "get the {drawer} to open"),
    "close_drawer": ("please close the {drawer}", "make sure the {drawer} is closed"),
}

_COLOR = f"(?:{'|'.join(COLORS)})"
_OBJECT = f"{_COLOR} (?:{'|'.join(SHAPES)})"
_SLOTS = {  # what may stand in place of a word in braces
    "object": _OBJECT,
    "target": _OBJECT,
    "mat": f"{_COLOR} mat",
    "where": f"in the bowl|on the {_COLOR} mat",
    "drawer": f"{_COLOR} drawer",
}


class UnknownInstruction(Refusal):
    """A sentence names no goal of any task, in no wording."""


def wordings(task: str, wording: str) -> tuple[str, ...]:
    """Return the templates of a task.

    Raises:
        ValueError: `wording` is neither ``"train"`` nor ``"heldout"``.
    """
    return choose_wordings(task, wording, train=TRAIN_WORDINGS, heldout=HELDOUT_WORDINGS)


def phrase(task: str, wording: str, index: int, words: dict[str, str]) -> str:
    """Fill one template; `index` counts through a task's templates and wraps around.

    >>> phrase("lift", "train", 0, {"object": "red cube"})
    'lift the red cube'
    """
    templates = wordings(task, wording)
    return templates[index % len(templates)].format(**words)


def read_instruction(sentence: str) -> tuple[str, dict[str, str]]:
    """Return which task a sentence names, and with which words, in any wording; capitals and marks are free.

    Raises:
        UnknownInstruction: it names none; the message shows the nearest wording, colors and shapes.

    >>> read_instruction("Put the red cube in the bowl!")
    ('place', {'object': 'red cube', 'where': 'in the bowl'})
    """
    plain = " ".join(re.findall(r"\w+", sentence.lower()))
    for template, task in _templates().items():
        match = _pattern(template).fullmatch(plain)
        if match:
            return task, match.groupdict()
    near = difflib.get_close_matches(plain, _templates(), n=3, cutoff=0.0)
    raise UnknownInstruction(
        f"{sentence!r} names no goal on the tabletop; the nearest of the sentences that name one are: "
        f"{', '.join(map(repr, near))}. An object is a color ({', '.join(COLORS)}) and a shape "
        f"({', '.join(SHAPES)}), as in 'red cube'; mats and drawers have colors"
    )


@functools.cache
def _templates() -> dict[str, str]:
    """Return all wordings, each with its task."""
    return {
        template: task
        for table in (TRAIN_WORDINGS, HELDOUT_WORDINGS)
        for task, templates in table.items()
        for template in templates
    }


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", lambda slot: f"(?P<{slot[1]}>{_SLOTS[slot[1]]})", template))
