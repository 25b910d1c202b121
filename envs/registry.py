"""Builds environments from plain data, so that a config file or a worker process can ask for one by name.

It knows the families and the keys that each accepts; the families' modules are imported only when built.
"""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from envs.base import ManipulationEnv

FAMILIES = ("tabletop",)


def nearest(name: str, choices: tuple[str, ...] | list[str]) -> str:
    """Return a hint naming the choice closest to a misspelt name, or all choices.

    >>> nearest("lfit", ["lift", "push"])
    "did you mean 'lift'?"
    """
    close = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"choose from {list(choices)}"


def make_env(config: Mapping[str, Any]) -> ManipulationEnv:
    """Build an environment from ``{"family": ..., "task": ..., ...}``; other keys are its constructor's.

    Raises:
        ValueError: the family, the task or a key is unknown; the message names the nearest one.
    """
    arguments = dict(config)
    family = arguments.pop("family", None)
    if family == "tabletop":
        from envs.tabletop.env import TabletopEnv

        env_class = TabletopEnv
    else:
        raise ValueError(f"env family {family!r} is unknown; {nearest(str(family), FAMILIES)}")
    accepted = list(inspect.signature(env_class.__init__).parameters)[1:]
    for key in arguments:
        if key not in accepted:
            raise ValueError(f"env config key {key!r} is unknown for {family!r}; {nearest(key, accepted)}")
    if "task" not in arguments:
        raise ValueError(f"env config of family {family!r} lacks 'task'; it is one of {env_class.TASKS}")
    if "cameras" in arguments:
        arguments["cameras"] = tuple(arguments["cameras"])
    return env_class(**arguments)
