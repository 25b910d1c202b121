"""Numbers in the place of demonstrations that are not recorded yet, to try a processor and a model on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from envs.registry import probe_env
from experiments.config.schema import TrainRun
from experiments.config.simulation import env_configs
from vla.data.demonstrations import square
from vla.processing.moments import Demonstrations
from vla.spec import Channel

_NUM_CHUNKS = 64


def demonstrations_to_come(run: TrainRun) -> Demonstrations:
    """Return uniform random states and actions of the robot of a run's environment, of which one is made.

    Raises:
        ValueError: the environment has no such task, setting or camera.
        NoOpenGL: nothing can draw here.
    """
    spec = probe_env(env_configs(run.env, run.tasks))
    data: Mapping[str, Any] = run.data
    if data.get("cameras") is not None:
        spec = spec.seeing(data["cameras"])
    rng = np.random.default_rng(0)
    horizon = run.processor.action_horizon
    actions = _drawn(rng, spec.action, _NUM_CHUNKS * horizon)
    return Demonstrations(
        robot_spec=spec,
        states=_drawn(rng, spec.state, len(actions)),
        actions=actions,
        chunks=actions.reshape(_NUM_CHUNKS, horizon, -1),
        instructions=run.tasks,
        resizing=square(data.get("image_size"), mode=data.get("resize", "pad")),
    )


def _drawn(rng: np.random.Generator, channels: tuple[Channel, ...], count: int) -> np.ndarray:
    low, high = (np.array([getattr(one, name) for one in channels]) for name in ("low", "high"))
    return rng.uniform(low, high, size=(count, len(channels))).astype(np.float32)
