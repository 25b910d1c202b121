"""Datasets of LeRobot are opened with guesses that say why."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import quality_fixtures as plant  # noqa: E402
from lerobot_like import Variant, write_lerobot  # noqa: E402

from vla.data.quality.findings import CHECKS, by_severity, found  # noqa: E402
from vla.data.quality.opening import open_examined  # noqa: E402
from vla.data.quality.recording import Recording, paired_channels  # noqa: E402


def as_lerobot(root: Path, convention: str) -> Path:
    """Record, and take out what LeRobot does not write."""
    plant.record(root, plant.clean_episodes(convention), convention=convention)
    (root / "meta/vla.json").unlink()
    path = root / "meta/info.json"
    info = plant.json.loads(path.read_text())
    del info["vla"]
    path.write_text(plant.json.dumps(info))
    return root


@pytest.mark.parametrize("convention", ["joint_target", "joint_delta"])
def test_conventions_are_guessed_from_the_numbers(tmp_path, convention):
    opened = open_examined(as_lerobot(tmp_path / "r", convention))
    assert opened.findings == []
    assert opened.dataset is not None
    assert opened.dataset.robot_spec.action_convention == convention
    assert opened.dataset.robot_spec.gripper_sign == "positive_opens"
    assert opened.guesses[0].startswith(f"action_convention={convention}: actions follow")


def test_a_convention_that_is_given_is_no_guess(tmp_path):
    root = as_lerobot(tmp_path / "r", "joint_target")
    opened = open_examined(root, action_convention="joint_delta", gripper_sign="none")
    assert opened.guesses == []
    assert opened.dataset is not None
    assert opened.dataset.robot_spec.action_convention == "joint_delta"


def test_a_dataset_that_states_its_convention_takes_no_other(tmp_path):
    root = plant.record(tmp_path / "r", plant.clean_episodes()[:1])
    with pytest.raises(ValueError, match="states the gripper_sign; leave gripper_sign=none out"):
        open_examined(root, gripper_sign="none")


def test_unknown_names_still_open(tmp_path):
    write_lerobot(tmp_path, Variant(storage="image", lengths=[6, 9]))
    opened = open_examined(tmp_path)
    assert opened.dataset is not None
    assert Recording.of(opened.dataset).pairs == []
    assert "no action channel has the name or the place" in opened.guesses[0]


def test_all_numbers_that_are_not_finite_are_listed(tmp_path):
    root = as_lerobot(tmp_path / "r", "joint_target")
    path = root / plant.DATA
    table = pq.read_table(path)
    rows = np.array(table["action"].to_pylist())
    rows[[3, 60, 61], [0, 2, 2]] = [np.inf, np.nan, np.nan]
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype("f4").ravel()), 5)
    pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", column), path)
    opened = open_examined(root)
    assert opened.dataset is None
    (finding,) = opened.findings
    assert (finding.check, finding.episodes) == ("not_finite", [0, 1])
    assert "action channels 0, 2 (counted from 0) of 2 of 15 episodes" in finding.message


def test_channels_are_paired_by_name_and_else_by_order():
    assert paired_channels(["target_x", "x_rot"], ["tcp_x", "y"]) == [(0, 0)]
    assert paired_channels(["a", "b"], ["c", "d"]) == [(0, 0), (1, 1)]
    assert paired_channels(["a"], ["c", "d"]) == []


def test_findings_are_sorted_and_every_check_has_an_advice():
    assert all(CHECKS.values())
    mixed = [found("jump", "note", ""), found("unit", "error", ""), found("short", "warning", "")]
    assert [one.severity for one in by_severity(mixed)] == ["error", "warning", "note"]
