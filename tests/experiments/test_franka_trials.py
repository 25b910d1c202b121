"""What a trial may not come to is said in words; a trial without a fault to find says nothing."""

from dataclasses import replace

import pytest
from hydra import compose, initialize_config_module

from experiments.config import schema
from experiments.config.schema import FrankaTrialsRun
from experiments.franka.audit import MAX_LOST, SetpointAudit
from experiments.franka.trial import FaultTimes, Trial
from experiments.franka_trials import shortcomings

AUDIT = SetpointAudit(
    setpoints=200,
    velocity=0.5,
    acceleration=0.5,
    jerk=0.5,
    measured_speed=0.5,
    range_margin_rad=0.1,
    abrupt_ends=0,
    lost=0,
    lost_in_a_row=0,
)
TIMES = FaultTimes(
    to_hold_s=0.1, hold_delay_periods=0, to_stopped_s=0.9, to_rest_s=1.0, ran_blind=0, oldest_action_s=0.3
)
TRIAL = Trial(
    seed=640000,
    instruction="reach the red cube",
    success=True,
    end="the hand is there",
    seconds=2.0,
    realtime_factor=1.0,
    chunk_s=0.4,
    missed_periods=0,
    recorded_violations=0,
    audit=AUDIT,
    inference_ms=5.0,
)


@pytest.fixture(scope="module")
def run():
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        return schema.typed(compose("franka_trials", []), FrankaTrialsRun)


def test_nothing_is_found_where_nothing_is_wrong(run):
    assert shortcomings(run, [TRIAL], [replace(TRIAL, fault="killed", times=TIMES)]) == []


def test_one_failure_in_ten_is_borne_and_two_are_not(run):
    failed = replace(TRIAL, success=False)
    assert shortcomings(run, [TRIAL] * 9 + [failed], []) == []
    (found,) = shortcomings(run, [TRIAL] * 8 + [failed] * 2, [])
    assert found == "only 8 of 10 trials reached the named target"


@pytest.mark.parametrize("wrong", [{"recorded_violations": 1}, {"audit": replace(AUDIT, jerk=1.01)}])
def test_a_broken_limit_is_found(run, wrong):
    (found,) = shortcomings(run, [replace(TRIAL, **wrong)], [])
    assert "limits were broken" in found


def test_lost_packets_are_a_fault_of_a_real_arm_only(run):
    lossy = replace(TRIAL, audit=replace(AUDIT, lost=MAX_LOST + 1, lost_in_a_row=MAX_LOST + 1))
    real = replace(run, robot=replace(run.robot, needs_realtime=True))
    assert shortcomings(replace(run, robot=replace(run.robot, needs_realtime=False)), [lossy], []) == []
    (found,) = shortcomings(real, [lossy], [])
    assert found == "trial, seed 640000: 21 packets were lost in a row"
    borne = replace(TRIAL, audit=replace(AUDIT, lost=MAX_LOST, lost_in_a_row=MAX_LOST))
    assert shortcomings(real, [borne], []) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ran_blind": 1}, "did not hold"),
        ({"hold_delay_periods": 1}, "did not hold"),
        ({"oldest_action_s": 0.6}, "an action 0.60 s old"),
        ({"to_stopped_s": 1.1}, "STOPPED after 1.1 s; the deadline is 1.05 s"),
        ({"to_stopped_s": None}, "STOPPED after None s"),
        ({"to_rest_s": 1.6}, "still moved 1.60 s"),
    ],
)
def test_a_fault_that_is_not_held_and_stopped_in_time_is_found(run, wrong, words):
    (found,) = shortcomings(run, [], [replace(TRIAL, fault="killed", times=replace(TIMES, **wrong))])
    assert found.startswith("killed, seed 640000: ")
    assert words in found


def test_a_slow_server_need_not_be_stopped(run):
    times = replace(TIMES, to_hold_s=None, hold_delay_periods=None, to_stopped_s=None, to_rest_s=None)
    assert shortcomings(run, [], [replace(TRIAL, fault="slowed", times=times)]) == []
