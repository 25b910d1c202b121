"""Which episodes are held out: a share of each task, and none that is trained on under another name."""

import hashlib

import numpy as np
from jaxtyping import Bool, Float32, Int64


def episode_digests(
    states: Float32[np.ndarray, "N state"],
    actions: Float32[np.ndarray, "N action"],
    *,
    starts: Int64[np.ndarray, " episodes"],
) -> list[str]:
    """Return hashes of episodes, the same for those with the same states and actions.

    Args:
        states: of all frames, episode after episode.
        actions: of all frames.
        starts: first frame of each episode, increasing.

    Returns:
        16 hexadecimal digits for each episode.
    """
    return [
        hashlib.sha256(states[start:stop].tobytes() + b"|" + actions[start:stop].tobytes()).hexdigest()[:16]
        for start, stop in zip(starts, [*starts[1:], len(states)], strict=True)
    ]


def held_out_episodes(
    episodes: Int64[np.ndarray, " episodes"],
    *,
    dataset: Int64[np.ndarray, " episodes"],
    task: Int64[np.ndarray, " episodes"],
    is_named: Bool[np.ndarray, " episodes"],
    content: Int64[np.ndarray, " episodes"],
    share: float,
    seed: int,
) -> Int64[np.ndarray, " held_out"]:
    """Choose from each task of each dataset a share of the episodes, rounded, and all their copies.

    A task keeps at least one episode for training, and has one held out where it has two. Episodes that are
    named by their instruction, and are the only ones with it in their dataset, count as one task.

    Args:
        episodes: numbers to choose from, increasing.
        dataset: of each of them.
        task: of each.
        is_named: for each whether its task was recorded, and is not just its instruction.
        content: of each, equal for copies; an episode counts once, however often it is there.
        share: in [0, 1).
        seed: of the choice.

    Returns:
        Some of `episodes`, in their order.
    """
    rng = np.random.default_rng(seed)
    firsts = np.sort(np.unique(content, return_index=True)[1])  # all, where nothing is there twice
    num_tasks = int(task.max(initial=0)) + 1
    stratum = (dataset * (num_tasks + 1) + task)[firsts]
    numbers, sizes = np.unique(stratum, return_counts=True)
    is_lone = np.isin(stratum, numbers[sizes == 1]) & ~is_named[firsts]
    stratum = np.where(is_lone, dataset[firsts] * (num_tasks + 1) + num_tasks, stratum)
    chosen: set[int] = set()
    for number in np.unique(stratum):
        members = rng.permutation(firsts[stratum == number])
        count = round(share * len(members))
        if share > 0:
            count = min(max(count, 1), len(members) - 1)
        chosen |= set(members[:count].tolist())
    for number in np.unique(task[firsts]) if share > 0 else ():
        members = firsts[task[firsts] == number]
        held_out = [member for member in members.tolist() if member in chosen]
        if len(members) > 1 and not held_out:
            chosen.add(int(rng.choice(members)))
        elif len(members) > 1 and len(held_out) == len(members):
            chosen.remove(held_out[-1])
    return episodes[np.isin(content, content[sorted(chosen)])]
