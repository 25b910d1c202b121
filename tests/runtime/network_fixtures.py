"""A policy server in a process of its own, a network that a test delays or cuts, and how to wait for them.

The controller under test lives in simulated time, servers and sockets do not. `settle` keeps them in step: it
waits, in real time, for whatever is under way, so that a busy machine makes a test longer, not wrong.
"""

import contextlib
import functools
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from policies.runtime.clock import MonotonicClock

ROOT = Path(__file__).parents[2]
PATIENCE_S = 100.0
PROGRAM = """
import asyncio, sys, threading
sys.path.insert(0, {tests!r})
from control_fixtures import FakePolicy
from policies.serving.access import Access
from policies.serving.server import PolicyServer, ServedPolicy

class Served(FakePolicy):
    def predict(self, observations):
        if float(observations[0].state[0]) > {hangs_beyond}:
            print("inferring", flush=True)
            threading.Event().wait()
        return super().predict(observations)

    def to_array(self, chunks):
        return chunks

policy = Served()
policy.predict = (lambda ask: lambda observations: __import__("numpy").stack(ask(observations)))(policy.predict)
server = PolicyServer(load=lambda: ServedPolicy(policy=policy, policy_id="a" * 64), access=Access(port={port}))
asyncio.run(server.run(asyncio.Event(), on_ready=lambda: print("ready", flush=True)))
"""
