"""Programs end with short messages and the right exit codes."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException

from experiments.config import cli, schema
from vla.errors import Refusal
from vla.files import DirectoryInUse
from vla.registry import SettingError

SET_BY_RUN = ("HYDRA_FULL_ERROR", "VLA_SET_HYDRA_FULL_ERROR")


@pytest.fixture(autouse=True)
def undo(monkeypatch):
    """Give signals and environment back as they were."""
    for name in SET_BY_RUN:
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in SET_BY_RUN:
        os.environ.pop(name, None)


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("wrong"), cli.EXIT_FAILED),
        (Refusal("not with these cameras"), cli.EXIT_CONFIG),
        (FileNotFoundError("gone"), cli.EXIT_FAILED),
        (DirectoryInUse("held"), cli.EXIT_FAILED),
        (KeyboardInterrupt(), cli.EXIT_INTERRUPTED),
        (cli.Terminated(), cli.EXIT_TERMINATED),
        (cli.HungUp(), cli.EXIT_HUNG_UP),
    ],
)
def test_exit_codes(error, code, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(raising(error))
    assert ended.value.code == code
    captured = capsys.readouterr().err
    assert str(error) in captured
    assert "Traceback" not in captured


@pytest.mark.parametrize("by_user", [None, "1"])
def test_programs_that_are_started_see_the_environment_of_the_user(by_user, monkeypatch):
    if by_user is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", by_user)
    before = dict(os.environ)
    seen = []
    with pytest.raises(SystemExit):
        cli.run(lambda: seen.append((os.environ["HYDRA_FULL_ERROR"], cli.child_environment())))
    assert seen == [("1", before)]


def test_success_ends_with_code_0():
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: None)
    assert ended.value.code == 0


def test_a_bug_keeps_its_traceback():
    for error in (RuntimeError("ours to fix"), KeyError("k"), AssertionError()):
        with pytest.raises(type(error)):
            cli.run(raising(error))


def test_full_errors_on_request(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="wrong"):
        cli.run(raising(ValueError("wrong")))


SLEEPER = """
import pathlib, sys, time
from experiments.config import cli
def main():
    try:
        pathlib.Path(sys.argv[1], 'started').touch()
        while not pathlib.Path(sys.argv[1], 'enough').exists():
            time.sleep(0.05)
    except KeyboardInterrupt:
        pathlib.Path(sys.argv[1], 'saved').touch()
        raise
cli.run(main)
"""


def start_sleeper(folder, *prefix):
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", SLEEPER, str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where the tests ignore it
    )
    deadline = time.monotonic() + 150
    while not (folder / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, cli.EXIT_TERMINATED), (signal.SIGHUP, cli.EXIT_HUNG_UP)]
)
def test_signals_that_ask_for_an_end_are_handled_like_ctrl_c(tmp_path, number, code):
    process = start_sleeper(tmp_path)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == code
    assert (tmp_path / "saved").exists()
    assert "continues" in message


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 64. GiB for an array with shape (8, 1024)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
)
def test_too_little_memory_says_what_to_lower(error, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(raising(error))
    assert ended.value.code == cli.EXIT_FAILED
    assert "there is not enough memory: lower a size, such as trainer.batch_size" in capsys.readouterr().err


def test_under_nohup_work_outlives_the_terminal(tmp_path):
    process = start_sleeper(tmp_path, "nohup")
    process.send_signal(signal.SIGHUP)
    (tmp_path / "enough").touch()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not (tmp_path / "saved").exists()


TALKER = """
import sys
from pathlib import Path
from experiments.config import cli
def main():
    for _ in range(2000):
        print('gr\u00fcn ' * 20)
        print('\u4e2d', file=sys.stderr)
    Path(sys.argv[1], 'done').write_text('done')
cli.run(main)
"""


@pytest.mark.parametrize(
    "how", ["| head -1", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "| PYTHONIOENCODING=ascii cat"]
)
def test_a_line_that_cannot_be_shown_never_ends_the_work(tmp_path, how):
    command = f'set -o pipefail; "$0" -c "$1" "$2" {how}'
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"} if "ascii" in how else None
    result = subprocess.run(
        ["bash", "-c", command, sys.executable, TALKER, str(tmp_path)],
        capture_output=True,
        check=False,
        env=environment,
        timeout=150,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "done").read_text() == "done"


def test_an_error_that_the_program_itself_defines_needs_no_traceback(capsys):
    own = type("WorkerFailed", (RuntimeError,), {"__module__": "__main__"})
    with pytest.raises(SystemExit):
        cli.run(raising(own("the worker failed")))
    assert "Traceback" not in capsys.readouterr().err


def test_a_message_commands_no_terminal(capsys):
    with pytest.raises(SystemExit):
        cli.run(raising(ValueError("a\x1b[2J\u202eb")))
    assert "a\\x1b[2J\\u202eb" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["lr=0.1", "gr\u00fcn", "a,b", "a(b)", "#~&", "{x}", "[x]", "1e5", "it's", "back\\", "a b", "null1"],
)
def test_a_path_is_taken_as_it_is(name):
    (argument,) = cli.with_quoted_paths([f"out_dir={name}"], schema.CompareRun)
    override = OverridesParser.create().parse_override(argument)
    assert not override.is_sweep_override()
    assert override.value() == name


@pytest.mark.parametrize(
    "argument", ["out_dir=a/b", "out_dir='x,y'", "instruction_mode=a,b", "a=${b}/c", "-m"]
)
def test_what_hydra_understands_is_left_alone(argument):
    assert cli.with_quoted_paths([argument], schema.CompareRun) == [argument]


def test_a_sweep_over_paths_stays_one():
    arguments = ["--multirun", "path=a,b"]
    assert cli.with_quoted_paths(arguments, schema.EvaluateRun) == arguments


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(SettingError, match="PYTHONUTF8=1"):
        cli.require_readable(["path=\udcc3\udcbc"])


def test_a_refusal_of_the_system_comes_with_a_way_out(capsys):
    with pytest.raises(SystemExit):
        cli.run(raising(OSError(errno.ENOSPC, "No space left on device", "/disk/file")))
    message = capsys.readouterr().err.splitlines()[0]
    assert "/disk/file" in message
    assert "free space, or write elsewhere: out_dir" in message


@pytest.mark.parametrize(
    ("program", "has", "has_not"),
    [
        ("compare", [], ["== Configuration groups ==", "env:"]),
        ("collect", ["collect: ", "env: "], ["model/head: "]),
    ],
)
def test_help_shows_the_groups_of_the_program_alone(program, has, has_not, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{program}.py", "--help"])
    groups = ["collect: quickstart, tabletop", "env: metaworld, tabletop", "model/head: flow, parallel"]
    shown = "\n".join(
        ["What it is.", "", "== Configuration groups ==", "Compose", "", *groups, "", "", "== Config =="]
    )

    def helps():
        print(shown)
        sys.exit(0)

    with pytest.raises(SystemExit):
        cli.run(helps)
    printed = capsys.readouterr().out
    assert "What it is." in printed
    assert "== Config ==" in printed
    assert "== Settings ==\nout_dir " in printed  # each key with its help
    assert [text for text in (*has, *has_not) if text in printed] == has


def test_an_experiment_with_a_plus_says_what_to_type():
    error = ConfigCompositionException(
        "Multiple values for experiment. To override a value use 'override experiment: tabletop'"
    )
    assert "; type experiment=tabletop," in cli.explain_config_error(error)
