"""Programs end with short messages and the right exit codes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.config import cli
from vla.files import DirectoryInUse

SET_BY_RUN = ("HYDRA_FULL_ERROR", "VLA_SET_HYDRA_FULL_ERROR")


@pytest.fixture(autouse=True)
def undo(monkeypatch):
    """Give signals and environment back as they were."""
    for name in SET_BY_RUN:
        monkeypatch.delenv(name, raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
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
        (FileNotFoundError("gone"), cli.EXIT_FAILED),
        (DirectoryInUse("held"), cli.EXIT_FAILED),
        (KeyboardInterrupt(), cli.EXIT_INTERRUPTED),
        (cli.Terminated(), cli.EXIT_TERMINATED),
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


def test_sigterm_is_handled_like_ctrl_c(tmp_path):
    script = (
        "import pathlib, sys, time\n"
        "from experiments.config import cli\n"
        "def main():\n"
        "    try:\n"
        "        pathlib.Path(sys.argv[1], 'started').touch()\n"
        "        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        pathlib.Path(sys.argv[1], 'saved').touch()\n"
        "        raise\n"
        "cli.run(main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 150
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    _, message = process.communicate(timeout=60)
    assert process.returncode == cli.EXIT_TERMINATED
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
