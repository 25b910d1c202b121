"""What the control loop must not wait for: disk, terminal, itself. In wall time, by the order of events."""

import threading
import time

import pytest
from control_fixtures import DT, OPEN, FakeArm, Harness

from policies.runtime.background import BackgroundWorker
from policies.runtime.clock import MonotonicClock
from policies.runtime.controller import ArmingRefused
from policies.runtime.hang_guard import HangGuard
from policies.runtime.recorder import Recorder, audit_recording, read_recording
from policies.runtime.states import State
from vla.files import JsonLinesAppender

PATIENCE_S = 30.0


@pytest.fixture
def stalled_disk(monkeypatch):
    """A disk that answers when told to."""
    answers, append = threading.Event(), JsonLinesAppender.append

    def slow(self, row):
        assert answers.wait(PATIENCE_S)
        append(self, row)

    monkeypatch.setattr(JsonLinesAppender, "append", slow)
    yield answers
    answers.set()


def test_a_disk_that_stalls_holds_no_command_and_loses_no_period(tmp_path, stalled_disk):
    run = Harness(tmp_path).started(60)
    assert run.state is State.RUNNING
    assert len(run.arm.commands) == 60
    assert len((tmp_path / "recording.jsonl").read_text().splitlines()) == 1  # the header
    stalled_disk.set()
    assert run.violations() == []  # counts the periods, too


def test_a_disk_that_stalls_for_too_long_stops_the_robot(tmp_path, stalled_disk):
    run = Harness(tmp_path)
    small = Recorder(tmp_path / "small", spec=run.arm.robot_spec, about={}, max_unwritten=20)
    OPEN.append(small)
    run.controller._recorder = run.recorder = small
    run.started(2)
    run.until(State.STOPPED, at_most=20)
    assert "does not answer" in run.controller.reason
    run.steps(20)
    assert run.arm.num_stops == 1
    with pytest.raises(ArmingRefused, match="does not answer"):
        run.controller.rearm()
    stalled_disk.set()
    run.recorder.close()
    assert len(read_recording(tmp_path / "small").periods) >= 20


def test_a_full_disk_stops_the_robot_and_the_rest_stays_in_memory(tmp_path, monkeypatch):
    run = Harness(tmp_path).started(10)
    wait_until(lambda: run.recorder.num_unwritten == 0)

    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JsonLinesAppender, "append", full)
    run.steps(1)
    wait_until(lambda: run.recorder.problem)
    assert run.until(State.STOPPED, at_most=2) <= 2
    assert "No space left on device" in run.controller.reason
    run.steps(20)
    run.recorder.close()
    recording = run.recorder.recording()
    assert [one.index for one in recording.periods] == list(range(len(run.records)))
    assert audit_recording(recording, run.limits) == []
    assert run.recorder.num_unwritten > 0


def test_frames_that_the_disk_does_not_take_are_dropped_and_counted(tmp_path, stalled_disk):
    run = Harness(tmp_path).started()
    for number in range(4):
        run.recorder.dump(f"frames-{number}")
    assert run.recorder.num_dropped_dumps == 2
    stalled_disk.set()
    run.recorder.close()
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["frames-0.npz", "frames-1.npz"]


def test_a_worker_takes_no_more_than_it_may_and_ends_with_the_first_failure():
    gate, done = threading.Event(), []
    worker = BackgroundWorker(name="test", max_waiting=2)
    assert worker.offer(lambda: gate.wait(PATIENCE_S) and None)
    assert worker.offer(lambda: done.append(1))
    assert not worker.offer(lambda: done.append(2))
    gate.set()
    wait_until(lambda: done == [1])

    def fails():
        raise OSError("gone")

    worker.offer(fails)
    wait_until(lambda: worker.failure is not None)
    wait_until(lambda: not worker.offer(lambda: done.append(3)))
    assert not worker.close(timeout_s=1.0)
    assert done == [1]


class HangingArm(FakeArm):
    """An arm whose bus hangs when told to, in wall time."""

    def __init__(self, clock):
        super().__init__(clock)
        self.is_hanging, self.goes_on = False, threading.Event()

    def observe(self):
        if self.is_hanging:
            assert self.goes_on.wait(PATIENCE_S)
        return super().observe()


def test_a_loop_that_hangs_has_its_robot_stopped_by_another_thread(tmp_path):
    arm = HangingArm(MonotonicClock())
    run = Harness(tmp_path, arm=arm, missed_stop_share=1.0, observation_stop_s=PATIENCE_S)
    run.started(3)
    with HangGuard(run.controller, clock=arm.clock, hung_stop_s=0.3):
        arm.is_hanging = True
        loop = threading.Thread(target=lambda: run.steps(3))
        loop.start()
        wait_until(lambda: arm.num_stops > 0)
        assert loop.is_alive(), "the loop still hangs"
        arm.is_hanging = False
        arm.goes_on.set()
        loop.join(PATIENCE_S)
    commands = len(arm.commands)
    assert run.state is State.STOPPED
    assert "the control loop hung for" in run.controller.reason
    run.steps(3)
    assert len(arm.commands) == commands, "the robot was commanded after it had been stopped"


def test_a_loop_that_comes_round_is_left_alone(tmp_path):
    run = Harness(tmp_path, arm=FakeArm(MonotonicClock()), missed_stop_share=1.0).started(2)
    with HangGuard(run.controller, clock=run.clock, hung_stop_s=PATIENCE_S):
        run.steps(20)
    assert run.arm.num_stops == 0


def wait_until(condition):
    """Wait for what another thread does."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE_S, "it did not come about"
        time.sleep(DT / 20)
