"""Builds environments from plain data, so that a config file or a worker process can ask for one by name.

It knows the families and the keys that each accepts; the families' modules are imported only when built.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envs.base import ManipulationEnv
from vla.errors import nearest

if TYPE_CHECKING:
    from envs.metaworld.env import MetaWorldEnv

FAMILIES = ("tabletop", "metaworld")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskGroups:
    """How the results of a family are summed up besides task by task: a word for a group, tasks by group."""

    kind: str
    tasks: Mapping[str, tuple[str, ...]]


class FamilyNotInstalled(RuntimeError):
    """A family of environments needs a package that is not installed; the message holds the line to run."""


def task_groups(family: str) -> TaskGroups | None:
    """Return the published groups of a family's tasks, or nothing for a family without.

    >>> {name: len(tasks) for name, tasks in task_groups("metaworld").tasks.items()}
    {'easy': 28, 'medium': 11, 'hard': 6, 'very hard': 5}
    """
    if family == "metaworld":
        from envs.metaworld.tasks import TIERS

        return TaskGroups(kind="tier", tasks=TIERS)
    return None


def expand_tasks(family: str, tasks: Sequence[str]) -> list[str]:
    """Return task names with the name of a published set of tasks replaced by its tasks.

    >>> len(expand_tasks("metaworld", ["mt10"])), expand_tasks("tabletop", ["reach"])
    (10, ['reach'])
    """
    sets: Mapping[str, tuple[str, ...]] = {}
    if family == "metaworld":
        from envs.metaworld.tasks import MT10, MT50

        sets = {"mt10": MT10, "mt50": MT50}
    return [task for name in tasks for task in sets.get(name, (name,))]


def make_env(config: Mapping[str, Any]) -> ManipulationEnv:
    """Build an environment from ``{"family": ..., "task": ..., ...}``; other keys are its constructor's.

    Raises:
        ValueError: the family, the task or a key is unknown; the message names the nearest one.
        FamilyNotInstalled: the family needs a package that is not installed; the message tells how to.
    """
    arguments = dict(config)
    family = arguments.pop("family", None)
    if family == "tabletop":
        from envs.tabletop.env import TabletopEnv

        env_class = TabletopEnv
    elif family == "metaworld":
        env_class = _metaworld()
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


def _metaworld() -> type["MetaWorldEnv"]:
    try:
        from envs.metaworld.env import MetaWorldEnv
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "metaworld":
            raise
        raise FamilyNotInstalled(
            "env family 'metaworld' needs Meta-World; run .venv/bin/pip install -e '.[metaworld]'"
        ) from error
    return MetaWorldEnv
