"""The control loop: observe, request, judge, act, record, once a control period, on an injected clock.

The controller puts its siblings together and decides nothing that they can: which state follows (states.py),
whether the robot may go on (watchdog.py), which action is next (chunking.py) and what of it may be sent
(safety.py). It never waits for a policy. People arm, start and stop it; only people lead it out of STOPPED
and FAULT. Not a safety-rated component: a robot needs an independent emergency stop.
"""

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from policies.runtime.chunk_queue import ChunkQueue
from policies.runtime.chunking import PlannedAction, Schedule
from policies.runtime.clock import Clock, Pacer, short_collections
from policies.runtime.delta_to_absolute import DeltaToAbsolute
from policies.runtime.execution import ActionExecutor
from policies.runtime.inference import Inference
from policies.runtime.observation_buffer import (
    ObservationBuffer,
    StreamLimits,
    checked_instruction,
    sensor_stamps,
)
from policies.runtime.recorder import PeriodRecord, Recorder, period_record
from policies.runtime.safety import SafeCommand, SafetyFilter, UnsafeStart
from policies.runtime.states import LATCHED, Event, State, next_state
from policies.runtime.watchdog import (
    HealthSnapshot,
    Level,
    Verdict,
    WatchdogLimits,
    assess,
    assess_observation,
)
from vla.interface import ObservationError, Robot

ROBOT_ERRORS: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError)  # what a driver may raise
_ACTIVE = (State.RUNNING, State.HOLD)


class ArmingRefused(ValueError):
    """The robot was not armed or started; the message states what to correct first."""


class Controller:
    """Drives one robot with one policy.

    Args:
        robot: observed and commanded from the thread that calls `tick` or `run`, and from no other.
        inference: where the policy runs.
        schedule: which action is executed when.
        safety: what may be sent.
        instruction: for the policy.
        frame_offsets: which frames the policy looks at; see `Policy.frame_offsets`.
        clock: of every deadline and stamp.
        watchdog: when to hold and when to stop.
        stream: when observations count as broken.
        delta_to_absolute: whether chunks of changes count from the commanded position at capture.
        recorder: where every period is written, if anywhere.
        robot_errors: exceptions of the robot's driver that mean that the robot failed.

    Attributes:
        state: what it is doing,
        reason: and why, in HOLD, STOPPED and FAULT.
        period_began: when the period under way began, on the clock given [s]; None before the first.

    Raises:
        BadInstruction: the instruction is empty, too long or holds control characters.
    """

    def __init__(
        self,
        *,
        robot: Robot,
        inference: Inference,
        schedule: Schedule,
        safety: SafetyFilter,
        instruction: str,
        frame_offsets: tuple[int, ...],
        clock: Clock,
        watchdog: WatchdogLimits,
        stream: StreamLimits,
        delta_to_absolute: bool = True,
        recorder: Recorder | None = None,
        robot_errors: tuple[type[Exception], ...] = ROBOT_ERRORS,
    ) -> None:
        spec = robot.robot_spec
        self.period_s = 1.0 / spec.control_hz
        self._robot, self._safety, self._clock = robot, safety, clock
        self._watchdog, self._recorder, self._robot_errors = watchdog, recorder, robot_errors
        self._buffer = ObservationBuffer(spec=spec, limits=stream, frame_offsets=frame_offsets)
        self._deltas = DeltaToAbsolute(spec=spec, absolute=safety.absolute, is_enabled=delta_to_absolute)
        self._queue = ChunkQueue(
            inference=inference,
            schedule=schedule,
            instruction=checked_instruction(instruction),
            num_actions=len(spec.action),
            deltas=self._deltas,
            require_sane=safety.require_sane,
        )
        self._executor = ActionExecutor(queue=self._queue, deltas=self._deltas, safety=safety)
        self._estop = threading.Event()
        self._estop_reason = "emergency stop"
        self._unreadable_since: float | None = None
        self._unreadable = ""
        self.period_began: float | None = None
        self.state, self.reason = State.IDLE, ""
        self._counts: Counter[str] = Counter()
        self._target: Float32[np.ndarray, " action"] | None = None  # requested in this period
        self._is_braking = self._must_dump = False
        self._is_commanded = False  # since it was stopped last
        self._start: list[float] | None = None  # commanded position, for the first period after a start
        self._pacer = Pacer(clock=clock, period_s=self.period_s)
        self._num_periods = 0
        self._events: list[str] = []
        self._inference_s: float | None = None

    @property
    def counts(self) -> Counter[str]:
        """What has been counted: chunks, unusable answers, refusals, clamps by kind, missed periods."""
        clamps = Counter({f"clamped {kind}": count for kind, count in self._safety.counts.items()})
        missed = Counter({"missed periods": self._pacer.num_missed})
        return self._counts + self._queue.counts + clamps + missed

    @property
    def is_at_rest(self) -> bool:
        """Whether no stop is under way: true also while the policy is in command."""
        return not self._is_braking

    @property
    def is_commanding(self) -> bool:
        """Whether the robot may be moving by its commands, so that it must be stopped if the loop ends."""
        return self._is_commanded or self._is_braking or self.state in _ACTIVE

    # What people do.

    def arm(self) -> None:
        """Get ready. Observations must be coming in, so call `tick` (or `run`) for a while before.

        Raises:
            ArmingRefused: the state is not IDLE, observations are not live, or the robot is out of range.
        """
        self._arm(Event.ARM, (State.IDLE,))

    def rearm(self) -> None:
        """Leave STOPPED or FAULT, after an operator has found the cause; releases the emergency stop.

        Raises:
            ArmingRefused: there is nothing to leave, or what `arm` checks does not hold.
        """
        self._arm(Event.REARM, LATCHED)

    def _arm(self, event: Event, states: tuple[State, ...]) -> None:
        now = self._clock.now()
        if self.state not in states:
            names = " or ".join(state.value for state in states)
            why = f" ({self.reason})" if self.reason else ""
            raise ArmingRefused(
                f"cannot {event.value}: the controller is {self.state.value}{why}; it must be {names}"
            )
        if self._is_braking:
            raise ArmingRefused("the robot is still coming to rest")
        verdict = assess_observation(now, self._health(), self._watchdog)
        is_live = self._buffer.is_live(now, max_age_s=self._watchdog.observation_hold_s)
        if verdict.level is not Level.OK or not is_live:
            raise ArmingRefused(f"observations are not live: {verdict.reason or 'too few have arrived'}")
        if self._recorder is not None and self._recorder.problem:
            raise ArmingRefused(self._recorder.problem)
        self._take_pose()
        if event is Event.REARM:
            self._estop.clear()
            self._estop_reason = "emergency stop"
        self._go(event, "by an operator")

    def _take_pose(self) -> None:
        assert self._buffer.newest is not None, "live observations were checked"
        try:
            self._safety.reset(self._buffer.newest.state)
        except UnsafeStart as error:
            raise ArmingRefused(str(error)) from error

    def start(self) -> None:
        """Begin to execute the policy's actions.

        Raises:
            ArmingRefused: the controller is not ARMED, or the robot has left its range since.
        """
        if self.state is not State.ARMED:
            raise ArmingRefused(f"cannot start: the controller is {self.state.value}; it must be ARMED")
        self._take_pose()
        self._start = [float(value) for value in self._safety.position]
        self._deltas.clear()
        self._queue.start(self._clock.now())
        self._go(Event.START, "")

    def finish(self) -> None:
        """Come to rest: the task is over."""
        self._go(Event.FINISH, "the task is over")

    def stop(self, reason: str) -> None:
        """Come to rest within limits and stay STOPPED."""
        self._go(Event.STOP, reason)

    def press_emergency_stop(self) -> None:
        """Have the robot stopped in the period under way or the next; may be called from any thread."""
        self._estop.set()

    def interrupt(self, reason: str) -> None:
        """Stop the robot at once, from another thread than that of the loop, which does not come round.

        The loop, if it ever goes on, finds the emergency stop pressed for this reason.
        """
        self._estop_reason = reason
        self._estop.set()
        self._stop_robot_anyhow()

    # What happens every period.

    def run(self, on_period: Callable[[PeriodRecord], bool]) -> None:
        """Run periods at the robot's rate until `on_period` returns false for one.

        Whatever ends this early, an error of any part or Ctrl-C, stops the robot before it goes on its way;
        the controller is in FAULT then, or STOPPED.
        """
        with short_collections():
            try:
                while True:
                    self._pacer.wait()
                    if not on_period(self.tick()):
                        return
            except BaseException as error:
                self._abandon(error)
                raise

    def _abandon(self, error: BaseException) -> None:
        """Stop the robot and record it, since the loop ends by an error."""
        if not self.is_commanding:
            return
        problem = self._stop_robot_anyhow()
        self._is_braking = self._is_commanded = False
        is_person = isinstance(error, KeyboardInterrupt | SystemExit)
        reason = "interrupted" if is_person else f"{type(error).__name__}: {error}"
        self._go(Event.STOP if is_person else Event.FAULT, reason, must_brake=False)
        if problem:
            self._events.append(problem)
        self._record(self._clock.now(), None, None)

    def _stop_robot_anyhow(self) -> str:
        """Stop the robot whatever its driver raises, and return that; the last resort."""
        try:
            self._robot.stop()
        except Exception as error:  # noqa: BLE001  anything: there is nobody left who could do better
            return f"the robot could not be stopped: {type(error).__name__}: {error}"
        return ""

    def tick(self) -> PeriodRecord:
        """Do one period's work, without waiting for anything, and return its record."""
        now = self.period_began = self._clock.now()
        self._obey_emergency_stop()
        self._observe(now)
        if self.state in _ACTIVE:
            self._executor.begin_period(now)
        self._request(now)
        planned = self._queue.next_action(now) if self.state in _ACTIVE else None
        may_move = self._judge(now, is_underrun=planned is None)
        command = self._act(now, planned if may_move else None)
        return self._record(now, planned, command)

    def _obey_emergency_stop(self) -> None:
        if self._estop.is_set():
            self._go(Event.ESTOP, self._estop_reason)
            if self._is_braking:  # stopped already, but gently
                self._stop_robot()

    def _observe(self, now: float) -> None:
        try:
            reading = self._robot.observe()
        except self._robot_errors as error:  # as if nothing had come, until it lasts
            self._unreadable_since = now if self._unreadable_since is None else self._unreadable_since
            self._unreadable = f"{type(error).__name__}: {error}"
            self._counts["failed observations"] += 1
            self._events.append(f"the robot could not be observed: {self._unreadable}")
            return
        self._unreadable_since = None
        try:
            is_new = self._buffer.take(reading, now)
        except ObservationError as error:  # as if it had not come: the age of the last good one will tell
            self._counts["rejected observations"] += 1
            self._events.append(f"rejected observation: {error}")
            return
        if is_new and self._recorder is not None:
            self._recorder.see(reading)

    def _request(self, now: float) -> None:
        self._collect(now)
        if self.state in _ACTIVE and self._sees(now):
            self._queue.request(self._buffer.history)
            self._collect(now)
        if self._queue.has_died:
            self._go(Event.FAULT, "the inference worker ended with an unexpected error")

    def _collect(self, now: float) -> None:
        inference_s, notes = self._queue.collect(now, is_active=self.state in _ACTIVE)
        self._inference_s = self._inference_s if inference_s is None else inference_s
        self._events += notes

    def _sees(self, now: float) -> bool:
        return assess_observation(now, self._health(), self._watchdog).level is Level.OK

    def _health(self) -> HealthSnapshot:
        newest = self._buffer.newest
        return dataclasses.replace(
            self._queue.health,
            sensor_stamps={} if newest is None else sensor_stamps(newest),
            stream=self._buffer.health,
            blind_since=self._buffer.blind_since,
            unreadable_since=self._unreadable_since,
            unreadable=self._unreadable,
            missed_share=self._pacer.missed_share,
        )

    def _judge(self, now: float, *, is_underrun: bool) -> bool:
        """Follow the watchdog's verdict and return whether a planned action may be tried."""
        if self.state is State.ARMED:
            verdict = assess_observation(now, self._health(), self._watchdog)
        elif self.state in _ACTIVE:
            self._queue.note_plan(now, is_empty=is_underrun, is_seeing=self._sees(now))
            verdict = assess(now, self._health(), self._watchdog)
        else:
            return False
        if self._recorder is not None and self._recorder.problem and verdict.level < Level.STOP:
            verdict = Verdict(level=Level.STOP, reason=self._recorder.problem)
        events = {Level.HOLD: Event.HOLD, Level.STOP: Event.STOP, Level.FAULT: Event.FAULT}
        if verdict.level in events:
            self._go(events[verdict.level], verdict.reason)
        return verdict.level is Level.OK

    def _act(self, now: float, planned: PlannedAction | None) -> SafeCommand | None:
        """Send the command of this period, if there is one, and return it."""
        command = None
        self._target = None
        if self.state in _ACTIVE:
            command = self._safety.hold() if planned is None else self._try(now, planned)
        elif self._is_braking:
            command = self._safety.hold()
        self._obey_emergency_stop()  # pressed since the period began
        if command is None or (self.state not in _ACTIVE and not self._is_braking):
            return None
        self._is_commanded = True
        try:
            self._robot.command(command.action)
        except self._robot_errors as error:
            self._go(Event.FAULT, f"the robot refused a command: {type(error).__name__}: {error}")
            return command
        if self._is_braking and self._safety.is_at_rest:
            self._stop_robot()
        return command

    def _try(self, now: float, planned: PlannedAction) -> SafeCommand:
        assert self._buffer.newest is not None, "active without an observation"
        execution = self._executor.execute(planned, now=now, state=self._buffer.newest.state)
        self._target = execution.target
        if execution.refusal:
            self._go(Event.HOLD, execution.refusal)
        else:
            self._go(Event.CLEAR, "")
        return execution.command

    def _go(self, event: Event, reason: str, *, must_brake: bool = True) -> None:
        """Follow an event; what changes nothing is ignored."""
        old, new = self.state, next_state(self.state, event)
        if new is old:
            return
        self.state, self.reason = new, reason
        self._counts[f"times {new.value}"] += 1
        self._events.append(f"{old.value} -> {new.value}" + (f": {reason}" if reason else ""))
        if new in (State.HOLD, State.IDLE, *LATCHED):
            self._queue.drop_plan(self._clock.now())
        self._must_dump |= new in LATCHED
        if not must_brake:
            return
        if event in (Event.ESTOP, Event.FAULT):
            self._stop_robot()
        elif old in _ACTIVE and new not in _ACTIVE:
            self._is_braking = True

    def _stop_robot(self) -> None:
        """Let the robot stop by its own means: it is at rest, or must be at once."""
        self._is_braking = self._is_commanded = False
        problem = self._stop_robot_anyhow()
        if problem:
            self._events.append(problem)
            self._go(Event.FAULT, problem)

    def _record(self, now: float, planned: PlannedAction | None, command: SafeCommand | None) -> PeriodRecord:
        record = period_record(
            index=self._num_periods,
            now=now,
            late_s=self._pacer.late_s,
            state=self.state.value,
            reason=self.reason,
            reading=self._buffer.newest,
            planned=None if self._target is None else planned,
            target=self._target,
            command=command,
            start=self._start,
            inference_s=self._inference_s,
            events=self._events,
            missed=self._pacer.num_missed,
        )
        self._start = None if command is not None else self._start
        self._events, self._inference_s, self._num_periods = [], None, self._num_periods + 1
        if self._recorder is not None:
            self._recorder.append(record)
            if self._must_dump and not self._is_braking:
                self._recorder.dump(f"before-{self.state.value.lower()}-{record.index}")
                self._must_dump = False
        return record
