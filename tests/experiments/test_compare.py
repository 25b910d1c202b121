"""`compare` takes what evaluate, train, quickstart and sweeps write."""

import shutil
from pathlib import Path

import pytest
from test_sweep_table import write_run

from experiments.compare import comparison_of, evaluation_folders, pairs_of
from vla.registry import SettingError


@pytest.fixture
def place(tmp_path):
    """Directories as the programs write them: success of 4, 3, 2, 1 and 0 of 4 episodes."""
    write_run(tmp_path / "train", overrides=[], successes=3)
    write_run(tmp_path / "quickstart", overrides=[], successes=2)
    write_run(tmp_path / "made", overrides=[], successes=1)
    shutil.move(tmp_path / "made" / "evaluation", tmp_path / "quickstart" / "bundle_evaluation")
    for number in (10, 2):
        write_run(tmp_path / "sweep" / str(number), overrides=[], successes=number == 2)
    write_run(tmp_path / "sweep" / "11", overrides=[], successes=0)
    shutil.rmtree(tmp_path / "sweep" / "11" / "evaluation")  # failed
    write_run(tmp_path / "made_too", overrides=[], successes=4)
    shutil.move(tmp_path / "made_too" / "evaluation", tmp_path / "evaluate")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("evaluate", ["evaluate/original"]),
        ("evaluate/original", ["evaluate/original"]),
        ("train", ["train/evaluation/original"]),
        ("train/evaluation", ["train/evaluation/original"]),
        ("quickstart", ["quickstart/evaluation/original", "quickstart/bundle_evaluation/original"]),
        ("sweep", ["sweep/2/evaluation/original", "sweep/10/evaluation/original"]),
    ],
)
def test_what_a_directory_stands_for(place, given, taken):
    assert evaluation_folders(place / given, "original") == [place / one for one in taken]


def test_what_was_taken_is_printed(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    found = [comparison_of(*pair) for pair in pairs_of(place / "quickstart", None, "original")]
    shown = capsys.readouterr().out
    assert "a: quickstart/evaluation/original, policy quickstart, 4 episodes" in shown
    assert "b: quickstart/bundle_evaluation/original, policy made, 4 episodes" in shown
    assert [one["overall"]["only_a"] for one in found] == [1]


def test_several_are_compared_in_order_or_with_a_single_one(place):
    def names(a, b):
        return [tuple(one.policy_id for one in pair) for pair in pairs_of(place / a, place / b, "original")]

    assert names("evaluate", "train") == [("made_too", "train")]
    assert names("quickstart", "sweep") == [("quickstart", "2"), ("made", "10")]
    assert names("train", "sweep") == [("train", "2"), ("train", "10")]
    write_run(place / "sweep" / "3", overrides=[], successes=2)
    with pytest.raises(SettingError, match="a holds 2 evaluations and b 3, so that it is not clear which"):
        names("quickstart", "sweep")
    with pytest.raises(SettingError, match="b is missing"):
        pairs_of(place / "train", None, "original")


def test_the_folder_of_a_mode_counts_for_both(place):
    for run in ("evaluate", "train/evaluation"):
        text = (place / run / "original" / "plan.json").read_text()
        rows = (place / run / "original" / "episodes.jsonl").read_text()
        folder = place / run / "swapped"
        folder.mkdir()
        (folder / "plan.json").write_text(text.replace('"original"', '"swapped"'))
        (folder / "episodes.jsonl").write_text(rows.replace('"original"', '"swapped"'))
    ((a, b),) = pairs_of(place / "evaluate" / "swapped", place / "train", "original")
    assert {a.plan.instruction_mode, b.plan.instruction_mode} == {"swapped"}


@pytest.mark.parametrize(
    ("given", "mode", "message"),
    [
        ("no", "original", "there is no directory"),
        ("train", "blank", "in the instruction mode 'blank'; give instruction_mode=original"),
        ("sweep/11", "original", "a policy that was not evaluated yet is by"),
    ],
)
def test_a_directory_without_an_evaluation_is_refused(place, given, mode, message):
    with pytest.raises(FileNotFoundError, match=message):
        evaluation_folders(Path(place / given), mode)
