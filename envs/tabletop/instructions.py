"""The sentences that name a task, several wordings each, some of which training never sees.

A wording is a template: `{object}` stands for a phrase such as ``red cube``, `{target}` for another object,
`{where}` for ``in the bowl`` or ``on the blue mat``, `{mat}` for ``blue mat``, `{drawer}` for ``red drawer``.
"""

from envs.wordings import choose_wordings

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
