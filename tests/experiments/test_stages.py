"""A long program continues where it stopped."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.config.overrides import overrides
from experiments.reports.tables import format_table
from experiments.stages import SettingsChanged, Stages


def test_a_finished_stage_is_not_repeated(tmp_path, capsys):
    calls = []
    for _ in range(2):
        Stages(tmp_path / "stages.json", settings={"a": 1}).run("first", lambda: calls.append(1))
    assert calls == [1]
    assert "done before" in capsys.readouterr().out


def test_a_stage_that_failed_is_repeated_and_its_time_counts(tmp_path):
    def fail():
        raise ValueError("no")

    stages = Stages(tmp_path / "stages.json", settings={})
    with pytest.raises(ValueError, match="no"):
        stages.run("first", fail)
    again = Stages(tmp_path / "stages.json", settings={})
    assert again.finished == []
    before = again.seconds["first"]
    again.run("first", lambda: None)
    assert again.finished == ["first"]
    assert again.seconds["first"] >= before


def test_other_settings_are_refused_by_name(tmp_path):
    Stages(tmp_path / "stages.json", settings={"a": {"b": 1, "c": 2}}).run("first", lambda: None)
    with pytest.raises(SettingsChanged, match=r"\['a.b'\].*fresh=true"):
        Stages(tmp_path / "stages.json", settings={"a": {"b": 2, "c": 2}})


def test_tuples_and_lists_are_the_same_setting(tmp_path):
    Stages(tmp_path / "stages.json", settings={"a": (1, 2)}).run("first", lambda: None)
    assert Stages(tmp_path / "stages.json", settings={"a": [1, 2]}).finished == ["first"]


def test_overrides_are_what_hydra_reads():
    assert overrides({"a": ["x", "y"], "b": 1, "c": []}, prefix="p.") == ["p.a=[x,y]", "p.b=1", "p.c=[]"]


@pytest.mark.parametrize(
    "name", ["gr\u00fcn", "a,b", "a(b)", "a=b", "#~&", "{x}", "a b", "it's", "null", "1e5"]
)
def test_an_override_of_any_path_is_read_back(name):
    (argument,) = overrides({"path": Path(name)})
    override = OverridesParser.create().parse_override(argument)
    assert not override.is_sweep_override()
    assert override.value() == name


def test_tables_are_aligned():
    lines = format_table(["task", "n"], [["reach", "9"], ["open_drawer", "10"]]).splitlines()
    assert lines == ["task          n", "reach         9", "open_drawer  10"]


def test_settings_that_nothing_depends_on_yet_bind_nobody(tmp_path):
    Stages(tmp_path / "stages.json", settings={"a": 1}).run("first", lambda: None)
    corrected = Stages(tmp_path / "stages.json", settings={"a": 2}, binds=False)
    assert corrected.finished == []
    assert Stages(tmp_path / "stages.json", settings={"a": 1}, binds=False).finished == ["first"]


def test_the_refusal_of_other_settings_advises_what_the_program_has(tmp_path):
    Stages(tmp_path / "stages.json", settings={"a": 1}).run("one", lambda: None)
    with pytest.raises(SettingsChanged, match=r"settings of \['a'\]; give the same, or another out_dir$"):
        Stages(tmp_path / "stages.json", settings={"a": 2}, advice="or another out_dir")
