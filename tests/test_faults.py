"""The table of faults is whole, and what it names exists: experiments/results/faults.md."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "experiments" / "results" / "faults.md").read_text(encoding="utf-8").splitlines()
ROWS = {
    int(cells[0]): cells[1:]
    for line in LINES
    if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0].isdecimal()
}
NUMBERS = range(1, 62)
# What a test calls to hold a recorded stream against the limits.
AUDITS = ("violations", "audit_recording", "require_stopped_in_time", "require_within", "shortcomings")


def named(number):
    """Path and function of every check of a row."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", ROWS[number][3])


def source_of(path, name):
    """The source of a function at the top of a file, or nothing."""
    text = (ROOT / path).read_text(encoding="utf-8")
    functions = [one for one in ast.parse(text).body if isinstance(one, ast.FunctionDef) and one.name == name]
    return ast.get_source_segment(text, functions[0]) if functions else None


def test_every_fault_has_one_row():
    assert sorted(ROWS) == list(NUMBERS)
    starts = [line.split("|")[1].strip() for line in LINES if line.startswith("| ")]
    assert [int(one) for one in starts if one.isdecimal()] == list(NUMBERS)
    assert all(len(cells) == 4 and all(cells) for cells in ROWS.values())


@pytest.mark.parametrize("number", NUMBERS)
def test_the_checks_of_a_row_exist_and_pytest_runs_some_of_them(number):
    checks = named(number)
    assert len(checks) == ROWS[number][3].count("::"), "a check is not written as `tests/file.py::name`"
    for path, name in checks:
        assert (ROOT / path).is_file(), path
        assert source_of(path, name) is not None, f"{path} has no {name}"
    collected = [path for path, name in checks if name.startswith("test_") and path != FRANKA]
    assert collected, "nothing of this row runs with the tests"


FRANKA = "tests/robots/test_franka_sim.py"  # runs with make franka-test


@pytest.mark.parametrize("number", NUMBERS)
def test_where_a_robot_is_commanded_the_recorded_stream_is_held_against_its_limits(number):
    assert ROWS[number][2] in ("audited", "none")
    if ROWS[number][2] == "audited":
        sources = [source_of(path, name) or "" for path, name in named(number) if path != FRANKA]
        assert any(audit in source for source in sources for audit in AUDITS)
