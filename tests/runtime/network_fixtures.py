"""A policy server in a process of its own, a network that a test delays or cuts, and how to wait for both.

The controller under test lives in simulated time, servers and sockets do not. Tests let the two take turns
and wait, in real time, for what is under way: a busy machine makes them longer, not wrong.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_S = 100.0
NEVER = 1e9
PROGRAM = """
import asyncio, sys, threading
sys.path.insert(0, {tests!r})
import numpy as np
from control_fixtures import FakePolicy
from policies.serving.access import Access
from policies.serving.server import PolicyServer, ServedPolicy

class Served(FakePolicy):
    def predict(self, observations):
        if observations[0].state[0] > {hangs_beyond}:
            print("inferring", flush=True)
            threading.Event().wait()
        return np.stack(super().predict(observations))

def load():
    return ServedPolicy(policy=Served(), policy_id="a" * 64)

server = PolicyServer(load=load, access=Access(port={port}))
asyncio.run(server.run(asyncio.Event(), on_ready=lambda: print("ready", flush=True)))
"""


def wait_until(condition):
    """Wait for what another thread or process does."""
    tick = threading.Event()
    for _ in range(round(PATIENCE_S / 0.002)):
        if condition():
            return
        tick.wait(0.002)
    raise AssertionError(f"it did not come about in {PATIENCE_S} s")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


class ServerProcess:
    """A server of the fake policy; from an x beyond `hangs_beyond` on, its inference never ends."""

    def __init__(self, port, *, hangs_beyond=NEVER):
        program = PROGRAM.format(tests=str(Path(__file__).parent), port=port, hangs_beyond=hangs_beyond)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        self._said = set()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def _read(self):
        for line in self.process.stdout:
            self._said.add(line.strip())

    def __enter__(self):
        self._reader.start()
        wait_until(lambda: "ready" in self._said or self.process.poll() is not None)
        assert self.process.poll() is None, "the server did not start"
        return self

    def __exit__(self, *exception):
        self.thaw()
        self.kill()
        self._reader.join()
        self.process.stdout.close()

    @property
    def is_inferring(self):
        return "inferring" in self._said

    def kill(self):
        self.process.kill()
        self.process.wait()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)


class _Link:
    """One connection through the relay."""

    def __init__(self, client, server):
        self.client, self.server, self.is_dead = client, server, False


class Relay:
    """Loopback TCP whose answers take `delay_s()` of a simulated clock, and that can go dead without a word.

    What it cuts looks, from both ends, like a half-open connection: nothing arrives and nothing is closed. A
    lost packet looks to a program like a delay, that of its retransmission.
    """

    def __init__(self, server_port):
        self._server_port, self._listener = server_port, socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.delay_s, self.clock, self._is_cut = None, None, False
        self._links, self._threads = [], []
        self._held, self._lock = [], threading.Lock()
        self._start(self._accept)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for one in [self._listener, *(end for link in self._links for end in (link.client, link.server))]:
            with contextlib.suppress(OSError):  # wakes whoever waits for it
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in [self._listener, *(end for link in self._links for end in (link.client, link.server))]:
            one.close()

    @property
    def is_holding(self):
        """Whether something is on its way to the client."""
        with self._lock:
            return bool(self._held)

    def deliver(self):
        """Let arrive what is due."""
        with self._lock:
            due = [one for one in self._held if one[0] <= self.clock.now() + 1e-9]
            self._held = self._held[len(due) :]
        for _, data, sink in due:
            with contextlib.suppress(OSError):  # the client has left
                sink.sendall(data)

    def cut(self):
        """From now on nothing passes through any connection; those made after `mend` work again."""
        self._is_cut = True
        for link in self._links:
            link.is_dead = True

    def mend(self):
        """Let connections that are made from now on work."""
        self._is_cut = False

    def _start(self, work, *arguments):
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                link = _Link(client, socket.create_connection(("127.0.0.1", self._server_port)))
                link.is_dead = self._is_cut
                self._links.append(link)
                self._start(self._pump, link, link.client, link.server, False)
                self._start(self._pump, link, link.server, link.client, True)

    def _pump(self, link, source, sink, is_answer):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if link.is_dead:
                    continue
                if is_answer and self.delay_s is not None:
                    self._hold(data, sink)
                else:
                    sink.sendall(data)
            if not link.is_dead:
                sink.shutdown(socket.SHUT_WR)

    def _hold(self, data, sink):
        with self._lock:
            before = self._held[-1][0] if self._held else 0.0
            self._held.append((max(before, self.clock.now() + self.delay_s()), data, sink))
