"""The controller's states and what leads from one to another: a table, and nothing else.

              ARM    START    HOLD   CLEAR   FINISH   STOP     ESTOP    FAULT  REARM
    IDLE      ARMED  -        -      -       -        STOPPED  STOPPED  FAULT  -
    ARMED     -      RUNNING  IDLE   -       IDLE     STOPPED  STOPPED  FAULT  -
    RUNNING   -      -        HOLD   -       IDLE     STOPPED  STOPPED  FAULT  -
    HOLD      -      -        -      RUNNING IDLE     STOPPED  STOPPED  FAULT  -
    STOPPED   -      -        -      -       -        -        -        FAULT  ARMED
    FAULT     -      -        -      -       -        -        -        -      ARMED

STOPPED and FAULT are latched: REARM, which only a person causes, leads out of them. It is an event of its
own, so that the ARM of a program in a loop does not.
"""

import enum


class State(enum.Enum):
    """What the controller is doing."""

    IDLE = "IDLE"  # observes, commands nothing
    ARMED = "ARMED"  # ready; observations are live
    RUNNING = "RUNNING"  # executes the policy's actions
    HOLD = "HOLD"  # at rest or slowing down, until what was wrong has passed
    STOPPED = "STOPPED"  # stopped until an operator rearms
    FAULT = "FAULT"  # something that cannot be, or the robot failed


class Event(enum.Enum):
    """What may happen."""

    ARM = "arm"
    START = "start"
    HOLD = "hold"
    CLEAR = "clear"  # nothing is wrong (any more)
    FINISH = "finish"  # the task is over
    STOP = "stop"
    ESTOP = "emergency stop"
    FAULT = "fault"
    REARM = "rearm"


LATCHED = (State.STOPPED, State.FAULT)
_ALWAYS = {Event.STOP: State.STOPPED, Event.ESTOP: State.STOPPED, Event.FAULT: State.FAULT}

TRANSITIONS: dict[State, dict[Event, State]] = {
    State.IDLE: {Event.ARM: State.ARMED, **_ALWAYS},
    State.ARMED: {Event.START: State.RUNNING, Event.HOLD: State.IDLE, Event.FINISH: State.IDLE, **_ALWAYS},
    State.RUNNING: {Event.HOLD: State.HOLD, Event.FINISH: State.IDLE, **_ALWAYS},
    State.HOLD: {Event.CLEAR: State.RUNNING, Event.FINISH: State.IDLE, **_ALWAYS},
    State.STOPPED: {Event.FAULT: State.FAULT, Event.REARM: State.ARMED},
    State.FAULT: {Event.REARM: State.ARMED},
}


def next_state(state: State, event: Event) -> State:
    """Return the state after an event; an event without an entry changes nothing."""
    return TRANSITIONS[state].get(event, state)
