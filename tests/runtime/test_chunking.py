"""Chunk schedules: what they execute when, aligned by the time of capture."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.runtime.chunking import SCHEDULES, Chunk, RealTimeSchedule, make_schedule

DT = 0.05
HORIZON = 8


def schedule(name, **arguments):
    given_ = {"period_s": DT, "execute_horizon": 4, "num_actions": 1, "max_committed": 7} | arguments
    return make_schedule(name, **given_)


def chunk(seq, stamp, value=None):
    """A chunk whose actions tell the period that they are meant for."""
    period = round(stamp / DT)
    values = np.arange(period, period + HORIZON) if value is None else np.full(HORIZON, value)
    actions = values[:, None].astype(np.float32)
    return Chunk(actions=actions, stamp=stamp, seq=seq, captured=stamp)


def simulate(plan, *, delay, periods, jitter=0.0):
    """Ask and answer as the controller does; return the action of each period, None for none."""
    executed, waiting, asked = [], None, []
    for k in range(periods):
        now = k * DT + jitter * (-1) ** k
        if waiting is not None and waiting[0] <= k:
            plan.add(waiting[1], now)
            waiting = None
        if waiting is None and plan.wants_chunk(now):
            plan.commit(now)
            waiting = (k + delay, chunk(len(asked) + 1, k * DT))
            asked.append(k)
        if waiting is not None and waiting[0] <= k:
            plan.add(waiting[1], now)
            waiting = None
        planned = plan.next_action(now)
        executed.append(None if planned is None else float(planned.action[0]))
    return executed, asked


@pytest.mark.parametrize("name", ["async", "ensemble", "rtc"])
@pytest.mark.parametrize("delay", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("jitter", [0.0, 0.012])
def test_every_period_gets_the_action_that_was_meant_for_it(name, delay, jitter):
    executed, _ = simulate(schedule(name), delay=delay, periods=40, jitter=jitter)
    assert executed[:delay] == [None] * delay
    np.testing.assert_allclose(executed[delay:], np.arange(delay, 40), rtol=1e-6)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_the_synchronous_schedule_stands_still_while_it_waits(delay):
    executed, asked = simulate(schedule("sync"), delay=delay, periods=40)
    cycle = 4 + delay
    assert asked[:4] == [0, cycle, 2 * cycle, 3 * cycle]
    assert [action is None for action in executed[:cycle]] == [True] * delay + [False] * 4
    assert executed[delay:cycle] == [0, 1, 2, 3]  # from the first action on: the robot has not moved


@pytest.mark.parametrize("name", ["sync", "async", "ensemble", "rtc"])
def test_the_age_of_an_action_counts_from_the_capture_of_its_observation(name):
    one = schedule(name)
    captured = 5.0
    late = dataclasses.replace(chunk(stamp=captured + 3 * DT, seq=1), captured=captured)
    assert one.add(late, captured + 3 * DT)
    planned = one.next_action(captured + 4 * DT)
    assert planned is not None
    assert planned.index == 1
    assert planned.captured == captured


def test_the_asynchronous_schedule_runs_dry_when_the_policy_is_too_slow():
    executed, _ = simulate(schedule("async"), delay=6, periods=40)
    assert None in executed[8:]
    assert all(action is None or action == k for k, action in enumerate(executed))


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_older_chunk_never_replaces_a_newer_one(name):
    plan = schedule(name)
    assert plan.add(chunk(2, 0.10), 0.20)
    assert not plan.add(chunk(1, 0.0), 0.20)
    assert not plan.add(chunk(2, 0.10), 0.20)  # a duplicate


@pytest.mark.parametrize("name", ["async", "ensemble", "rtc"])
def test_a_chunk_whose_time_has_passed_is_refused(name):
    plan = schedule(name)
    assert not plan.add(chunk(1, 0.0), HORIZON * DT)
    assert plan.next_action(HORIZON * DT) is None


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_cleared_schedule_has_nothing_to_do(name):
    plan = schedule(name)
    plan.add(chunk(1, 0.0), 0.0)
    plan.clear()
    assert plan.next_action(0.0) is None
    assert plan.wants_chunk(0.05)


def test_ensembling_weighs_the_oldest_most():
    plan = schedule("ensemble")
    plan.add(chunk(1, 0.0, value=0.0), 0.0)
    plan.add(chunk(2, DT, value=1.0), DT)
    planned = plan.next_action(DT)
    assert planned is not None
    newer = np.exp(-0.01)
    assert planned.action[0] == pytest.approx(newer / (1 + newer), rel=1e-5)
    assert planned.action[0] < 0.5
    assert planned.seq == 2


def test_what_was_committed_is_executed_whatever_comes_back():
    plan = RealTimeSchedule(period_s=DT, execute_horizon=4, num_actions=1, max_committed=7, first_delay=3)
    plan.add(chunk(1, 0.0, value=1.0), 0.0)
    committed = plan.commit(4 * DT)
    np.testing.assert_array_equal(committed, np.ones((3, 1), np.float32))
    plan.add(chunk(2, 4 * DT, value=5.0), 5 * DT)  # it arrives early and disagrees
    executed = [plan.next_action(k * DT) for k in range(5, 9)]
    assert [float(one.action[0]) for one in executed if one is not None] == [1.0, 1.0, 5.0, 5.0]


def test_what_is_committed_follows_the_delays_that_were_seen_and_what_the_policy_takes():
    plan = schedule("rtc", max_committed=2)
    simulate(plan, delay=3, periods=20)
    assert isinstance(plan, RealTimeSchedule)
    assert plan.expected_delay == 3
    assert len(plan.commit(20 * DT)) == 2
    assert len(schedule("rtc").commit(0.0)) == 0  # nothing has been planned yet


@given(
    name=st.sampled_from(["async", "ensemble", "rtc"]),
    delays=st.lists(st.integers(0, 12), min_size=1, max_size=12),
)
@settings(max_examples=40)
def test_no_delays_make_an_action_run_in_a_period_that_it_was_not_meant_for(name, delays):
    plan, waiting, seq = schedule(name), None, 0
    for k in range(60):
        now = k * DT
        if waiting is None and plan.wants_chunk(now):
            plan.commit(now)
            waiting, seq = (k + delays[seq % len(delays)], chunk(seq + 1, now)), seq + 1
        if waiting is not None and waiting[0] <= k:
            plan.add(waiting[1], now)
            waiting = None
        planned = plan.next_action(now)
        assert planned is None or planned.action[0] == pytest.approx(k)


def test_nonsense_is_refused_by_name():
    with pytest.raises(ValueError, match="'asyncronous' is unknown; choose from"):
        schedule("asyncronous")
    with pytest.raises(ValueError, match="execute_horizon is 0"):
        schedule("async", execute_horizon=0)
    with pytest.raises(ValueError, match="max_committed is -1"):
        schedule("rtc", max_committed=-1)
