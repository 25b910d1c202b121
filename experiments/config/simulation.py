"""Environment configurations by task."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.config.schema import EnvConfig


def env_settings(env: EnvConfig) -> dict[str, Any]:
    """Return what is the same for all tasks: the arguments of `make_env`, the task apart."""
    given = {key: value for key, value in dataclasses.asdict(env).items() if value is not None}
    del given["tasks"]
    return given


def env_configs(env: EnvConfig, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the `make_env` configuration of every task.

    Raises:
        ValueError: there are no tasks, or one appears twice.
    """
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks is {list(tasks)}; name at least one task, and each once")
    settings = env_settings(env)
    return {task: {**settings, "task": task} for task in tasks}
