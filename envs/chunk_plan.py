"""What a rollout executes of the chunks that a policy predicts. Knows neither environments nor policies."""

import numpy as np
from jaxtyping import Float32

from vla.interface import temporal_ensemble

Actions = Float32[np.ndarray, "time action"]


class ChunkPlan:
    """The actions of one episode: `count` of each chunk, or of the mean of all chunks that cover a period.

    `ensemble_decay` None executes the newest chunk; a number weighs as `temporal_ensemble` does.
    """

    def __init__(self, *, count: int, ensemble_decay: float | None) -> None:
        self._count, self._decay = count, ensemble_decay
        self._actions: list[Actions] = []
        self._chunks: list[tuple[int, Actions]] = []  # with the period at which each starts, oldest first

    @property
    def num_sent(self) -> int:
        """Control periods that actions were given for."""
        return self._count * len(self._actions)

    def add(self, chunk: Actions) -> Float32[np.ndarray, "count action"]:
        """Return the next `count` actions, given a chunk that starts now and is at least as long."""
        if self._decay is None:
            actions = chunk[: self._count].copy()
        else:
            now = self.num_sent
            kept = [(start, old) for start, old in self._chunks if start + len(old) > now]
            self._chunks = [*kept, (now, chunk)]
            actions = np.stack([self._mean(period, self._decay) for period in range(now, now + self._count)])
        self._actions.append(actions)
        return actions

    def sent(self, action_dim: int) -> Actions:
        """Return all actions so far."""
        return np.concatenate(self._actions) if self._actions else np.zeros((0, action_dim), np.float32)

    def _mean(self, period: int, decay: float) -> Float32[np.ndarray, " action"]:
        said = [chunk[period - start] for start, chunk in self._chunks if period < start + len(chunk)]
        return temporal_ensemble(said, decay=decay)
