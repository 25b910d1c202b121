"""The controller on a simulated clock: the course of a run, stops, deadlines, the record."""

import numpy as np
import pytest
from control_fixtures import DT, FakeArm, Harness
from runtime_fixtures import arm_spec

from policies.runtime.clock import SimulatedClock
from policies.runtime.controller import ArmingRefused
from policies.runtime.observation_buffer import BadInstruction, checked_instruction
from policies.runtime.recorder import audit_recording, read_recording
from policies.runtime.states import State


def test_a_run_from_idle_to_the_end(tmp_path):
    run = Harness(tmp_path).started(10)
    assert run.state is State.RUNNING
    assert len(run.arm.commands) == 10
    np.testing.assert_allclose(run.arm.commands[-1], [0.004, -0.002, 1.0], atol=1e-6)
    run.controller.finish()
    run.steps(20)
    assert run.state is State.IDLE
    assert run.arm.num_stops == 1
    assert run.violations() == []


@pytest.mark.parametrize("schedule", ["sync", "async", "ensemble", "rtc"])
def test_every_schedule_runs_with_a_slow_policy_and_within_limits(tmp_path, schedule):
    run = Harness(tmp_path, schedule=schedule, delay_s=2 * DT).started(40)
    assert run.state is State.RUNNING, run.events()
    moving = sum(bool(np.abs(command[0]) > 0.003) for command in run.arm.commands)
    assert moving == pytest.approx(40 * 4 / 6 if schedule == "sync" else 37, abs=3)
    assert run.violations() == []


@pytest.mark.parametrize("schedule", ["sync", "async", "ensemble", "rtc"])
def test_joint_targets_that_jump_at_seams_stay_within_limits_and_arrive(tmp_path, schedule):
    clock = SimulatedClock()
    arm = FakeArm(clock, spec=arm_spec("joint_target"))
    run = Harness(
        tmp_path, schedule=schedule, delay_s=2 * DT, arm=arm, velocity=2.62, acceleration=10.0
    ).started(20)
    run.policy.answer = lambda observation: np.tile(np.float32([0.5, -0.5, 1.0]), (8, 1))
    run.steps(60)
    np.testing.assert_allclose(arm.position[:2], [0.5, -0.5], atol=1e-3)
    assert run.violations() == []


def test_arming_needs_a_live_stream(tmp_path):
    run = Harness(tmp_path)
    with pytest.raises(ArmingRefused, match="no observation"):
        run.controller.arm()
    run.steps(1)
    with pytest.raises(ArmingRefused, match="too few"):
        run.controller.arm()
    run.steps(3)
    run.arm.is_silent = True
    run.steps(10)
    with pytest.raises(ArmingRefused, match="old"):
        run.controller.arm()
    with pytest.raises(ArmingRefused, match="ARMED"):
        run.controller.start()
    assert run.arm.commands == []


def test_an_armed_robot_whose_stream_dies_is_not_armed_any_more(tmp_path):
    run = Harness(tmp_path)
    run.steps(4)
    run.controller.arm()
    run.arm.is_silent = True
    run.until(State.IDLE, at_most=10)


@pytest.mark.parametrize("state", list(State))
def test_the_emergency_stop_works_in_every_state_and_twice(tmp_path, state):
    run = Harness(tmp_path)
    run.steps(4)
    if state is not State.IDLE:
        run.controller.arm()
    if state in (State.RUNNING, State.HOLD, State.STOPPED, State.FAULT):
        run.controller.start()
        run.steps(4)
    if state is State.HOLD:
        run.arm.is_black = True
        run.steps(1)
    if state is State.STOPPED:
        run.controller.stop("enough")
    if state is State.FAULT:
        run.arm.command_error = OSError("cable")
        run.steps(1)
    assert run.state is state
    commands = len(run.arm.commands)
    for _ in range(2):
        run.controller.press_emergency_stop()
        run.steps(1)
        assert run.state in (State.STOPPED, State.FAULT)
    run.arm.is_black, run.arm.command_error = False, None
    run.steps(20)
    assert len(run.arm.commands) == commands, "the robot was commanded after an emergency stop"
    assert run.state in (State.STOPPED, State.FAULT)
    assert run.arm.num_stops == 1
    assert run.violations() == []


def test_an_emergency_stop_within_a_period_keeps_its_command_from_being_sent(tmp_path):
    run = Harness(tmp_path).started()
    commands = len(run.arm.commands)

    def pressed_meanwhile(reading):
        run.controller.press_emergency_stop()
        return reading

    run.arm.edit = pressed_meanwhile
    run.steps(1)
    assert run.state is State.STOPPED
    assert (len(run.arm.commands), run.arm.num_stops) == (commands, 1)
    assert run.violations() == []


def test_an_emergency_stop_while_the_robot_recovers_stops_it_again(tmp_path):
    run = Harness(tmp_path).started()
    run.controller.press_emergency_stop()
    run.steps(2)
    commands = len(run.arm.commands)
    run.controller.rearm()
    run.controller.press_emergency_stop()  # armed, not started
    run.steps(1)
    assert run.state is State.STOPPED
    run.controller.rearm()
    run.controller.start()
    run.controller.press_emergency_stop()  # started, nothing sent yet
    run.steps(10)
    assert run.state is State.STOPPED
    assert len(run.arm.commands) == commands
    assert run.violations() == []


def test_after_a_stop_only_an_operator_gets_the_robot_going(tmp_path):
    run = Harness(tmp_path).started()
    run.controller.press_emergency_stop()
    run.steps(5)
    with pytest.raises(ArmingRefused, match="STOPPED"):
        run.controller.arm()
    with pytest.raises(ArmingRefused, match="STOPPED"):
        run.controller.start()
    run.controller.rearm()
    run.controller.start()
    run.steps(5)
    assert run.state is State.RUNNING
    assert run.violations() == []


def test_a_robot_that_is_still_coming_to_rest_is_not_armed(tmp_path):
    run = Harness(tmp_path, acceleration=2.0).started()
    run.policy.answer = lambda observation: np.tile(np.float32([0.02, 0.0, 1.0]), (8, 1))
    run.steps(10)
    run.controller.stop("enough")
    run.steps(1)
    with pytest.raises(ArmingRefused, match="still coming to rest"):
        run.controller.rearm()
    run.steps(20)
    run.controller.rearm()
    assert run.violations() == []


def test_an_emergency_stop_during_a_gentle_stop_cuts_it_short(tmp_path):
    run = Harness(tmp_path, acceleration=2.0).started()
    run.policy.answer = lambda observation: np.tile(np.float32([0.02, 0.0, 1.0]), (8, 1))
    run.steps(10)
    run.controller.stop("enough")
    run.steps(1)
    assert run.state is State.STOPPED
    assert run.arm.num_stops == 0
    run.controller.press_emergency_stop()
    run.steps(1)
    assert run.arm.num_stops == 1


def test_a_robot_that_refuses_commands_is_a_fault_and_gets_no_more(tmp_path):
    run = Harness(tmp_path).started()
    run.arm.command_error = RuntimeError("reflex: collision")
    run.steps(1)
    assert run.state is State.FAULT
    assert "reflex: collision" in run.controller.reason
    run.arm.command_error = None
    commands = len(run.arm.commands)
    run.steps(10)
    assert len(run.arm.commands) == commands
    assert run.arm.num_stops == 1
    assert run.violations() == []


def test_a_robot_whose_process_has_died_is_a_fault_and_gets_no_commands(tmp_path):
    run = Harness(tmp_path).started()
    run.arm.observe_error = run.arm.command_error = ConnectionResetError("the simulator has gone")
    commands = len(run.arm.commands)
    run.steps(10)
    assert run.state is State.FAULT
    assert "the simulator has gone" in run.controller.reason
    assert (len(run.arm.commands), run.arm.num_stops) == (commands, 1)
    with pytest.raises(ArmingRefused, match="old"):
        run.controller.rearm()
    assert run.violations() == []


def test_one_failed_look_is_no_observation_and_one_that_lasts_is_a_fault(tmp_path):
    run = Harness(tmp_path).started()
    run.arm.observe_error = TimeoutError("no frame from camera front")
    run.steps(1)
    assert run.state is State.RUNNING
    run.arm.observe_error = None
    run.steps(3)
    assert run.state is State.RUNNING
    run.arm.observe_error = TimeoutError("no frame from camera front")
    assert run.until(State.HOLD, at_most=8) <= 6  # 0.25 s
    assert run.until(State.FAULT, at_most=30) <= 6  # 0.5 s in all
    assert "no frame from camera front" in run.controller.reason
    assert run.arm.num_stops == 1
    assert run.controller.counts["failed observations"] > 10
    assert run.violations() == []


def test_missed_periods_are_counted_and_too_large_a_share_stops_the_robot(tmp_path):
    run = Harness(tmp_path).started()
    run.arm.work_s = 1.7 * DT
    run.steps(1)
    run.arm.work_s = 0.0
    run.steps(3)
    assert run.controller.counts["missed periods"] == 1
    assert run.state is State.RUNNING
    run.arm.work_s = 2.2 * DT
    run.until(State.STOPPED, at_most=12)
    assert "of its control periods in the last 2 s" in run.controller.reason
    assert run.violations() == []


@pytest.mark.parametrize("work", [1.1, 1.2, 1.3, 1.4, 2.4])
def test_a_loop_that_can_never_keep_up_is_stopped_however_the_lateness_falls(tmp_path, work):
    run = Harness(tmp_path).started()
    run.arm.work_s = work * DT
    run.until(State.STOPPED, at_most=60)
    assert "of its control periods" in run.controller.reason


def test_a_loop_that_is_held_up_once_goes_on(tmp_path):
    run = Harness(tmp_path).started(40)
    run.clock.advance(8 * DT)
    run.steps(60)
    assert run.state is State.RUNNING


@pytest.mark.parametrize("error", [KeyError("motor 3"), KeyboardInterrupt(), SystemExit(1), MemoryError()])
@pytest.mark.parametrize("where", ["observe", "command", "on_period"])
def test_whatever_ends_the_loop_stops_the_robot_first(tmp_path, error, where):
    run = Harness(tmp_path).started()

    def on_period(record):
        if where == "on_period":
            raise error
        return True

    if where == "observe":
        run.arm.observe_error = error
    if where == "command":
        run.arm.command_error = error
    with pytest.raises(type(error)):
        run.controller.run(on_period)
    assert run.arm.num_stops == 1
    is_person = isinstance(error, KeyboardInterrupt | SystemExit)
    assert run.state is (State.STOPPED if is_person else State.FAULT)
    run.recorder.close()
    recording = read_recording(tmp_path)
    assert recording.periods[-1].state == run.state.value
    assert audit_recording(recording, run.limits) == []


def test_an_error_before_the_robot_was_commanded_stops_nothing(tmp_path):
    run = Harness(tmp_path)
    run.arm.observe_error = KeyError("motor 3")
    with pytest.raises(KeyError):
        run.steps(1)
    assert (run.arm.num_stops, run.state) == (0, State.IDLE)


def test_a_stop_that_fails_is_said_and_hides_no_error(tmp_path):
    run = Harness(tmp_path).started()
    run.arm.observe_error, run.arm.stop_error = KeyError("motor 3"), KeyError("bus")
    with pytest.raises(KeyError, match="motor 3"):
        run.steps(1)
    run.recorder.close()
    last = read_recording(tmp_path).periods[-1]
    assert last.state == "FAULT"
    assert any("could not be stopped: KeyError: 'bus'" in event for event in last.events)


def test_a_pause_of_the_whole_loop_is_survived_on_the_grid(tmp_path):
    run = Harness(tmp_path).started()
    began = run.records[0].now
    run.clock.advance(2.7 * DT)
    run.steps(5)
    assert run.records[-1].missed == 2
    phase = (run.records[-1].now - began) / DT
    assert phase == pytest.approx(round(phase), abs=1e-6)


def test_a_stop_leaves_the_last_seconds_of_frames(tmp_path):
    run = Harness(tmp_path).started(50)
    run.controller.stop("enough")
    run.steps(20)
    run.recorder.close()
    (path,) = tmp_path.glob("before-stopped-*.npz")
    with np.load(path, allow_pickle=False) as dump:
        assert dump["images_front"].shape[1:] == (8, 8, 3)
        assert len(dump["stamp"]) == len(dump["state"]) == 40  # 2 s at 20 Hz


def test_the_policy_sees_the_committed_actions_and_its_instruction(tmp_path):
    run = Harness(tmp_path, schedule="rtc", delay_s=2 * DT).started(30)
    latest = run.policy.seen[-1]
    assert latest.instruction == "go on"
    assert len(latest.committed) == 2
    np.testing.assert_allclose(latest.committed, np.tile(np.float32([0.004, -0.002, 1.0]), (2, 1)), atol=1e-8)


@pytest.mark.parametrize(
    ("text", "why"), [("", "empty"), ("  \n", "empty"), ("x" * 1_000_000, "bytes"), ("go\x07on", "U\\+0007")]
)
def test_odd_instructions_are_refused(text, why):
    with pytest.raises(BadInstruction, match=why):
        checked_instruction(text)


def test_other_languages_are_instructions_too():
    assert checked_instruction(" 把红色方块拿起来 ") == "把红色方块拿起来"


def test_a_torn_recording_can_be_read(tmp_path):
    run = Harness(tmp_path).started(5)
    run.recorder.close()
    path = tmp_path / "recording.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(read_recording(path).periods) == len(run.records) - 1
    path.write_bytes(b'{"schema_version": 2}\n')
    with pytest.raises(ValueError, match="version 1"):
        read_recording(path)


def test_a_changed_date_moves_no_deadline(tmp_path, monkeypatch):
    import time

    run = Harness(tmp_path).started()
    monkeypatch.setattr(time, "time", lambda: 1e12)
    run.steps(5)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    run.steps(5)
    assert run.state is State.RUNNING
    with pytest.raises(ValueError, match="back"):
        SimulatedClock().advance(-3600.0)


def test_a_robot_outside_of_its_range_is_not_armed(tmp_path):
    clock = SimulatedClock()
    run = Harness(tmp_path, arm=FakeArm(clock, start=(9.0, 0.0, 1.0)))
    run.steps(4)
    with pytest.raises(ArmingRefused, match="'x' is at 9"):
        run.controller.arm()
