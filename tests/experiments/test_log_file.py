"""The log file of a program: on a full disk its lines are lost with one sentence."""

import contextlib
import logging

import pytest

from experiments.config.log_file import LogFile


@pytest.fixture
def log():
    logger = logging.Logger("program")
    yield logger
    for handler in logger.handlers:
        with contextlib.suppress(OSError):  # what /dev/full never took
            handler.close()


def test_a_full_disk_is_told_once(log, capsys):
    log.addHandler(LogFile(filename="/dev/full"))
    for count in range(3):
        log.warning("line %d", count)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "warning: /dev/full cannot be written: No space left on device; what it would hold is shown here "
        "alone. Free space on that disk, or give another out_dir next time"
    ]


def test_a_mistake_in_a_message_keeps_its_traceback(log, capsys, tmp_path):
    log.addHandler(LogFile(filename=str(tmp_path / "a.log")))
    log.warning("%d", "no number")
    assert "Traceback" in capsys.readouterr().err


def test_it_rotates(log, tmp_path):
    log.addHandler(LogFile(filename=str(tmp_path / "a.log"), maxBytes=100, backupCount=2))
    for count in range(30):
        log.warning("line number %d", count)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
