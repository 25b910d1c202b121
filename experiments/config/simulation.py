"""Environment configurations by task."""

from collections.abc import Mapping, Sequence
from typing import Any


def env_configs(env: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the `make_env` configuration of every task, from what is the same for all of them.

    Raises:
        ValueError: there are no tasks, or one appears twice.
    """
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks is {list(tasks)}; name at least one task, and each once")
    return {task: {**env, "task": task} for task in tasks}
