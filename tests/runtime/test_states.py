"""The controller's table of transitions, all of it."""

import itertools

import pytest

from policies.runtime.states import LATCHED, Event, State, next_state

TABLE = """
          ARM    START    HOLD   CLEAR    FINISH  STOP     ESTOP    FAULT  REARM
IDLE      ARMED  IDLE     IDLE   IDLE     IDLE    STOPPED  STOPPED  FAULT  IDLE
ARMED     ARMED  RUNNING  IDLE   ARMED    IDLE    STOPPED  STOPPED  FAULT  ARMED
RUNNING   RUNNING RUNNING HOLD   RUNNING  IDLE    STOPPED  STOPPED  FAULT  RUNNING
HOLD      HOLD   HOLD     HOLD   RUNNING  IDLE    STOPPED  STOPPED  FAULT  HOLD
STOPPED   STOPPED STOPPED STOPPED STOPPED STOPPED STOPPED  STOPPED  FAULT  ARMED
FAULT     FAULT  FAULT    FAULT  FAULT    FAULT   FAULT    FAULT    FAULT  ARMED
"""
HEADER, *ROWS = [line.split() for line in TABLE.strip().splitlines()]
EXPECTED = {
    (State[row[0]], Event[event]): State[new]
    for row in ROWS
    for event, new in zip(HEADER, row[1:], strict=True)
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_state_answers_every_event_as_the_table_says(state, event):
    assert next_state(state, event) is EXPECTED[state, event]


@pytest.mark.parametrize("state", list(State))
def test_an_emergency_stop_is_idempotent_and_latched(state):
    stopped = next_state(state, Event.ESTOP)
    assert stopped in LATCHED
    assert next_state(stopped, Event.ESTOP) is stopped
    for event in set(Event) - {Event.REARM}:
        assert next_state(stopped, event) in LATCHED


def test_no_state_that_is_latched_leads_straight_to_motion():
    for state, event in itertools.product(LATCHED, Event):
        assert next_state(state, event) not in (State.RUNNING, State.HOLD)
