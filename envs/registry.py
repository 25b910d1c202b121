"""Builds environments from plain data, so that a config file or a worker process can ask for one by name.

`ENVIRONMENTS` has the families by name; their modules are imported only when used. Each declares its settings
in its constructor, which also takes the task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vla.registry import Registry

if TYPE_CHECKING:  # names alone need no simulator
    import envs.base

FORMER_NAMES = {"twin_share": "same_color_share"}  # of settings, in stored results and datasets


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskGroups:
    """How the results of a family are summed up besides task by task: a word for a group, tasks by group."""

    kind: str
    tasks: Mapping[str, tuple[str, ...]]


ENVIRONMENTS: Registry["envs.base.ManipulationEnv"] = Registry(
    "env",
    {"tabletop": "envs.tabletop.env:TabletopEnv", "metaworld": "envs.metaworld.env:MetaWorldEnv"},
    key="family",
)


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
    """Return task names with the name of a published set of tasks replaced by its tasks; all for none.

    >>> len(expand_tasks("metaworld", ["mt10"])), expand_tasks("tabletop", ["reach"])
    (10, ['reach'])
    """
    if not tasks:
        return list(ENVIRONMENTS.get(family).TASKS)
    sets: Mapping[str, tuple[str, ...]] = {}
    if family == "metaworld":
        from envs.metaworld.tasks import MT10, MT50

        sets = {"mt10": MT10, "mt50": MT50}
    return [task for name in tasks for task in sets.get(name, (name,))]


def with_current_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration of an environment under the current names of its settings.

    >>> with_current_names({"family": "tabletop", "twin_share": 0.2})
    {'family': 'tabletop', 'same_color_share': 0.2}
    """
    return {FORMER_NAMES.get(key, key): value for key, value in config.items()}


def make_env(config: Mapping[str, Any]) -> "envs.base.ManipulationEnv":
    """Build an environment from ``{"family": ..., "task": ..., ...}``; other keys are the family's settings.

    Raises:
        ValueError: the family, the task or a key is unknown, or a value is not allowed.
        NotInstalled: the family needs a package that is not installed; the message says what to run.
    """
    settings = dict(config)
    task = settings.pop("task", None)
    ENVIRONMENTS.check(settings)
    if task is None:
        raise ValueError(f"env lacks 'task'; it is one of {ENVIRONMENTS.get(settings['family']).TASKS}")
    return ENVIRONMENTS.build(settings, task=task)
