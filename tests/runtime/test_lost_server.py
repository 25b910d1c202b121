"""Policy servers that die, hang or drop off the network while a robot moves: real processes, real sockets.

The controller's clock is simulated, so that its deadlines are counted exactly; see network_fixtures.py.
"""

import contextlib
from contextlib import closing

import numpy as np
import pytest
from control_fixtures import DT, Harness
from network_fixtures import Relay, ServerProcess, free_port, wait_until

from experiments.config.control_setup import RemoteForWorker
from experiments.reports.control import reactions
from policies.runtime.inference import ThreadedInference
from policies.runtime.recorder import read_recording
from policies.runtime.states import State

HORIZON = 8  # periods of the fake policy's chunks
STOP_S = 0.5  # the watchdog's underrun_stop_s and failing_stop_s


class Driven:
    """A controller whose policy is behind a socket; `steps` takes turns with the server."""

    def __init__(self, directory, stack, port, *, relay=None, timeout_s=60.0):
        self.relay, self.directory = relay, directory
        self.remote = RemoteForWorker(url=f"ws://127.0.0.1:{port}", token=None, timeout_s=timeout_s)
        self.run = Harness(
            directory,
            make_inference=lambda run: stack.enter_context(
                closing(ThreadedInference(policy=self.remote, clock=run.clock))
            ),
        )
        stack.callback(self.remote.close)  # first of all: an inference under way ends with it

    @property
    def is_waiting(self):
        return self.run.inference.waiting_since is not None

    def start(self):
        self.run.steps(4)
        self.run.controller.arm()
        self.run.controller.start()

    def start_again(self):
        executed = len(self.run.executed())
        self.run.controller.rearm()
        self.run.controller.start()
        self.steps(12)
        assert self.run.state is State.RUNNING, self.run.controller.reason
        assert len(self.run.executed()) >= executed + 10

    def steps(self, count, *, unless=lambda: False):
        """Run periods, each after what was asked before it has been answered, lost or held up."""
        for _ in range(count):
            self.run.steps(1)
            if self.relay is not None:
                self.relay.deliver()
            wait_until(
                lambda: not self.is_waiting or (self.relay is not None and self.relay.is_holding) or unless()
            )

    def require_stopped_in_time(self):
        """Check that it held in the first period without an action, and stopped by the deadline."""
        assert not self.run.ran_blind()
        assert max(one.chunk_index for one in self.run.executed()) < HORIZON
        assert self.run.violations() == []
        times = reactions(read_recording(self.directory))
        assert times.to_hold_s == pytest.approx([DT])
        assert len(times.to_stop_s) == 1
        assert times.to_stop_s[0] <= STOP_S + 3 * DT
        assert times.to_rest_s[0] <= times.to_stop_s[0]


def test_a_server_killed_in_mid_inference_is_held_stopped_and_trusted_again_only_by_an_operator(tmp_path):
    port = free_port()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ServerProcess(port, hangs_beyond=0.05))
        driven = Driven(tmp_path, stack, port)
        driven.start()
        while not server.is_inferring:
            driven.steps(1, unless=lambda: server.is_inferring)
        assert driven.run.state is State.RUNNING
        server.kill()
        wait_until(lambda: not driven.is_waiting)  # the client has noticed
        driven.run.steps(1)
        assert driven.run.state is State.HOLD
        assert "lost" in driven.run.controller.reason
        driven.run.until(State.STOPPED, at_most=12)
        wait_until(lambda: not driven.is_waiting)
        stack.enter_context(ServerProcess(port))
        driven.run.steps(20)
        assert driven.run.state is State.STOPPED, "it went on by itself"
        driven.start_again()
        driven.require_stopped_in_time()


def test_a_server_that_hangs_is_held_when_its_chunk_is_used_up_and_stopped_without_waiting_for_it(tmp_path):
    port = free_port()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ServerProcess(port))
        driven = Driven(tmp_path, stack, port)
        driven.start()
        driven.steps(12)
        server.freeze()
        assert driven.run.until(State.HOLD, at_most=HORIZON + 1) >= 1
        driven.run.until(State.STOPPED, at_most=12)
        assert driven.is_waiting, "the loop has waited for the server"
        server.thaw()
        wait_until(lambda: not driven.is_waiting)  # its answer comes, too late
        driven.run.steps(20)
        assert driven.run.state is State.STOPPED
        driven.start_again()
        driven.require_stopped_in_time()


def test_a_connection_that_dies_without_a_word_is_held_stopped_and_replaced(tmp_path):
    port = free_port()
    with contextlib.ExitStack() as stack:
        stack.enter_context(ServerProcess(port))
        relay = stack.enter_context(Relay(port))
        driven = Driven(tmp_path, stack, relay.port, timeout_s=3.0)
        driven.start()
        driven.steps(12)
        relay.cut()
        driven.run.until(State.HOLD, at_most=HORIZON + 1)
        driven.run.until(State.STOPPED, at_most=12)
        relay.mend()
        wait_until(lambda: not driven.is_waiting)  # the client's own deadline
        driven.start_again()
        driven.require_stopped_in_time()


def test_jitter_and_lost_packets_hold_the_robot_now_and_then_and_never_make_it_run_on_old_actions(tmp_path):
    port, rng = free_port(), np.random.default_rng(7)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ServerProcess(port))
        relay = stack.enter_context(Relay(port))
        driven = Driven(tmp_path, stack, relay.port, relay=relay)
        # 200 ms of jitter; one answer in ten waits for the retransmission of a lost packet as well.
        lost = iter(range(1, 10_000))
        relay.clock = driven.run.clock
        relay.delay_s = lambda: rng.uniform(0.0, 0.2) + (0.4 if next(lost) % 10 == 0 else 0.0)
        driven.start()
        driven.steps(200)
        run = driven.run
        assert run.state in (State.RUNNING, State.HOLD), run.controller.reason
        assert run.controller.counts["chunks"] > 25
        assert run.controller.counts["times HOLD"] >= 1
        assert len(run.executed()) > 120
        assert max(one.chunk_index for one in run.executed()) < HORIZON
        assert not run.ran_blind()
        assert run.violations() == []
        assert max(reactions(read_recording(tmp_path)).to_hold_s) == pytest.approx(DT)
