"""Builds environments from plain data, so that a config file or a worker process can ask for one by name.

`ENVIRONMENTS` has the families by name; their modules are imported only when used. Each declares its settings
in its constructor, which also takes the task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.opengl import require_importable
from vla.errors import did_you_mean
from vla.registry import Registry
from vla.spec import RobotSpec

if TYPE_CHECKING:  # names alone need no simulator
    import envs.base

FORMER_NAMES = {"twin_share": "same_color_share"}  # of settings, in stored results and datasets


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskGroups:
    """How the results of a family are summed up besides task by task: a word for a group, tasks by group."""

    kind: str
    tasks: Mapping[str, tuple[str, ...]]


class _Environments(Registry["envs.base.ManipulationEnv"]):
    """The registry of families; what MuJoCo would fail on while it is imported is named before."""

    def get(self, name: str) -> type["envs.base.ManipulationEnv"]:
        """Import and return a family.

        Raises:
            NoOpenGL: `MUJOCO_GL` is wrong.
            ValueError, NotInstalled, ImportError: as in `Registry`.
        """
        require_importable()
        return super().get(name)


ENVIRONMENTS: Registry["envs.base.ManipulationEnv"] = _Environments(
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


def probe_env(configs: Mapping[str, Mapping[str, Any]]) -> RobotSpec:
    """Try before any work begins what would fail in a worker later: task names, settings, and a picture.

    Args:
        configs: configurations by task; they differ in nothing else, so that the first is made for all.

    Returns:
        The robot of these environments.

    Raises:
        ValueError: a task or a setting is wrong, or a picture, the state or the expert's action has another
            form than the robot spec says.
        NoOpenGL: nothing can draw here.
        NotInstalled: as in `make_env`.
    """
    for config in configs.values():
        known = ENVIRONMENTS.get(config["family"]).TASKS
        if config["task"] not in known:
            raise ValueError(f"task {config['task']!r} is unknown; {did_you_mean(config['task'], known)}")
    env = make_env(next(iter(configs.values())))
    try:
        env.start_episode(seed=0)
        require_true_spec(env)
        return env.robot_spec
    finally:
        env.close()


def require_true_spec(env: "envs.base.ManipulationEnv") -> None:
    """Check what an environment, which may be a plug-in's, shows, measures and demonstrates.

    Raises:
        ValueError: an array has another type or shape than the robot spec says.
    """
    spec = env.robot_spec
    made = {f"render_camera({camera.name!r})": env.render_camera(camera.name) for camera in spec.cameras}
    wanted = {
        f"render_camera({camera.name!r})": f"uint8{[camera.height, camera.width, 3]}"
        for camera in spec.cameras
    }
    made |= {"read_state()": env.read_state(), "expert_action()": np.asarray(env.expert_action(), np.float32)}
    wanted |= {
        "read_state()": f"float32{[len(spec.state)]}",
        "expert_action()": f"float32{[len(spec.action)]}",
    }
    for call, array in made.items():
        found = f"{array.dtype}{list(array.shape)}"
        if found != wanted[call]:
            cls = f"{type(env).__module__}.{type(env).__qualname__}"
            raise ValueError(
                f"{cls}.{call} returns {found}; its robot spec says {wanted[call]}. Correct either"
            )


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
