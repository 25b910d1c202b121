"""The record of a run is that of the command that made what lies in its directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from program_fixtures import composed
from test_sweep_table import write_run

from experiments.config import cli, run_record
from vla.registry import SettingError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name, overrides=[], successes=2)
    return tmp_path


def compare(folder, *arguments):
    return program("compare", folder, *arguments)


def program(name, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=150,
    )


def record(folder):
    return {path.name: path.read_text() for path in (folder / ".hydra").iterdir()}


@pytest.mark.timeout(600)
def test_a_refused_command_leaves_the_record_of_a_finished_run(runs):
    good = ("a=one/evaluation", "b=two/evaluation", "out_dir=out")
    assert compare(runs, *good).returncode == 0
    before = record(runs / "out")
    assert set(before) == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert before["overrides.yaml"].split() == ["-", good[0], "-", good[1], "-", good[2]]
    assert compare(runs, "a=missing", *good[1:]).returncode == 2
    assert record(runs / "out") == before
    assert compare(runs, "a=two/evaluation", *good[1:]).returncode == 0
    assert "a=two/evaluation" in record(runs / "out")["overrides.yaml"]


def test_a_refused_command_leaves_nothing_in_a_new_folder(runs):
    refused = compare(runs, "a=missing", "b=two/evaluation", "out_dir=new/one")
    assert refused.returncode == 2
    assert not (runs / "new" / "one").exists()
    assert (runs / "new").exists(), "outside of outputs/ an empty directory may be the user's"
    assert compare(runs, "a=missing", "b=two/evaluation").returncode == 2
    assert not (runs / "outputs").exists()


@pytest.mark.timeout(600)
def test_a_job_of_a_sweep_that_fails_is_named_at_once_and_keeps_its_record(runs):
    done = compare(runs, "--multirun", "a=missing,one/evaluation", "b=two/evaluation", "out_dir=sweep")
    assert done.returncode == 2
    assert done.stdout.index("job 0 of the sweep failed: ") < done.stdout.index("#1 :")
    assert "a=missing" in record(runs / "sweep" / "0")["overrides.yaml"]
    assert (runs / "sweep" / "1" / "comparison.json").exists()


def test_default_folders_differ_between_processes_but_not_between_those_of_one_launch(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    run_record.run_name.cache_clear()
    name = run_record.run_name()
    assert name.endswith(f"_{os.getpid()}")
    assert run_record.run_name() == name
    run_record.run_name.cache_clear()
    monkeypatch.setenv("RANK", "1")
    assert run_record.run_name().endswith(f"_{os.getppid()}")
    run_record.run_name.cache_clear()


def test_paths_are_absolute_from_where_a_program_reads_its_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of/somebody")
    run = composed("train", "dataset=run:1", "out_dir='~/out'", "robot_file=null")
    assert (run.dataset, run.out_dir, run.robot_file) == (f"{tmp_path}/run:1", "/home/of/somebody/out", None)
    assert composed("sweep_table", "runs=[a,/b]").runs == [f"{tmp_path}/a", "/b"]
    with pytest.raises(SettingError, match="dataset is empty; give a path"):
        composed("train", "dataset=")


def test_records_of_a_run_keep_no_place_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = composed("train", "dataset=data/mine", "out_dir=/somewhere/else")
    kept = cli.config_with_paths(run, cli.portable_path)
    assert (kept["dataset"], kept["out_dir"]) == ("data/mine", ".../else")
    assert cli.config_with_paths(run, cli.short_path)["out_dir"] == "/somewhere/else"


@pytest.mark.timeout(600)
def test_a_directory_belongs_to_the_program_that_made_it(runs):
    good = ("a=one/evaluation", "b=two/evaluation", "out_dir=out")
    assert compare(runs, *good).returncode == 0
    before = record(runs / "out")
    refused = program("check", runs, "dataset=one", "out_dir=out")
    assert refused.returncode == 2
    assert "holds a run of compare" in refused.stderr
    assert "give another out_dir" in refused.stderr
    assert record(runs / "out") == before
    assert sorted(path.name for path in (runs / "out").iterdir()) == [".hydra", "comparison.json"]


@pytest.mark.timeout(600)
def test_a_program_that_ends_with_findings_replaces_the_record_of_an_earlier_one(runs):
    assert program("check", runs, "dataset=one", "out_dir=out").returncode == 1
    assert program("check", runs, "dataset=two", "out_dir=out").returncode == 1
    assert "dataset=two" in record(runs / "out")["overrides.yaml"]


@pytest.mark.timeout(600)
def test_a_sweep_leaves_no_record_of_its_last_command(runs):
    done = compare(runs, "--multirun", "a=one,two", "b=two/evaluation", "out_dir=sweep")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (runs / "sweep").iterdir()) == ["0", "1"]
