"""The inference worker: newest request wins, nothing it raises kills the loop, every answer counts once."""

import threading

import numpy as np
import pytest
from control_fixtures import FakePolicy
from runtime_fixtures import observation_at

from policies.runtime.clock import MonotonicClock, SimulatedClock
from policies.runtime.inference import (
    BadResult,
    InferenceResult,
    ResultGate,
    SimulatedInference,
    ThreadedInference,
)
from vla.interface import ObservationError

PATIENCE_S = 30.0


class BlockingPolicy(FakePolicy):
    """Answers when it is let; an exception in `errors` is raised for the stamp that it is for."""

    def __init__(self):
        super().__init__()
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.errors = {}

    def predict(self, observations):
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S)
        if observations[0].stamp in self.errors:
            raise self.errors[observations[0].stamp]
        return super().predict(observations)


@pytest.fixture
def threaded():
    policy = BlockingPolicy()
    inference = ThreadedInference(policy=policy, clock=MonotonicClock())
    yield policy, inference
    policy.may_end.set()
    inference.close()


def results(inference, count):
    """Wait for results without sleeping in between: the worker needs the time."""
    clock, found = MonotonicClock(), []
    give_up = clock.now() + PATIENCE_S
    while len(found) < count and clock.now() < give_up:
        clock.sleep_until(clock.now() + 0.001)
        found += inference.poll()
    return found


def test_the_newest_request_wins_while_one_is_under_way(threaded):
    policy, inference = threaded
    inference.submit(observation_at(1.0))
    assert policy.begun.wait(PATIENCE_S)
    assert inference.submit(observation_at(2.0)) == 2
    assert inference.submit(observation_at(3.0)) == 3
    assert inference.waiting_since is not None
    assert inference.poll() == []
    policy.may_end.set()
    assert [(one.seq, one.stamp) for one in results(inference, 2)] == [(1, 1.0), (3, 3.0)]
    assert inference.waiting_since is None


def test_exceptions_become_failed_results_and_the_next_request_works(threaded):
    policy, inference = threaded
    policy.may_end.set()
    policy.errors = {1.0: ObservationError("no camera"), 2.0: ConnectionResetError("gone")}
    found = []
    for stamp in (1.0, 2.0, 3.0):
        inference.submit(observation_at(stamp))
        found += results(inference, 1)
    assert [one.error for one in found] == ["ObservationError: no camera", "ConnectionResetError: gone", ""]
    assert not inference.has_died


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_that_nobody_named_shows(threaded):
    policy, inference = threaded

    class Strange(BaseException):
        pass

    policy.errors = {1.0: Strange()}
    policy.may_end.set()
    inference.submit(observation_at(1.0))
    inference._thread.join(PATIENCE_S)
    assert inference.has_died
    assert inference.poll() == []


def test_closing_does_not_wait_for_a_policy_that_hangs():
    policy = BlockingPolicy()
    inference = ThreadedInference(policy=policy, clock=MonotonicClock())
    inference.submit(observation_at(1.0))
    assert policy.begun.wait(PATIENCE_S)
    inference.close(timeout_s=0.01)
    policy.may_end.set()
    inference._thread.join(PATIENCE_S)
    assert not inference._thread.is_alive()
    assert not inference.has_died


def test_simulated_answers_arrive_exactly_after_the_delay():
    clock = SimulatedClock()
    inference = SimulatedInference(policy=FakePolicy(), clock=clock, delay_s=lambda: 0.1)
    inference.submit(observation_at(0.0))
    clock.advance(0.099)
    assert inference.poll() == []
    assert inference.waiting_since == 0.0
    clock.advance(0.001)
    (result,) = inference.poll()
    assert result.stamp == 0.0
    assert inference.poll() == []
    assert inference.waiting_since is None


def answer(seq, actions=None, error=""):
    chunk = np.zeros((4, 3), np.float32) if actions is None and not error else actions
    return InferenceResult(
        seq=seq, stamp=float(seq), submitted_at=0.0, finished_at=0.0, actions=chunk, error=error
    )


def test_replayed_reordered_and_outdated_answers_are_dropped():
    gate = ResultGate(num_actions=3)
    gate.admit(answer(1))
    gate.admit(answer(3))
    for seq, kind in ((3, "duplicate"), (2, "duplicate"), (1, "duplicate")):
        with pytest.raises(BadResult) as refusal:
            gate.admit(answer(seq))
        assert refusal.value.kind == kind
    gate.reset(next_seq=6)
    with pytest.raises(BadResult, match="before the robot was armed"):
        gate.admit(answer(5))
    assert gate.admit(answer(6)).seq == 6
    assert gate.counts == {"good": 3, "duplicate": 3, "late": 1}


@pytest.mark.parametrize(
    ("actions", "why"),
    [
        (np.full((4, 3), np.inf), "NaN or infinity"),
        (np.zeros((4, 2)), r"shape \(4, 2\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.zeros((1, 4, 3)), "shape"),
        ([["a", "b", "c"]], "list instead of a chunk"),
        (None, "shape"),
    ],
)
def test_what_is_no_chunk_of_numbers_is_refused(actions, why):
    result = InferenceResult(seq=1, stamp=0.0, submitted_at=0.0, finished_at=0.0, actions=actions)
    with pytest.raises(BadResult, match=why) as refusal:
        ResultGate(num_actions=3).admit(result)
    assert refusal.value.kind == "bad chunk"
