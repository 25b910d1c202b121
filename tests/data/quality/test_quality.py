"""Every planted fault is found by its own check; a clean recording has no finding."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import quality_fixtures as plant  # noqa: E402

from vla.data.quality.examine import ExamineSettings, examine  # noqa: E402
from vla.data.quality.findings import CHECKS  # noqa: E402
from vla.data.quality.opening import open_examined  # noqa: E402

TARGET, DELTA = "joint_target", "joint_delta"
IN_NUMBERS = [
    (plant.equal_delta, "deltas_called_absolute", TARGET),
    (plant.positions_for_deltas, "absolutes_called_deltas", DELTA),
    (plant.double_delta, "double_delta", DELTA),
    (plant.clipped_state, "clipped", TARGET),
    (plant.clipped_action, "clipped", DELTA),
    (plant.constant_channel, "constant", TARGET),
    (plant.swapped_channels, "swapped_channels", TARGET),
    (plant.swapped_actions, "swapped_channels", TARGET),
    (plant.swapped_actions, "swapped_channels", DELTA),
    (plant.degrees_in_actions, "unit", TARGET),
    (plant.degrees_in_some, "unit", TARGET),
    (plant.late_actions, "action_late", TARGET),
    (plant.late_actions, "action_late", DELTA),
    (plant.actions_are_states, "action_equals_state", TARGET),
    (plant.actions_are_next_states, "action_equals_next_state", TARGET),
    (plant.jump, "jump", TARGET),
    (plant.outlier, "outlier", TARGET),
    (plant.wrap, "angle_wrap", TARGET),
    (plant.out_of_range, "out_of_range", TARGET),
    (plant.still_gripper, "gripper_still", TARGET),
]
IN_EPISODES = [
    (plant.idle_starts, "idle_start"),
    (plant.idle_ends, "idle_end"),
    (plant.end_in_motion, "ends_in_motion"),
    (plant.short, "short"),
    (plant.duplicate, "duplicate"),
    (plant.failed, "failed"),
    (plant.spelling, "sentence_spelling"),
    (plant.rare_sentence, "sentence_rare"),
    (plant.two_sentences, "sentence_task"),
    (plant.long_sentence, "sentence_long"),
    (plant.unequal_tasks, "task_balance"),
    (plant.black, "picture_black"),
    (plant.overexposed, "picture_overexposed"),
    (plant.frozen, "camera_frozen"),
    (plant.bgr, "color_order"),
    (plant.turned, "picture_turned"),
    (plant.exchanged_cameras, "cameras_exchanged"),
    (plant.one_camera, "camera_same"),
    (plant.letterbox, "letterbox"),
    (plant.late_pictures, "picture_late"),
]
IN_FILES = [
    (plant.gaps, "time_gaps", "image"),
    (plant.doubled, "time_doubled", "image"),
    (plant.missing, "time_missing", "image"),
    (plant.drifting, "time_drift", "image"),
    (plant.other_rate, "control_rate", "image"),
    (plant.stale_statistics, "statistics", "image"),
    (plant.nan, "not_finite", "image"),
    (plant.empty_sentence, "sentence_empty", "image"),
    (plant.damaged_picture, "picture_damaged", "image"),
    (plant.damaged_video, "picture_damaged", "video"),
    (plant.truncated, "unreadable", "image"),
]
OF_PICTURES = list(CHECKS)[list(CHECKS).index("picture_damaged") :]


def findings_of(root, **settings):
    opened = open_examined(root)
    if opened.dataset is None:
        return opened.findings
    return opened.findings + examine(opened.dataset, settings=ExamineSettings(**settings))


@pytest.fixture(scope="module")
def drafts():
    return {convention: plant.clean_episodes(convention) for convention in (TARGET, DELTA)}


@pytest.fixture(scope="module")
def clean(drafts, tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    return {
        "image": plant.record(root / "image", drafts[TARGET]),
        "video": plant.record(root / "video", drafts[TARGET], storage="video"),
        DELTA: plant.record(root / DELTA, drafts[DELTA], convention=DELTA),
    }


@pytest.mark.parametrize("kind", ["image", "video", DELTA])
def test_a_clean_recording_has_no_finding(clean, kind):
    assert findings_of(clean[kind], pictures="all") == []


@pytest.mark.parametrize(
    ("fault", "check", "convention"), IN_NUMBERS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_fault_of_the_numbers_is_found(drafts, clean, tmp_path, fault, check, convention):
    episodes = [draft.copy() for draft in drafts[convention]]
    fault(episodes)
    shutil.copytree(clean["image" if convention == TARGET else DELTA], tmp_path / "r")
    root = plant.replace_numbers(tmp_path / "r", episodes)
    assert check in [one.check for one in findings_of(root, pictures="none")]


@pytest.mark.parametrize(
    ("fault", "check"), IN_EPISODES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_fault_of_episodes_is_found(drafts, tmp_path, fault, check):
    episodes = [draft.copy() for draft in drafts[TARGET]]
    fault(episodes)
    root = plant.record(tmp_path / "r", episodes)
    pictures = "some" if check in OF_PICTURES else "none"
    assert check in [one.check for one in findings_of(root, pictures=pictures)]


@pytest.mark.parametrize(
    ("fault", "check", "storage"), IN_FILES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_fault_of_the_files_is_found(clean, tmp_path, fault, check, storage):
    root = tmp_path / "r"
    shutil.copytree(clean[storage], root)
    fault(root)
    assert check in [one.check for one in findings_of(root, pictures="all")]
