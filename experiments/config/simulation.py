"""Environment configurations by task, and observations rendered in them. Knows no policy and no dataset."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.base import ManipulationEnv
from envs.registry import make_env
from experiments.config.schema import EnvConfig
from vla.interface import Observation

STEPS_BETWEEN_OBSERVATIONS = (
    10  # control periods of the expert, so that golden scenes differ within an episode
)


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


def sample_observations(
    env: EnvConfig, tasks: Sequence[str], *, num_per_task: int, first_seed: int, num_frames: int
) -> list[Observation]:
    """Return observations of every task as a policy would see them, half a second of the expert apart.

    Past frames, for policies that look at `num_frames`, are copies of the present one.
    """
    observations = []
    for config in env_configs(env, tasks).values():
        simulation = make_env(config)
        try:
            simulation.start_episode(seed=first_seed)
            for _ in range(num_per_task):
                observations.append(_observe(simulation, num_frames))
                for _ in range(STEPS_BETWEEN_OBSERVATIONS):
                    simulation.advance(simulation.expert_action())
        finally:
            simulation.close()
    return observations


def _observe(simulation: ManipulationEnv, num_frames: int) -> Observation:
    spec = simulation.robot_spec
    frames = {name: simulation.render_camera(name) for name in spec.camera_names}
    return Observation(
        images={name: np.repeat(frame[None], num_frames, axis=0) for name, frame in frames.items()},
        state=simulation.read_state(),
        instruction=simulation.instruction,
        committed=np.zeros((0, len(spec.action)), np.float32),
        stamp=time.monotonic(),
    )
