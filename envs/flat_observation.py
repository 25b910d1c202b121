"""Observations in one level, with the instruction in them: for learners that take no nested dictionaries."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.base import ManipulationEnv

INSTRUCTION_BYTES = 96  # more than any sentence of the tabletop and of Meta-World has


class FlatObservation(gymnasium.ObservationWrapper[dict[str, Any], np.ndarray, dict[str, Any]]):
    """Turns ``{"images": {"wrist": ...}, "state": ...}`` into one level, as stable-baselines3 wants it.

    Keys: ``image_<camera>`` (uint8[h w 3]), ``state`` (float32[state]) and ``instruction``, the sentence in
    UTF-8 (uint8[instruction_bytes], zeros after its end). As text it stays in ``info["instruction"]``.

    Args:
        env: a `ManipulationEnv`, possibly wrapped; its observations must still be its own.
        instruction_bytes: length of ``instruction``, at least 0; with 0 there is no such key, and a learner
            cannot tell which goal is meant.

    Raises:
        ValueError: the environment is none of these, or `instruction_bytes` is negative.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, instruction_bytes: int = INSTRUCTION_BYTES) -> None:
        super().__init__(env)
        inner = env.unwrapped
        if not isinstance(inner, ManipulationEnv) or env.observation_space != inner.observation_space:
            raise ValueError(
                f"FlatObservation wraps a ManipulationEnv (envs/base.py) whose observations no other wrapper "
                f"has changed; this is {env}"
            )
        if instruction_bytes < 0:
            raise ValueError(f"instruction_bytes is {instruction_bytes}; it must be at least 0")
        self._inner, self._instruction_bytes = inner, instruction_bytes
        nested: Any = inner.observation_space
        parts = {f"image_{name}": space for name, space in nested["images"].items()}
        parts["state"] = nested["state"]
        if instruction_bytes:
            parts["instruction"] = spaces.Box(0, 255, (instruction_bytes,), np.uint8)
        self.observation_space = spaces.Dict(parts)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Return an observation of the environment in one level.

        Raises:
            ValueError: the instruction is longer than `instruction_bytes`.
        """
        flat = {f"image_{name}": frame for name, frame in observation["images"].items()}
        flat["state"] = observation["state"]
        if self._instruction_bytes:
            flat["instruction"] = self._encoded(self._inner.instruction)
        return flat

    def _encoded(self, instruction: str) -> np.ndarray:
        text = instruction.encode()
        if len(text) > self._instruction_bytes:
            raise ValueError(
                f"the instruction {instruction!r} has {len(text)} bytes; give FlatObservation "
                f"instruction_bytes={len(text)} or more (now {self._instruction_bytes})"
            )
        return np.frombuffer(text.ljust(self._instruction_bytes, b"\0"), np.uint8)
