"""The order in which windows are seen: a permutation an epoch, exactly resumable, shared out over ranks.

An endless stream of window indices is a pure function of the seed; rank r of w takes every w-th of it. So the
position in it is all the state there is, and any number of ranks sees every window once an epoch.
"""

from typing import Any

import numpy as np
from jaxtyping import Int64


class EpochSampler:
    """Draws batches of window indices without end; an epoch holds `num_windows` of them.

    With `groups` (a group number for each window, such as its task) every group gets an equal share of an
    epoch: windows of small groups come several times, those of large ones in turns.

    Raises:
        ValueError: there are no windows, or sizes and ranks are impossible.
    """

    def __init__(
        self,
        *,
        num_windows: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        groups: Int64[np.ndarray, " windows"] | None = None,
    ) -> None:
        if num_windows < 1 or batch_size < 1:
            raise ValueError(
                f"cannot draw batches of {batch_size} from {num_windows} windows; both must be positive. Was "
                "everything held out for validation?"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in [0, world_size={world_size})")
        if groups is not None and len(groups) != num_windows:
            raise ValueError(f"groups has {len(groups)} entries for {num_windows} windows")
        self.num_windows, self.batch_size, self.seed = num_windows, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._members = [np.arange(num_windows)]
        if groups is not None:
            self._members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        self.epoch, self.position = 0, 0
        self._order = self._order_of(0)

    def next_batch(self) -> Int64[np.ndarray, " batch"]:
        """Return the next indices of this rank; a batch may reach into the next epoch."""
        wanted = self.batch_size * self.world_size
        parts: list[np.ndarray] = []
        while wanted:
            part = self._order[self.position : self.position + wanted]
            parts.append(part)
            wanted -= len(part)
            self.position += len(part)
            if self.position == self.num_windows:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._order_of(self.epoch)
        return np.concatenate(parts)[self.rank :: self.world_size]

    def state(self) -> dict[str, Any]:
        """Return where the sampler stands, as JSON-ready numbers, the same on all ranks."""
        return {
            "seed": self.seed,
            "num_windows": self.num_windows,
            "epoch": self.epoch,
            "position": self.position,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken.

        Raises:
            ValueError: it belongs to another seed or to other data.
        """
        for key, mine in (("seed", self.seed), ("num_windows", self.num_windows)):
            if state[key] != mine:
                raise ValueError(
                    f"the sampler state has {key} {state[key]}, this run {mine}; a run resumes with the "
                    "seed and the data that it began with"
                )
        if not 0 <= state["position"] < self.num_windows:
            raise ValueError(f"the sampler state has position {state['position']} of {self.num_windows}")
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._order_of(self.epoch)

    def _order_of(self, epoch: int) -> Int64[np.ndarray, " windows"]:
        """Return the order of an epoch: a function of seed and epoch alone."""
        rng = np.random.default_rng((self.seed, epoch))
        if len(self._members) == 1:
            return rng.permutation(self.num_windows)
        share, rest = divmod(self.num_windows, len(self._members))
        drawn = []
        for number, members in enumerate(self._members):
            count = share + ((number + epoch) % len(self._members) < rest)
            repeats = -(-count // len(members))
            drawn.append(np.concatenate([rng.permutation(members) for _ in range(repeats)])[:count])
        return rng.permutation(np.concatenate(drawn))
