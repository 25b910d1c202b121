"""The other processes of a Franka trial: franky-sim and a policy server, and what can befall the latter.

These are programs that serve until they are ended, killed or stopped on purpose; the pool of envs/workers.py
runs jobs that end, and takes a process that dies for an error.
"""

import contextlib
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from experiments.config import cli

START_S = 120.0  # how long a process may take to get ready; seconds on a quiet machine


class ProcessFailed(RuntimeError):
    """A process ended or never got ready; the message holds what it printed last."""


class Process:
    """A child process that prints a line when it is ready. A context manager: leaving it ends the process."""

    def __init__(self, command: Sequence[str], *, ready: str) -> None:
        self._command, self._ready = list(command), re.compile(ready)
        self._lines: deque[str] = deque(maxlen=40)
        self._found: re.Match[str] | None = None
        self._is_ready = threading.Event()
        self._is_thawed = threading.Event()
        self._is_thawed.set()

    def __enter__(self) -> "Process":
        environment = cli.child_environment() | {"PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        deadline = time.monotonic() + START_S
        while not self._is_ready.wait(0.05):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise ProcessFailed(f"{' '.join(self._command)} did not get ready:\n{''.join(self._lines)}")
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_thawed.set()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def found(self) -> re.Match[str]:
        """What in the line matched the words of readiness."""
        assert self._found is not None, "known once the process is ready"
        return self._found

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._process.kill()

    def freeze(self) -> None:
        """Stop it where it is (SIGSTOP); its connections stay open."""
        self._process.send_signal(signal.SIGSTOP)

    def throttle(self, *, on_s: float, off_s: float) -> None:
        """From now on let it run and stop it by turns."""
        self._is_thawed.clear()
        threading.Thread(target=self._run_throttle, args=(on_s, off_s), daemon=True).start()

    def _run_throttle(self, on_s: float, off_s: float) -> None:
        while not self._is_thawed.is_set():
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGSTOP)
                self._is_thawed.wait(off_s)
                self._process.send_signal(signal.SIGCONT)
            self._is_thawed.wait(on_s)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            found = self._ready.search(line)
            if found is not None and self._found is None:
                self._found = found
                self._is_ready.set()


@contextlib.contextmanager
def franky_sim() -> Iterator[str]:
    """Run `franky-sim --simulator mujoco` on a loopback address of its own, and give that address.

    Raises:
        ProcessFailed: it does not start; is this .venv-franka?
    """
    address = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250) + 1}.1"
    command = [sys.executable, "-c", "import franky_sim.run_server as sim; sim.main()"]
    with Process([*command, "--simulator", "mujoco", "--hostname", address], ready="Press Ctrl"):
        yield address


def bundle_server(bundle: str, *, out_dir: str) -> Process:
    """Return a policy server of a bundle, not yet started; `found[1]` will be its address."""
    command = [sys.executable, "-m", "experiments.serve", f"bundle={bundle}", "port=0", f"out_dir={out_dir}"]
    return Process(command, ready=r"(ws://[\d.]+:\d+)/")


def expert_server(env_config: str, *, seed: int) -> Process:
    """Return a server of the scripted expert in the scene of a seed, not yet started; `found[1]` as above."""
    command = [sys.executable, "-m", "experiments.franka.expert", env_config, str(seed)]
    return Process(command, ready=r"(ws://[\d.]+:\d+)")
