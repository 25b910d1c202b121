"""A mended copy has none of the faults that can be mended, and the source stays as it is."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import quality_fixtures as plant  # noqa: E402

from vla.data.layout import DatasetError  # noqa: E402
from vla.data.quality.examine import examine  # noqa: E402
from vla.data.quality.findings import Finding, found  # noqa: E402
from vla.data.quality.mend import MendSettings, write_mended  # noqa: E402
from vla.data.reader import Dataset  # noqa: E402


def spoiled() -> list[plant.Draft]:
    """A recording with one of each fault that is mended."""
    drafts = plant.clean_episodes()
    plant.bgr(drafts)  # 4, 11
    plant.outlier(drafts)  # 3
    drafts[5].hold(60, 0)
    drafts[8].hold(0, 80)
    drafts[6].keep(slice(0, 4))
    drafts[9].task = "Lift the  red cube!"
    plant.duplicate(drafts)  # 15
    drafts[10].images["wrist"][:] = 0
    return drafts


def mended(
    root: Path, target: Path, *, restore: Sequence[str] = ()
) -> tuple[Dataset, list[str], list[Finding]]:
    source = Dataset(root)
    settings = MendSettings(restore=list(restore))
    lines = write_mended(source, target, findings=examine(source), settings=settings)
    copy = Dataset(target)
    return copy, lines, examine(copy)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return plant.record(tmp_path_factory.mktemp("spoiled") / "source", spoiled())


def test_a_mended_copy_is_clean_and_the_source_untouched(source, tmp_path):
    before = Dataset(source).content_hash()
    copy, lines, left = mended(source, tmp_path / "copy")
    assert left == []
    assert Dataset(source).content_hash() == before
    assert copy.num_episodes == 16 - 4
    listed = "\n".join(lines)
    for expected in (
        "dropped 1 episodes (outlier): 3",
        "dropped 1 episodes (short): 6",
        "dropped 1 episodes (picture_black): 10",
        "dropped 1 episodes (duplicate): 15",
        "from the beginning",
        "from the end",
        "wrote 'lift the red cube' for 'Lift the  red cube!'",
        "exchanged red and blue of front in episodes 4, 11",
    ):
        assert expected in listed
    assert copy.info["vla"]["extra_info"]["mended"] == lines
    assert copy.episode_extra["seed"] == [i for i in range(15) if i not in (3, 6, 10)]


def test_what_is_kept_is_kept_exactly(source, tmp_path):
    copy, _, _ = mended(source, tmp_path / "copy")
    drafts = plant.clean_episodes()
    for camera in ("front", "wrist"):  # episode 4 is the third that is kept after 0, 1, 2
        start = int(copy.episode_starts[3])
        np.testing.assert_array_equal(
            copy.frames(camera, start, start + plant.LENGTH), drafts[4].images[camera]
        )
    np.testing.assert_array_equal(copy.states[start : start + plant.LENGTH], drafts[4].states.astype("f4"))


@pytest.mark.parametrize(
    ("fault", "restore"),
    [
        pytest.param(plant.swapped_channels, ["channels"], marks=pytest.mark.slow),
        (plant.swapped_actions, ["channels"]),
        (plant.exchanged_cameras, ["cameras"]),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_exchanges_are_undone_on_request(tmp_path, fault, restore):
    drafts = plant.clean_episodes()
    fault(drafts)
    root = plant.record(tmp_path / "source", drafts)
    _, lines, left = mended(root, tmp_path / "kept")
    assert left
    assert not any("exchanged" in line for line in lines)
    copy, lines, left = mended(root, tmp_path / "restored", restore=restore)
    assert left == []
    assert any("exchanged" in line for line in lines)
    clean = np.concatenate([draft.states for draft in plant.clean_episodes()]).astype("f4")
    np.testing.assert_array_equal(copy.states, clean)


def test_a_damaged_picture_that_was_not_looked_at_drops_its_episode(tmp_path):
    root = plant.record(tmp_path / "source", plant.clean_episodes())
    plant.damaged_picture(root)
    source = Dataset(root)
    lines = write_mended(source, tmp_path / "copy", findings=[], settings=MendSettings())
    assert Dataset(tmp_path / "copy").num_episodes == source.num_episodes - 1
    assert lines[-1].startswith("dropped episode 14: the image of frame")


def test_no_directory_in_use_and_no_empty_copy(source, tmp_path):
    dataset = Dataset(source)
    arguments = {"findings": [], "settings": MendSettings()}
    with pytest.raises(DatasetError, match="is not empty"):
        write_mended(dataset, source, **arguments)
    with pytest.raises(DatasetError, match="lies in the source"):
        write_mended(dataset, source / "mended", **arguments)
    everything = [found("outlier", "error", "all of it", episodes=range(dataset.num_episodes))]
    with pytest.raises(DatasetError, match="no episode of"):
        write_mended(dataset, tmp_path / "copy", findings=everything, settings=MendSettings())
