from collections.abc import Callable
from pathlib import Path

import pytest
from data_fixtures import Episode, make_episodes, make_spec, write_episodes

from vla.data.writer import DatasetWriter
from vla.spec import RobotSpec


@pytest.fixture
def spec() -> RobotSpec:
    return make_spec()


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., tuple[Path, list[Episode]]]:
    """Record episodes of given lengths into a new directory; returns it and the episodes."""

    def run(
        lengths: list[int],
        *,
        spec: RobotSpec | None = None,
        storage: str = "image",
        name: str = "lift",
        root: Path | None = None,
        first: int = 0,
    ) -> tuple[Path, list[Episode]]:
        spec = spec or make_spec()
        root = root or tmp_path / name
        episodes = make_episodes(spec, lengths, first=first, name=name)
        with DatasetWriter(root, robot_spec=spec, storage=storage) as writer:
            write_episodes(writer, episodes, first=first)
        return root, episodes

    return run
