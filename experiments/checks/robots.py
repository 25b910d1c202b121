"""Looks at a robot before a policy drives it: readings, rates, limits, stops from a thread, small motions.

A robot that is not simulated is only observed and stopped, unless a person lets it be moved: then one channel
after another moves a little, slowly, through the safety filter.
"""

import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np

from experiments.checks.examination import Examination, raised
from experiments.config.robot import RobotSetup, TaskRobot
from policies.runtime.clock import Clock, MonotonicClock, Pacer, SimulatedClock
from policies.runtime.limits import GRIPPER
from policies.runtime.observation_buffer import StreamLimits
from policies.runtime.preflight import BAD, GOOD, Check, observation_checks, observe, unlimited
from policies.runtime.safety import SafetyFilter
from policies.runtime.watchdog import WatchdogLimits
from vla.spec import RobotSpec

MEMBERS = ("robot_spec", "observe", "command", "stop", "instruction", "success", "is_over", "warm_up")
OBSERVE_S = 2.0  # for which readings are judged
STOP_S, STOP_WAIT_S = 0.5, 3.0  # how long a stop may take; how long it is waited for [s]
MOVE_S, SETTLE_S, WINDOW_S = 0.5, 1.0, 0.3  # of a motion, until rest, over which rest is judged [s]
_SPEED = 0.2  # of the velocity limit
_STILL = 0.005  # of a channel's range: what moves less within WINDOW_S is at rest
_FOLLOWS = 0.2  # of the commanded way: what moves less has not been commanded
_RAISES = "it opens and runs"
_MISSING = object()

Look = Callable[[TaskRobot, Clock], None]


def check_robot(
    setup: RobotSetup, env_config: Mapping[str, Any], *, seed: int, may_move: bool
) -> Examination:
    """Look at a robot and note what is wrong.

    Args:
        setup: opens it; a simulated one is opened anew for every look.
        env_config: of the scene that it stands in; empty for none.
        seed: of the scene.
        may_move: whether a robot that is not simulated may be commanded; its limits must be confirmed then.

    Raises:
        ValueError: opening the robot moves it, or its limits are to be confirmed, and `may_move` is false or
            nobody has.
    """
    moves = setup.is_simulated or may_move
    if setup.moves_on_opening and not may_move:
        raise ValueError(
            "opening this robot moves it; give may_move=true with a person at the emergency stop"
        )
    if moves:
        setup.require_confirmed()
    seen = Examination()
    channels = [
        name
        for name, one in setup.limits.channels.items()
        if one.kind != GRIPPER and one.measured_by is not None
    ]
    looks: list[Look] = [partial(_observes, seen, setup), partial(_stops_from_a_thread, seen)]
    if moves:
        looks += [partial(_moves, seen, setup, name) for name in channels]
        looks += [partial(_ends_by_itself, seen, setup, name) for name in channels[:1]]
    _take(seen, setup, looks, env_config=env_config, seed=seed)
    if not moves:
        reason = "this moves the robot: may_move=true, with a person at the emergency stop"
        for what in (_COMMANDS, _STOPS, _ENDS, "opening it again"):
            seen.not_tried(what, reason)
    elif not channels:
        seen.not_tried(_COMMANDS, "no channel of the limits names a state channel in measured_by")
    return seen


_COMMANDS, _STOPS = "commands arrive", "a stop brings it to rest"
_ENDS = "a command ends by itself"


def _take(
    seen: Examination, setup: RobotSetup, looks: list[Look], *, env_config: Mapping[str, Any], seed: int
) -> None:
    """Open the robot and look: once for all looks, or a simulated one for each, in simulated time."""

    def opened(some: list[Look], clock: Clock) -> bool:
        robot: AbstractContextManager[TaskRobot] = setup.open(env_config, seed=seed, clock=clock)
        with robot as one:
            if not _is_whole(seen, one):
                return False
            for look in some:
                seen.tried(partial(look, one, clock), "robot_raises", what=_RAISES)
        return True

    if not setup.is_simulated:
        seen.tried(partial(opened, looks, MonotonicClock()), "robot_raises", what=_RAISES)
        return
    for number, look in enumerate(looks):
        clock = SimulatedClock() if number >= 2 else MonotonicClock()  # rates and threads need real time
        is_again = number == 1
        check, what = ("reopens", "opening it again") if is_again else ("robot_raises", _RAISES)
        if not seen.tried(partial(opened, [look], clock), check, what=what):
            return
        if is_again:
            seen.passed(what, "")


def _is_whole(seen: Examination, robot: TaskRobot) -> bool:
    missing = [name for name in MEMBERS if inspect.getattr_static(robot, name, _MISSING) is _MISSING]
    if missing:
        message = f"{type(robot).__name__} has no {', '.join(missing)}"
        seen.found("robot_lacks", "error", message, what=_RAISES)
    return not missing


def _observes(seen: Examination, setup: RobotSetup, robot: TaskRobot, clock: Clock) -> None:
    """Judge limits, rates, stamps, pictures and states, as a dry run does."""
    spec = robot.robot_spec
    try:
        setup.limits.require_fitting(spec)
    except ValueError as error:
        seen.found("robot_limits", "error", str(error), what="observation", place="limits")
    else:
        _note(seen, unlimited(setup.limits))
    robot.warm_up()
    looked = observe(robot, clock=clock, seconds=OBSERVE_S)
    for one in observation_checks(looked, spec=spec, watchdog=WatchdogLimits(), stream=StreamLimits()):
        _note(seen, one)
    readings = looked.readings
    if len(readings) > 1:
        first, last = readings[0], readings[-1]
        reused = [name for name, frame in first.images.items() if np.shares_memory(frame, last.images[name])]
        if np.shares_memory(first.state, last.state):
            reused.append("the state")
        if reused and last.stamp > first.stamp:
            message = f"{', '.join(reused)}: the array of the first reading is that of the last"
            seen.found("reading_reused", "error", message, what="readings are kept")
        else:
            seen.passed("readings are kept", f"{len(readings)} of them")
        for name in spec.camera_names:
            caption = f"camera {name}, first and last picture of {OBSERVE_S:g} s"
            seen.strips.append((caption, [first.images[name], last.images[name]]))


def _note(seen: Examination, one: Check) -> None:
    """Note a line of the dry run."""
    if one.level == GOOD:
        seen.passed("observation", one.found, place=one.what)
        return
    severity = "error" if one.level == BAD else "warning"
    message = f"{one.found}; wanted: {one.wanted}"
    seen.found("robot_observes", severity, message, what="observation", place=one.what, advice=one.advice)


def _stops_from_a_thread(seen: Examination, robot: TaskRobot, clock: Clock) -> None:
    """Stop the robot twice from another thread while this one observes."""
    what, took, errors = "a stop from another thread", [], []
    robot.observe()

    def stop_twice() -> None:
        try:
            for _ in range(2):
                began = clock.now()
                robot.stop()
                took.append(clock.now() - began)
        except Exception as error:  # noqa: BLE001  whatever a driver raises is what is looked for
            errors.append(error)

    thread = threading.Thread(target=stop_twice, daemon=True)
    thread.start()
    until = clock.now() + STOP_WAIT_S
    while thread.is_alive() and clock.now() < until:
        robot.observe()
    if errors:
        seen.found("robot_raises", "error", raised(errors[0]), what=what)
    elif len(took) < 2 or max(took) > STOP_S:
        lasted = f"{max(took):.2f} s" if len(took) == 2 else f"more than {STOP_WAIT_S:g} s"
        seen.found("stop_slow", "error", f"it took {lasted} next to observations", what=what)
    else:
        seen.passed(what, f"twice, {1e3 * max(took):.0f} ms at most, while it is observed")


def _move(robot: TaskRobot, setup: RobotSetup, name: str, clock: Clock) -> tuple[float, float]:
    """Command one channel to move a little, the others to stay; return the way commanded and measured.

    Raises:
        UnsafeStart: the robot stands outside of its limits.
    """
    spec, limits = robot.robot_spec, setup.limits
    column, channel = spec.action_names.index(name), limits.channels[name]
    safety = SafetyFilter(spec=spec, limits=limits)
    safety.reset(robot.observe().state)
    before, began = _measured(robot, setup, name), safety.position
    step = _SPEED * channel.velocity / spec.control_hz
    if began[column] > (channel.low + channel.high) / 2:
        step = -step
    pacer = Pacer(clock=clock, period_s=1.0 / spec.control_hz)
    for _ in range(max(2, round(MOVE_S * spec.control_hz))):
        pacer.wait()
        robot.observe()
        position = safety.position
        wanted = np.where(safety.absolute, position, 0.0)
        wanted[column] = position[column] + step if safety.absolute[column] else step / spec.change_per_action
        robot.command(safety.step(wanted).action)
    pacer.wait()  # the last command has its period
    return float(safety.position[column] - began[column]), _measured(robot, setup, name) - before


def _measured(robot: TaskRobot, setup: RobotSetup, name: str) -> float:
    measured_by = setup.limits.channels[name].measured_by
    assert measured_by is not None, "only such channels are tried"
    return float(robot.observe().state[robot.robot_spec.state_names.index(measured_by)])


def _still_moving(robot: TaskRobot, setup: RobotSetup, name: str, clock: Clock) -> tuple[bool, float]:
    """Send nothing for a while; return whether the channel moves at its end, and how far it came."""
    period_s, begin = 1.0 / robot.robot_spec.control_hz, clock.now()
    first = _measured(robot, setup, name)
    track = [first]
    while clock.now() < begin + SETTLE_S:
        clock.sleep_until(clock.now() + period_s)
        track.append(_measured(robot, setup, name))
    window = track[-max(2, round(WINDOW_S / period_s)) :]
    channel = setup.limits.channels[name]
    return max(window) - min(window) > _STILL * (channel.high - channel.low), track[-1] - first


def _moves(seen: Examination, setup: RobotSetup, name: str, robot: TaskRobot, clock: Clock) -> None:
    """Move a channel, look whether it moved as commanded, stop, and look whether it rests."""
    commanded, measured = _move(robot, setup, name, clock)
    unit = _unit(robot.robot_spec, name)
    robot.stop()
    where, message = f"action/{name}", f"{measured:.3g} of {commanded:.3g}{unit} measured"
    if robot.is_over:
        seen.not_tried(_COMMANDS, f"{name}: the episode was over before the motion was")
        return
    if measured * np.sign(commanded) < _FOLLOWS * abs(commanded):
        seen.found("command_ignored", "error", message, what=_COMMANDS, channel=where)
    else:
        seen.passed(_COMMANDS, message, place=name)
    goes_on, further = _still_moving(robot, setup, name, clock)
    if goes_on:
        message = f"{SETTLE_S:g} s after stop() it still moves, {further:.3g}{unit} further"
        seen.found("stop_does_nothing", "error", message, what=_STOPS, channel=where)
    else:
        seen.passed(_STOPS, f"{further:.2g}{unit} further", place=name)


def _ends_by_itself(seen: Examination, setup: RobotSetup, name: str, robot: TaskRobot, clock: Clock) -> None:
    """Move a channel, then send nothing more, as if the computer had failed."""
    _move(robot, setup, name, clock)
    goes_on, further = _still_moving(robot, setup, name, clock)
    robot.stop()
    unit = _unit(robot.robot_spec, name)
    if goes_on:
        message = f"{SETTLE_S:g} s after the last command it still moves, {further:.3g}{unit} further"
        seen.found("runs_on", "error", message, what=_ENDS, channel=f"action/{name}")
    else:
        seen.passed(_ENDS, f"{further:.2g}{unit} further", place=name)


def _unit(spec: RobotSpec, name: str) -> str:
    unit = spec.action[spec.action_names.index(name)].unit
    return "" if unit == "1" else f" {unit}"
