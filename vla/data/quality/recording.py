"""A dataset as its checks look at it: numbers by episode, and which channels belong together.

Delta actions are compared with changes of the state, absolute ones with the state itself, so the checks need
to know which state channel an action channel moves: names tell, or the order if there are as many of both.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64

from vla.data.quality.findings import count_of
from vla.data.reader import Dataset
from vla.spec import Channel

_GRIPPER = re.compile(r"gripper|finger|jaw|hand_open", re.IGNORECASE)
_PREFIX = re.compile(
    r"^(delta|target|goal|command|cmd|d|tcp|hand|ee|eef|position|pos|joint)[_./ ]+", re.IGNORECASE
)


def is_gripper(name: str) -> bool:
    """Whether a channel of this name is a gripper's.

    >>> is_gripper("gripper.pos"), is_gripper("wrist_roll.pos")
    (True, False)
    """
    return _GRIPPER.search(name) is not None


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The numbers of a dataset of N frames in E episodes.

    Attributes:
        dataset: what it was made from.
        absolute: whether the actions are declared as targets rather than changes.
    """

    dataset: Dataset
    absolute: bool

    @classmethod
    def of(cls, dataset: Dataset) -> "Recording":
        """Return what the checks need of a dataset."""
        return cls(dataset=dataset, absolute=dataset.robot_spec.gives_positions)

    @cached_property
    def states(self) -> Float64[np.ndarray, "N state"]:
        """States in the units of the spec."""
        return self.dataset.states.astype(np.float64)

    @cached_property
    def actions(self) -> Float64[np.ndarray, "N action"]:
        """Actions in the units of the spec."""
        return self.dataset.actions.astype(np.float64)

    @property
    def change_per_action(self) -> float:
        """By how much an action of 1 changes a position in a control period; 1 for positions."""
        return 1.0 if self.absolute else self.dataset.robot_spec.change_per_action

    @cached_property
    def episodes(self) -> list[slice]:
        """The frames of every episode."""
        starts, lengths = self.dataset.episode_starts, self.dataset.episode_lengths
        return [slice(int(s), int(s + n)) for s, n in zip(starts, lengths, strict=True)]

    @property
    def num_episodes(self) -> int:
        """E."""
        return self.dataset.num_episodes

    @cached_property
    def follows(self) -> Bool[np.ndarray, " steps"]:
        """Whether frame i + 1 belongs to the episode of frame i."""
        return np.diff(self.dataset.episode_index) == 0

    @cached_property
    def state_span(self) -> Float64[np.ndarray, " state"]:
        """How far each state channel ranges, outliers apart: its 99th percentile less its first."""
        return _span(self.states)

    @cached_property
    def moving_states(self) -> list[int]:
        """State channels whose changes are more than noise: a hundredth of the widest of their unit."""
        spans, channels = self.state_span, self.dataset.robot_spec.state
        widest = {
            unit: max(s for s, c in zip(spans, channels, strict=True) if c.unit == unit)
            for unit in _units(channels)
        }
        return [
            i
            for i, (s, c) in enumerate(zip(spans, channels, strict=True))
            if s > 0.01 * widest[c.unit] and s > 0
        ]

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """(action channel, state channel that it moves), grippers and channels that stand still apart."""
        names = self.dataset.robot_spec
        return [
            (i, j)
            for i, j in paired_channels(names.action_names, names.state_names)
            if not is_gripper(names.action_names[i])
            and j in self.moving_states
            and np.ptp(self.actions[:, i]) > 0
        ]

    def distance_from(self, episode: slice, frame: int) -> Float64[np.ndarray, " time"]:
        """Return how far frames of an episode are from one, in spans of the channel that differs most."""
        if not self.moving_states:
            return np.zeros(episode.stop - episode.start)
        states = self.states[episode][:, self.moving_states]
        return (np.abs(states - states[frame]) / self.state_span[self.moving_states]).max(axis=1)

    def lagged(
        self, lag: int
    ) -> tuple[
        Float64[np.ndarray, "n action"], Float64[np.ndarray, "n state"], Float64[np.ndarray, "n state"]
    ]:
        """Return actions, and the states and their next changes `lag` frames later, within episodes.

        Changes are scaled as actions are: per second where those are velocities.
        """
        index = self.dataset.episode_index
        frames = np.arange(len(index))
        later = frames + lag
        inside = (later >= 0) & (later < len(index) - 1)
        frames, later = frames[inside], later[inside]
        same = (index[frames] == index[later]) & self.follows[later]
        frames, later = frames[same], later[same]
        changes = (self.states[later + 1] - self.states[later]) / self.change_per_action
        return self.actions[frames], self.states[later], changes

    def count(self, episodes: Sequence[int]) -> str:
        """Return how many of the episodes these are, in words."""
        return count_of(episodes, self.num_episodes)

    def name(self, kind: str, i: int) -> str:
        """Return what to call a channel in a finding: ``state/elbow``."""
        names = (
            self.dataset.robot_spec.state_names if kind == "state" else self.dataset.robot_spec.action_names
        )
        return f"{kind}/{names[i]}"


def paired_channels(actions: Sequence[str], states: Sequence[str]) -> list[tuple[int, int]]:
    """Return (action, state) channels that belong together: by name, else by order.

    >>> paired_channels(["delta_x", "delta_yaw", "gripper"], ["tcp_x", "yaw_sin", "gripper_opening"])
    [(0, 0), (2, 2)]
    >>> paired_channels(["a", "b"], ["c", "d"])
    [(0, 0), (1, 1)]
    """
    by_name: list[tuple[int, int]] = []
    stems = [stem(name) for name in states]
    for i, name in enumerate(actions):
        exact = [j for j, other in enumerate(states) if other == name]
        same = exact or [j for j, other in enumerate(stems) if other == stem(name)]
        if not same and is_gripper(name):
            same = [j for j, other in enumerate(states) if is_gripper(other)]
        if len(same) == 1:
            by_name.append((i, same[0]))
    if by_name:
        return by_name
    return [(i, i) for i in range(len(actions))] if len(actions) == len(states) else []


def stem(name: str) -> str:
    """Return what a channel's name says of its place: without what says that it is a target or of a hand.

    >>> stem("delta_x"), stem("tcp_x"), stem("elbow_flex.pos")
    ('x', 'x', 'elbow_flex.pos')
    """
    shorter = _PREFIX.sub("", name)
    while shorter != name:
        name, shorter = shorter, _PREFIX.sub("", shorter)
    return name.lower()


def correlation(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> float:
    """Return Pearson's correlation; 0 if one of them is constant or there are fewer than three values."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def _span(values: Float64[np.ndarray, "N dims"]) -> Float64[np.ndarray, " dims"]:
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    return high - low


def _units(channels: Sequence[Channel]) -> set[str]:
    return {channel.unit for channel in channels}
