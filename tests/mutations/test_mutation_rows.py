"""The mutations fit the code; applying them is for `run_mutations.py`, outside of CI."""

from pathlib import Path

from mutation_rows import MUTATIONS

ROOT = Path(__file__).parents[2]


def test_every_mutation_changes_a_text_that_stands_in_its_file_once():
    for one in MUTATIONS:
        text = (ROOT / one.file).read_text(encoding="utf-8")
        assert text.count(one.old) == 1, f"{one.file} holds {one.old!r} {text.count(one.old)} times, not once"
        assert one.old != one.new


def test_every_mutation_has_tests_and_none_stands_twice():
    assert len({(one.file, one.old) for one in MUTATIONS}) == len(MUTATIONS) >= 60
    for one in MUTATIONS:
        assert one.tests
        assert all((ROOT / name).exists() for name in one.tests), one.tests
