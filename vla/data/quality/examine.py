"""Looks for what is wrong with a recording before a policy is trained on it.

opened = open_examined("outputs/datasets/mine")
findings = opened.findings + examine(opened.dataset, settings=ExamineSettings())
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from vla.data.layout import ACTION_KEY, STATE_KEY, STATS_PATH
from vla.data.quality.channels import check_channels
from vla.data.quality.episodes import check_episodes
from vla.data.quality.findings import Finding, by_severity, found
from vla.data.quality.pictures import Progress, check_pictures, chosen_episodes
from vla.data.quality.recording import Recording
from vla.data.quality.relations import check_relations
from vla.data.quality.times import check_times
from vla.data.reader import Dataset
from vla.files import DamagedFile, read_json
from vla.registry import Choices, Range, check_attributes

STATISTICS_OFF = 0.05  # of a channel's range


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamineSettings:
    """How closely a recording is looked at."""

    action_horizon: Annotated[
        int, Range(1, 1024), "control periods in a chunk of the policy to be trained"
    ] = 8
    max_tokens: Annotated[int, Range(1, 1024), "longest instruction of that policy, in tokens"] = 20
    pictures: Annotated[
        str,
        Choices("none", "some", "all"),
        "whether to look at no picture, at a few of some episodes, or to decode every one",
    ] = "some"
    max_episodes: Annotated[
        int, Range(1, 10**6), "whose pictures are looked at with pictures=some, evenly spread"
    ] = 300

    def __post_init__(self) -> None:
        check_attributes(self, where="examine")


def examine(
    dataset: Dataset, *, settings: ExamineSettings | None = None, progress: Progress = iter
) -> list[Finding]:
    """Return everything that is wrong, or may be, with an opened dataset, errors first.

    Args:
        dataset: what to look at.
        settings: how closely; see `ExamineSettings`.
        progress: wraps the episodes whose pictures are looked at, such as `tqdm.tqdm`.

    Raises:
        DatasetError: a data file was damaged after the dataset was opened.
    """
    settings = settings or ExamineSettings()
    recording = Recording.of(dataset)
    findings = [
        *check_times(recording),
        *check_statistics(recording),
        *check_relations(recording),
        *check_channels(recording),
        *check_episodes(recording, action_horizon=settings.action_horizon, max_tokens=settings.max_tokens),
    ]
    if settings.pictures != "none":
        every = settings.pictures == "all"
        episodes = chosen_episodes(recording, recording.num_episodes if every else settings.max_episodes)
        findings += check_pictures(recording, episodes=episodes, every_frame=every, progress=progress)
    return by_severity(findings)


def check_statistics(recording: Recording) -> list[Finding]:
    """Find a meta/stats.json of other numbers, such as those of the actions before a conversion."""
    path = recording.dataset.root / STATS_PATH
    try:
        stored = read_json(path) if path.is_file() else {}
    except DamagedFile as error:
        return [found("statistics", "error", str(error))]
    findings, missing = [], []
    for kind, key, exact in (
        ("state", STATE_KEY, recording.states),
        ("action", ACTION_KEY, recording.actions),
    ):
        statistics = stored.get(key, {})
        if not all(isinstance(statistics.get(name), list) for name in ("min", "max", "mean")):
            missing.append(key)
            continue
        wrong: list[int] = []
        for name, true in (
            ("min", exact.min(axis=0)),
            ("max", exact.max(axis=0)),
            ("mean", exact.mean(axis=0)),
        ):
            given = np.asarray(statistics[name], dtype=float).ravel()
            if given.shape != true.shape:
                wrong = list(range(len(true)))
                break
            scale = np.maximum(np.ptp(exact, axis=0), 1e-3 * np.abs(true) + 1e-6)
            wrong += np.flatnonzero(~(np.abs(given - true) <= STATISTICS_OFF * scale)).tolist()
        if wrong:
            names = [recording.name(kind, i) for i in sorted(set(wrong))]
            i = wrong[0]
            message = (
                f"meta/stats.json is not that of the data in {len(names)} channels of {key}: it has the mean "
                f"{_at(statistics, 'mean', i)}, but it is {exact.mean(axis=0)[i]:.4g} in {names[0]}"
            )
            findings.append(found("statistics", "error", message, channel=", ".join(names)))
    if missing:
        findings.append(
            found("statistics", "note", f"meta/stats.json has no min, max and mean of {', '.join(missing)}")
        )
    return findings


def _at(statistics: dict[str, list[float]], name: str, i: int) -> str:
    values = np.asarray(statistics[name], dtype=float).ravel()
    return f"{values[i]:.4g}" if i < len(values) else "absent"
