"""Keeps the seeds of demonstrations with a policy, so that it is not evaluated on scenes that it has seen."""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vla.errors import Refusal

KEY = "recorded_seeds"  # in the provenance of a checkpoint and of a bundle


class SeedsWereRecorded(Refusal):
    """An evaluation asks for scenes of which the policy was given demonstrations."""


def recorded_seeds(scenes: Iterable[tuple[str, str, int]]) -> dict[str, dict[str, list[list[int]]]]:
    """Return the seeds by environment family and task, each row of them as its first and its last.

    Args:
        scenes: environment family, task and seed of each episode.
    """
    seeds: defaultdict[str, defaultdict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for family, task, seed in scenes:
        seeds[family][task].add(seed)
    return {
        family: {task: _rows(found) for task, found in by_task.items()} for family, by_task in seeds.items()
    }


def with_seeds_of(provenance: Mapping[str, Any], scenes: Iterable[tuple[str, str, int]]) -> dict[str, Any]:
    """Return as provenance the seeds of scenes, and those of what training began with.

    Args:
        provenance: of the latter; empty for random weights.
        scenes: environment family, task and seed of each episode.
    """
    before = (
        (family, task, seed)
        for family, tasks in provenance.get(KEY, {}).items()
        for task, rows in tasks.items()
        for first, last in rows
        for seed in range(first, last + 1)
    )
    return {KEY: recorded_seeds(itertools.chain(scenes, before))}


def require_unseen_scenes(
    provenance: Mapping[str, Any],
    *,
    family: str,
    tasks: Collection[str],
    first_seed: int,
    num_episodes: int,
    key: str = "evaluation.first_seed",
) -> None:
    """Check that no episode of an evaluation, or of practice, is one that the policy has seen demonstrated.

    Args:
        provenance: of the policy; one of before these seeds were kept, or of an unknown origin, passes.
        family: of the environment.
        tasks: that it plays.
        first_seed: of each task.
        num_episodes: of each task, with seeds that follow.
        key: the setting that gives the first seed, for the message.

    Raises:
        SeedsWereRecorded: there is one; the message names task, seeds and the first seed that would do.
    """
    recorded = provenance.get(KEY, {}).get(family, {})
    last = first_seed + num_episodes - 1
    for task in tasks:
        rows = [row for row in recorded.get(task, ()) if row[0] <= last and row[1] >= first_seed]
        if rows:
            begin, end = max(first_seed, rows[0][0]), min(last, rows[-1][1])
            free = 1 + max(row[1] for other in tasks for row in recorded.get(other, ()))
            raise SeedsWereRecorded(
                f"the policy was given demonstrations of task {task!r} with seeds from {begin} to {end}, and "
                f"{key} asks for seeds {first_seed} to {last}: it would be the success on scenes that it has "
                f"seen. Give {key}={free} or more"
            )


def _rows(seeds: Iterable[int]) -> list[list[int]]:
    """Return the first and the last of each row of successive numbers.

    >>> _rows({7, 1, 2, 3})
    [[1, 3], [7, 7]]
    """
    rows: list[list[int]] = []
    for seed in sorted(seeds):
        if rows and rows[-1][1] == seed - 1:
            rows[-1][1] = seed
        else:
            rows.append([seed, seed])
    return rows
