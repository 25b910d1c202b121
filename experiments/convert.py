"""Converts recordings in HDF5 into a dataset that every other program reads.

    python -m experiments.convert source=a.hdf5 mapping=robomimic instruction="lift it" dataset=outputs/lift

A mapping, a YAML file such as those in `conf/convert/`, says which key is which camera, state and action. All
files are checked before anything is written. The same command continues an interrupted conversion.
"""

import dataclasses
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig
from tqdm import tqdm

from experiments.config import cli, schema
from experiments.config.found import shipped_mappings
from experiments.reports.tables import format_table
from vla.data.hdf5 import Hdf5Episode, Hdf5Mapping, find_files, read_episodes, read_pictures, robot_spec_of
from vla.data.layout import DatasetError
from vla.data.writer import DatasetWriter
from vla.errors import did_you_mean
from vla.registry import SettingError, check_settings

schema.register("convert")

SHIPPED = Path(str(resources.files("conf"))) / "convert"


def read_mapping(name: str, changes: dict[str, Any]) -> Hdf5Mapping:
    """Return a mapping: one of `conf/convert/` by name, or that in a YAML file; `changes` replace its keys.

    Raises:
        DatasetError: it is no YAML table.
        SettingError: there is no such mapping, a key is unknown or missing, or a value is not allowed.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else SHIPPED / f"{name}.yaml"
    if not path.is_file():
        names = shipped_mappings()
        raise SettingError(f"mapping is {name!r}; {did_you_mean(name, names)}, or give a .yaml file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DatasetError(f"{path} is no YAML file: {error}") from error
    if not isinstance(values, dict):
        raise DatasetError(f"{path} holds no table of keys; copy one of {SHIPPED}")
    return Hdf5Mapping(**check_settings(Hdf5Mapping, values | changes, where=path.name))


def convert(*, source: Path, dataset: Path, mapping: Hdf5Mapping, storage: str) -> None:
    """Write what `source` holds and `dataset` lacks, and print a table.

    Raises:
        DatasetError: a file does not fit the mapping, or `dataset` has another one; nothing was written.
        DirectoryInUse: another program writes into `dataset`.
    """
    files = find_files(source)
    episodes = [
        episode
        for path in tqdm(files, desc="checking", unit="file")
        for episode in read_episodes(path, mapping)
    ]
    writer = DatasetWriter(
        dataset,
        robot_spec=robot_spec_of(mapping, episodes),
        storage=storage,
        extra_info={"mapping": dataclasses.asdict(mapping)},
    )
    with writer, tqdm(total=len(episodes), desc="converting", unit="episode") as bar:
        done = {extra["source"] for extra in writer.episode_extras}
        for episode in episodes:
            name = _name(episode, source)
            if name not in done:
                _write(writer, episode, mapping, name)
            bar.update()
    _print_table(episodes, dataset, writer.num_episodes, writer.num_frames)


def _name(episode: Hdf5Episode, source: Path) -> str:
    """Return where an episode comes from, without paths of this machine."""
    file = episode.path.relative_to(source) if source.is_dir() else Path(episode.path.name)
    return f"{file.as_posix()}:{episode.group}"


def _write(writer: DatasetWriter, episode: Hdf5Episode, mapping: Hdf5Mapping, name: str) -> None:
    pictures = read_pictures(episode, mapping)
    for images, state, action in zip(pictures, episode.states, episode.actions, strict=True):
        writer.add_frame(images, state, action)
    writer.save_episode(episode.instruction, {"source": name})


def _print_table(episodes: list[Hdf5Episode], dataset: Path, num_episodes: int, num_frames: int) -> None:
    counts, frames = Counter[str](), Counter[str]()
    for episode in episodes:
        counts[episode.instruction] += 1
        frames[episode.instruction] += len(episode.states)
    rows = [[text, str(counts[text]), str(frames[text])] for text in counts]
    print(format_table(["instruction", "episodes", "frames"], rows))
    print(f"{num_episodes} episodes, {num_frames} frames in {dataset}")


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="convert")
def main(config: DictConfig) -> None:
    """Convert."""
    run = schema.typed(config, schema.ConvertRun)
    given = {"instruction": run.instruction, "control_hz": run.control_hz}
    mapping = read_mapping(run.mapping, {key: value for key, value in given.items() if value is not None})
    convert(
        source=Path(run.source),
        dataset=Path(run.dataset),
        mapping=mapping,
        storage=run.storage,
    )


if __name__ == "__main__":
    cli.run(main)
