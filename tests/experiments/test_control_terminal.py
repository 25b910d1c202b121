"""`control` as a real process on a real terminal, with a policy server: its robot is watched from outside.

In wall time, with deadlines that a busy machine keeps: what must come soon is waited for, and what counts is
the order of things and that commands go on or end.
"""

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from network_fixtures import ServerProcess, free_port

from policies.runtime.limits import SafetyLimits
from policies.runtime.recorder import audit_recording, read_recording

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def server_url():
    port = free_port()
    with ServerProcess(port):
        yield f"ws://127.0.0.1:{port}"


class Counter:
    """What the robot was told, received from its process."""

    def __init__(self):
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self.port = self._socket.getsockname()[1]
        self.seen = []

    def listen(self, until, *, at_most_s=PATIENCE_S):
        """Receive until a condition on what was seen holds; return how long that took [s]."""
        began = time.monotonic()
        while not until(self.seen):
            assert time.monotonic() - began < at_most_s, f"it did not come about; seen {self.seen[-5:]}"
            with contextlib.suppress(TimeoutError):
                self.seen.append(self._socket.recv(64).decode())
        return time.monotonic() - began

    def commands(self, count):
        """Receive so many more commands."""
        wanted = self.seen.count("command") + count
        return self.listen(lambda seen: seen.count("command") >= wanted)

    def drain(self):
        """Receive what is left."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.seen.append(self._socket.recv(64).decode())

    def close(self):
        self._socket.close()


@pytest.fixture
def counter():
    one = Counter()
    yield one
    one.close()


def command_of(url, counter, out_dir, *overrides):
    return [
        *(sys.executable, "-m", "experiments.control", "plugins=[counted_robot]", "robot=counted"),
        *(f"robot.port={counter.port}", f"server={url}", f"out_dir={out_dir}", "max_seconds=600"),
        "watchdog.missed_stop_share=1",  # a busy machine is another test's subject
        "watchdog.underrun_stop_s=30",
        "watchdog.observation_stop_s=30",
        *overrides,
    ]


def environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "experiments")])}


class OnTerminal:
    """The program with a terminal of its own as its controlling one."""

    def __init__(self, command):
        self.master, slave = os.openpty()

        def own_the_terminal():
            os.setsid()
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests themselves run under nohup
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=own_the_terminal,
        )
        os.close(slave)
        os.set_blocking(self.master, False)
        self.shown = b""

    def read(self):
        """Take what has been shown off the terminal."""
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self.master, 1 << 16):
                self.shown += data

    def type(self, keys):
        os.write(self.master, keys)

    def wait(self):
        """Read until the program ends; return its exit code."""
        began = time.monotonic()
        while self.process.poll() is None:
            assert time.monotonic() - began < PATIENCE_S, self.shown[-2000:]
            self.read()
            time.sleep(0.02)
        self.read()
        return self.process.returncode

    def close(self):
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self.master)


@contextlib.contextmanager
def on_terminal(command):
    one = OnTerminal(command)
    try:
        yield one
    finally:
        one.close()


def summary_of(out_dir):
    return json.loads((out_dir / "summary.json").read_text())


def require_within_limits(out_dir):
    """Hold every command of a recording against the limits in its header."""
    recording = read_recording(out_dir)
    limits = SafetyLimits.from_json(recording.about["limits"])
    assert any(one.commanded for one in recording.periods)
    assert audit_recording(recording, limits) == []


def test_a_paused_terminal_holds_no_command_and_ctrl_c_still_stops(server_url, counter, tmp_path):
    with on_terminal(command_of(server_url, counter, tmp_path)) as terminal:
        counter.commands(10)
        terminal.type(b"\x13")  # Ctrl-S
        counter.commands(60)
        terminal.type(b"\x03")  # Ctrl-C
        counter.listen(lambda seen: "stop" in seen)
        terminal.type(b"\x11")  # Ctrl-Q
        assert terminal.wait() == 3
    assert summary_of(tmp_path)["state"] == "STOPPED"
    require_within_limits(tmp_path)
    assert b"emergency stop" in terminal.shown


def test_a_terminal_that_is_closed_stops_the_robot(server_url, counter, tmp_path):
    with on_terminal(command_of(server_url, counter, tmp_path)) as terminal:
        counter.commands(10)
        os.close(terminal.master)
        counter.listen(lambda seen: "stop" in seen)
        assert terminal.process.wait(PATIENCE_S) == 3
    counter.drain()
    assert "command" not in counter.seen[counter.seen.index("stop") :]
    assert summary_of(tmp_path)["state"] == "STOPPED"
    require_within_limits(tmp_path)


@pytest.mark.parametrize("presses", [1, 5])
def test_ctrl_c_however_often_leaves_a_whole_record(server_url, counter, tmp_path, presses):
    with on_terminal(command_of(server_url, counter, tmp_path)) as terminal:
        counter.commands(10)
        for _ in range(presses):
            terminal.process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert terminal.wait() == 3
    assert summary_of(tmp_path)["state"] == "STOPPED"
    require_within_limits(tmp_path)
    assert (tmp_path / "report.html").exists()


def test_a_reader_that_has_gone_changes_nothing(server_url, counter, tmp_path):
    """`control ... | head -1`."""
    process = subprocess.Popen(
        command_of(server_url, counter, tmp_path), cwd=ROOT, env=environment(), stdout=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()
    counter.commands(150)  # several lines of the log
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 3
    assert summary_of(tmp_path)["state"] == "STOPPED"


def test_a_hang_up_that_is_ignored_is_ignored(server_url, counter, tmp_path):
    """`nohup control ...`."""
    process = subprocess.Popen(
        command_of(server_url, counter, tmp_path),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    counter.commands(10)
    process.send_signal(signal.SIGHUP)
    counter.commands(30)
    assert "stop" not in counter.seen
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 3


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        ("observe_key", 4, "KeyError: 'motor 3'"),
        ("command_key", 4, "KeyError: 'motor 3'"),
        ("camera", 4, "no frame from camera front"),
    ],
)
def test_an_error_of_a_driver_stops_the_robot_and_is_told(server_url, counter, tmp_path, fault, code, reason):
    command = command_of(server_url, counter, tmp_path, f"robot.fault={fault}")
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    counter.drain()
    assert ended.returncode == code, ended.stderr
    assert counter.seen[-1] == "stop"
    assert summary_of(tmp_path)["state"] == "FAULT"
    require_within_limits(tmp_path)
    assert reason in summary_of(tmp_path)["end"]
    assert (tmp_path / "report.html").exists()


def test_a_driver_that_cannot_be_closed_is_told_after_the_record(server_url, counter, tmp_path):
    command = command_of(server_url, counter, tmp_path, "robot.fault=close", "max_seconds=2")
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.returncode == 4, ended.stderr
    assert "the bus did not close" in ended.stderr
    assert summary_of(tmp_path)["state"] == "FAULT"


def test_a_loop_that_hangs_is_stopped_by_another_thread_and_left_by_ctrl_c(server_url, counter, tmp_path):
    with on_terminal(command_of(server_url, counter, tmp_path, "robot.fault=hang")) as terminal:
        counter.listen(lambda seen: "hangs" in seen)
        counter.listen(lambda seen: "stop" in seen, at_most_s=10.0)
        time.sleep(2.5)
        terminal.type(b"\x03")
        assert terminal.wait() == 3
    assert summary_of(tmp_path)["state"] == "STOPPED"
    require_within_limits(tmp_path)


def test_a_full_disk_stops_the_robot_first(server_url, counter, tmp_path):
    process = subprocess.Popen(
        command_of(server_url, counter, tmp_path),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    out, err = process.communicate(timeout=PATIENCE_S)
    counter.drain()
    assert process.returncode == 3, err
    assert counter.seen[-1] == "stop"
    assert f"{tmp_path / 'recording.jsonl'} cannot be written" in out
    assert summary_of(tmp_path)["state"] == "STOPPED"
    require_within_limits(tmp_path)
    assert "periods not on the disk" in out


def test_a_directory_holds_one_run_and_keeps_its_recording(server_url, counter, tmp_path):
    with on_terminal(command_of(server_url, counter, tmp_path)) as terminal:
        counter.commands(3)
        command = command_of(server_url, counter, tmp_path)
        second = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
        )
        assert second.returncode == 1
        assert "is being written by process" in second.stderr
        counter.commands(3)
        terminal.type(b"\x03")
        assert terminal.wait() == 3
    recorded = (tmp_path / "recording.jsonl").read_bytes()
    third = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert third.returncode == 1
    assert "is the recording of an earlier run" in third.stderr
    assert (tmp_path / "recording.jsonl").read_bytes() == recorded
