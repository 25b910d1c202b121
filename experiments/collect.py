"""Records demonstrations of the scripted experts into one dataset.

    python -m experiments.collect tasks=[reach,lift] collect.episodes_per_task=50 dataset=outputs/mine

The same command continues an interrupted recording, and adds to a finished one when more episodes are
requested.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from tqdm import tqdm

from envs.collection import DemonstrationEpisode, collect_episodes
from envs.registry import ENVIRONMENTS, probe_env, with_current_names
from experiments.config import cli, schema
from experiments.config.simulation import env_configs
from experiments.reports.tables import format_table
from vla.data.layout import INFO_PATH
from vla.data.origin import read_extra_info
from vla.data.writer import DatasetWriter
from vla.geometry import GeometrySpec, ViewGeometry
from vla.registry import SettingError

schema.register("collect")


class Collection:
    """One recording: which seeds are done, which failed, and what remains."""

    def __init__(
        self, *, root: Path, env: Mapping[str, Any], tasks: Sequence[str], collect: schema.CollectSettings
    ) -> None:
        if collect.recording_same_color_share is not None:
            env = {**env, "same_color_share": collect.recording_same_color_share}
        self.settings, self.configs = collect, env_configs(env, tasks)
        spec = probe_env(self.configs)
        info = {"env": _as_begun(root, dict(env)), **self._expert()}
        self.writer = DatasetWriter(
            root,
            robot_spec=spec,
            storage=collect.storage,
            geometry=geometry_of(env["family"]) if collect.geometry else None,
            extra_info=info,
            pixel_format=collect.pixel_format,
        )
        self.kept, self.frames, self.failed = Counter[str](), Counter[str](), Counter[str]()
        self.next_seed = dict.fromkeys(tasks, collect.first_seed)
        for extra in self.writer.episode_extras:
            task, seed = str(extra["task_name"]), int(extra["seed"])
            self.kept[task] += 1
            if task in self.next_seed:
                self.next_seed[task] = max(self.next_seed[task], seed + 1)

    def _expert(self) -> dict[str, float]:
        """Return how the expert is recorded; what is 0 by default and was added later is left out then."""
        extra = {"extra_steps": self.settings.extra_steps} if self.settings.extra_steps else {}
        return extra | {
            "noise_std": self.settings.disturbance.noise_std,
            "noise_probability": self.settings.disturbance.probability,
            "bump_probability": self.settings.disturbance.bump_probability,
        }

    def missing(self) -> dict[str, int]:
        """Return how many episodes each task still lacks."""
        wanted = self.settings.episodes_per_task
        return {task: wanted - self.kept[task] for task in self.configs if self.kept[task] < wanted}

    def record(self) -> None:
        """Record until every task has its episodes; a seed on which the expert fails is replaced by the next.

        Raises:
            ValueError: the expert fails on most seeds of a task.
        """
        already = sum(min(self.kept[task], self.settings.episodes_per_task) for task in self.configs)
        total = self.settings.episodes_per_task * len(self.configs)
        with tqdm(total=total, initial=already, desc="recording", unit="episode") as bar:
            while missing := self.missing():
                seeds = self._next_seeds(missing)
                episodes = collect_episodes(
                    self.configs,
                    seeds,
                    disturbance=self.settings.disturbance,
                    num_workers=self.settings.num_workers,
                    extra_steps=self.settings.extra_steps,
                    geometry=self.settings.geometry,
                    on_failure=self._count_failure,
                )
                for episode in episodes:
                    self._save(episode)
                    bar.update()
                for task, done in seeds.items():
                    self.next_seed[task] = done.stop
                    self._require_a_working_expert(task)

    def _next_seeds(self, missing: Mapping[str, int]) -> dict[str, range]:
        """Return the seeds of the next round by task.

        Tasks that an interruption left behind the others catch up first, so that a recording that was
        interrupted has the same episodes in the same order as one that was not.
        """
        begins = {task: self.next_seed[task] for task in missing}
        first = min(begins.values())
        ahead = min((seed for seed in begins.values() if seed > first), default=None)
        ends = {task: first + n if ahead is None else min(first + n, ahead) for task, n in missing.items()}
        return {task: range(first, ends[task]) for task, seed in begins.items() if seed == first}

    def _save(self, episode: DemonstrationEpisode) -> None:
        save_demonstration(self.writer, episode, {})
        self.kept[episode.task] += 1
        self.frames[episode.task] += len(episode.states)

    def _count_failure(self, task: str, _seed: int) -> None:
        self.failed[task] += 1

    def _require_a_working_expert(self, task: str) -> None:
        if self.failed[task] > 20 and self.failed[task] > 2 * self.kept[task]:
            raise ValueError(
                f"the expert of {task!r} failed on {self.failed[task]} seeds and succeeded on "
                f"{self.kept[task]}; lower collect.disturbance.noise_std or "
                f"collect.disturbance.bump_probability, now {self.settings.disturbance}"
            )

    def table(self) -> str:
        """Return what was recorded, by task."""
        rows = [
            [task, str(self.kept[task]), str(self.failed[task]), str(self.frames[task])]
            for task in self.configs
        ]
        return format_table(["task", "episodes", "failed now", "frames now"], rows)


def save_demonstration(
    writer: DatasetWriter, episode: DemonstrationEpisode, extra: Mapping[str, int]
) -> None:
    """Append an episode to a dataset, with what else is to be known about it."""
    for i, (state, action) in enumerate(zip(episode.states, episode.actions, strict=True)):
        views = {
            name: ViewGeometry(depth=seen.depth[i], points=seen.points[i])
            for name, seen in episode.geometry.items()
        }
        images = {name: frames[i] for name, frames in episode.images.items()}
        writer.add_frame(images, state, action, views=views or None)
    known = {"seed": episode.seed, "task_name": episode.task, "success": True, "noisy": episode.noisy}
    writer.save_episode(episode.instruction, {**known, **extra})


def geometry_of(family: str) -> GeometrySpec:
    """Return what a family of environments measures in its pictures.

    Raises:
        SettingError: it measures nothing.
    """
    points = ENVIRONMENTS.get(family).POINTS
    if not points:
        raise SettingError(
            f"collect.geometry=true, but env={family} measures no geometry: it needs POINTS and a method "
            "render_with_geometry (envs/base.py). Implement them, or give collect.geometry=false"
        )
    return GeometrySpec(points=points)


def _as_begun(root: Path, env: dict[str, Any]) -> dict[str, Any]:
    """Return `env` under the names that the dataset in `root` began with, if it has the same settings."""
    if not (root / INFO_PATH).exists():
        return env
    stored = read_extra_info(root).get("env", {})
    return stored if with_current_names(stored) == env else env


def collect_dataset(
    *, root: Path, env: Mapping[str, Any], tasks: Sequence[str], collect: schema.CollectSettings
) -> None:
    """Record what is missing in the dataset at `root` and print a table.

    Raises:
        DirectoryInUse: another recording writes there.
        DatasetError: the directory holds something else, or a dataset with other settings.
    """
    started = time.monotonic()
    collection = Collection(root=root, env=env, tasks=tasks, collect=collect)
    with collection.writer:
        collection.record()
    writer, seconds = collection.writer, time.monotonic() - started
    print(collection.table())
    print(f"{writer.num_episodes} episodes, {writer.num_frames} frames in {root} ({seconds:.0f} s)")


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="collect")
def main(config: DictConfig) -> None:
    """Record."""
    run = schema.typed(config, schema.CollectRun)
    collect_dataset(root=Path(run.dataset), env=run.env, tasks=run.tasks, collect=run.collect)


if __name__ == "__main__":
    cli.run(main)
