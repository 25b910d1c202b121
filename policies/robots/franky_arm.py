"""A Franka FR3 reached through franky (`pip install 'vla-stack[franka]'`), or a simulator of its protocol.

The only file that knows franky. Its C++ thread owns the 1 kHz loop and plans every twist with Ruckig within
`Dynamics`; each command is a velocity that is held for a while and then a stop, so that an arm that receives
nothing more comes to rest by itself. Velocities are streamed rather than positions because franky continues
exactly from the last velocity that it sent, while a stream of positions starts over from the robot's own
estimate of its velocity; joints rather than the hand because their limits are then kept whatever the
posture, which is held too. Errors of the robot are raised, never cleared: `recover` is for people.
"""

import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Float64

from policies.robots.franka import ArmReading
from policies.robots.resolved_rate import FR3, JointRange, joint_velocities
from vla.registry import Range, check_attributes

GRASP_FORCE_N = 20.0
MAX_WIDTH_M = 0.08  # between the open fingers of the Franka Hand
_GRIP_CHANGE_M = 0.004  # smaller changes of a request are left out: each makes the hand stop and go
_GRIPPER_POLL_S = 0.02
_CLOSED_M = 0.008  # who wishes the fingers this near to one another wants to hold what is between them
_STALLED_M, _STALLED_S = 0.0005, 1.0  # fingers that move less in this time have met something, or arrived
_ABORT_S = 2.0  # for a command that was stopped to end
_SLOWEST = 20.0  # times slower than real time than which no simulator is waited for
_EXCEPTIONS = (
    "ControlException",
    "CommandException",
    "NetworkException",
    "ProtocolException",
    "RealtimeException",
    "InvalidOperationException",
    "InvalidMotionTypeException",
    "IncompatibleVersionException",
    "ModelException",
    "GripperException",
)


class FrankaFault(RuntimeError):
    """The arm is in error, or refuses; look at it, then call `FrankyArm.recover`."""


class FrankyMissing(RuntimeError):
    """franky is not installed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dynamics:
    """How hard every joint may move; the robot itself stands 10 rad/s2 and 5000 rad/s3 (libfranka 0.21.2).

    A new command starts from the acceleration that the robot reports. Where that is an estimate that comes
    late, as in franky-sim, the difference counts as jerk in one millisecond: mostly less than the
    acceleration limit, at worst twice that. Hence 4.5 rad/s2, although the robot could do more.
    """

    acceleration: Annotated[float, Range(0, 10, open_low=True), "of every joint [rad/s2]"] = 4.5
    jerk: Annotated[float, Range(0, 5000, open_low=True), "of every joint [rad/s3]"] = 600.0
    to_start: Annotated[
        float,
        Range(0, 1, open_low=True),
        "share of these, and of the joints' speeds, for going to the start",
    ] = 0.3

    def __post_init__(self) -> None:
        check_attributes(self, where="dynamics")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setpoint:
    """What franky sent to the arm in one millisecond, and where the arm was."""

    time_s: float  # of the arm's clock
    commanded: Float64[np.ndarray, "7"]  # [rad/s]
    joints: Float64[np.ndarray, "7"]  # measured [rad]
    speeds: Float64[np.ndarray, "7"]  # measured [rad/s]


def load_franky() -> ModuleType:
    """Import franky.

    Raises:
        FrankyMissing: it is not installed; the message says what to do.
    """
    try:
        return importlib.import_module("franky")
    except ImportError as error:
        raise FrankyMissing(
            f"a Franka arm needs franky-control ({error}); run: pip install 'vla-stack[franka]', or "
            "`make franka-setup` for an environment of its own with a simulator"
        ) from error


class FrankyArm:
    """An `Arm` (franka.py). A context manager: leaving it brings the arm to rest and disconnects.

    Args:
        address: of the robot, such as 172.16.0.2, or of franky-sim.
        posture: joint positions [rad] that the arm keeps near; those it was last sent to by `go_to` if None.
        dynamics: how hard the arm may move.
        limits: ranges and speeds of the joints.
        has_gripper: whether a Franka Hand is mounted; if not, the gripper counts as open.
        gripper_speed: of the fingers [m/s].
        gripper_force: with which an object is grasped [N]; the Franka Hand holds with up to 70.
        needs_realtime: refuse to run without a real-time kernel, as a real arm should; a simulator does not.
        on_setpoint: called with every millisecond's setpoint, in a thread of franky's; for recordings.
        franky: the module, for tests; imported if None.

    Raises:
        FrankyMissing: franky is not installed.
        FrankaFault: nobody answers at the address, or the robot refuses.
    """

    def __init__(
        self,
        *,
        address: str,
        posture: Sequence[float] | Float[np.ndarray, "7"] | None = None,
        dynamics: Dynamics | None = None,
        limits: JointRange = FR3,
        has_gripper: bool = True,
        gripper_speed: float = 0.05,
        gripper_force: float = GRASP_FORCE_N,
        needs_realtime: bool = True,
        on_setpoint: Callable[[Setpoint], None] | None = None,
        franky: Any = None,
    ) -> None:
        self._franky: Any = load_franky() if franky is None else franky
        self._errors: tuple[type[Exception], ...] = tuple(getattr(self._franky, n) for n in _EXCEPTIONS)
        dynamics = Dynamics() if dynamics is None else dynamics
        self._to_start = self._franky.RelativeDynamicsFactor(dynamics.to_start)
        self._posture = None if posture is None else np.array(posture, np.float64)
        self._limits, self._on_setpoint = limits, on_setpoint
        config = self._franky.RealtimeConfig
        realtime = config.Enforce if needs_realtime else config.Ignore
        try:
            self._robot: Any = self._franky.Robot(address, realtime_config=realtime)
            hand = self._franky.Gripper(address) if has_gripper else None
        except self._errors as error:
            raise FrankaFault(f"no Franka arm at {address}: {type(error).__name__}: {error}") from error
        self.newest_time_s = 0.0  # the arm's clock at the newest reading
        self._robot.joint_velocity_limit.set(np.minimum(self._robot.joint_velocity_limit.max, limits.speed))
        self._robot.joint_acceleration_limit.set(np.full(7, dynamics.acceleration))
        self._robot.joint_jerk_limit.set(np.full(7, dynamics.jerk))
        self._hand = None
        if hand is not None:
            self._hand = Hand(
                gripper=hand,
                speed=gripper_speed,
                force=gripper_force,
                errors=self._errors,
                refusal=self._franky.CommandException,
            )

    def read(self) -> ArmReading:
        """Return the newest reading. Waits for one, some milliseconds, while no motion is under way.

        Raises:
            FrankaFault: the arm or its hand is in error; the message names the robot's error flags.
        """
        state = self._state()
        self.newest_time_s = float(state.time.to_sec())
        return ArmReading(
            time_s=self.newest_time_s,
            joints=np.array(state.q, np.float64).reshape(7),
            position=np.array(state.O_T_EE.translation, np.float64).reshape(3),
            rotation=np.array(state.O_T_EE.matrix, np.float64)[:3, :3],
            opening=1.0 if self._hand is None else self._hand.opening,
        )

    def follow(
        self, linear: Float64[np.ndarray, "3"], angular: Float64[np.ndarray, "3"], *, for_s: float
    ) -> None:
        """Move at a twist [m/s, rad/s, base frame] for a while, then come to rest unless commanded otherwise.

        Raises:
            FrankaFault: the arm is in error.
        """
        state = self._state()
        joints = np.array(state.q, np.float64).reshape(7)
        velocity = joint_velocities(
            np.concatenate([linear, angular]),
            jacobian=np.array(self._robot.model.zero_jacobian(self._franky.Frame.EndEffector, state)),
            joints=joints,
            posture=joints if self._posture is None else self._posture,
            limits=self._limits,
        )
        waypoint, hold = self._franky.JointVelocityWaypoint, self._franky.Duration(round(1000 * for_s))
        motion = self._franky.JointVelocityWaypointMotion(
            [waypoint(velocity, hold_target_duration=hold), waypoint(np.zeros(7))]
        )
        self._move(motion, asynchronous=True)

    def grip(self, opening: float) -> None:
        """Open or close the gripper to a share of its width; returns at once."""
        if self._hand is not None:
            self._hand.move(opening)

    def stop(self) -> None:
        """Begin to come to rest, limited in jerk; returns at once, safe to call more than once.

        Raises:
            FrankaFault: the arm is in error.
        """
        try:
            is_driven = bool(self._robot.is_in_control)
        except self._errors as error:
            raise FrankaFault(f"{type(error).__name__}: {error}") from error
        if is_driven:
            motion = self._franky.JointVelocityStopMotion()
            self._move(motion, asynchronous=True)

    def go_to(self, joints: Sequence[float] | Float[np.ndarray, "7"]) -> None:
        """Go to joint positions [rad], slowly, and return when there. Make sure that the way is clear.

        Raises:
            FrankaFault: the arm is in error.
        """
        self._join()
        self._posture = np.array(joints, np.float64)
        motion = self._franky.JointMotion([float(q) for q in joints], relative_dynamics_factor=self._to_start)
        self._move(motion, asynchronous=False)

    def recover(self) -> bool:
        """Clear the arm's errors, after a person has looked what caused them; return whether that worked.

        Raises:
            FrankaFault: the robot refuses.
        """
        try:
            return bool(self._robot.recover_from_errors())
        except self._errors as error:
            raise FrankaFault(f"the arm does not recover: {error}") from error

    def close(self) -> None:
        """Bring the arm to rest, then the hand, and disconnect; safe to call more than once.

        A step that fails does not keep the next from being tried.

        Raises:
            FrankaFault: the arm could not be brought to rest; the first thing that failed.
        """
        hand = [] if self._hand is None else [self._hand.close]
        faults: list[FrankaFault] = []
        for step in (self.stop, *hand, self._join):
            try:
                step()
            except FrankaFault as fault:
                faults.append(fault)
        if faults:
            raise faults[0]

    def __enter__(self) -> "FrankyArm":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            self.close()
        except FrankaFault as fault:
            if error is None:
                raise
            error.add_note(f"on leaving, the arm could not be brought to rest: {fault}")

    def _state(self) -> Any:
        try:
            self._robot.poll_motion()  # raises what a motion ended of
            state = self._robot.state
        except self._errors as error:
            raise FrankaFault(f"{type(error).__name__}: {error}") from error
        if self._robot.has_errors:
            raise FrankaFault(f"the arm is in error: {state.current_errors}")
        return state

    def _move(self, motion: Any, *, asynchronous: bool) -> None:
        if self._on_setpoint is not None and not isinstance(motion, self._franky.JointMotion):
            motion.register_callback(self._report_setpoint)
        try:
            self._robot.move(motion, asynchronous=asynchronous)
        except self._errors as error:
            raise FrankaFault(f"{type(error).__name__}: {error}") from error

    def _join(self) -> None:
        try:
            self._robot.join_motion()
        except self._errors as error:
            raise FrankaFault(f"{type(error).__name__}: {error}") from error

    def _report_setpoint(self, state: Any, _step: Any, _relative: Any, _absolute: Any, signal: Any) -> None:
        assert self._on_setpoint is not None
        self._on_setpoint(
            Setpoint(
                time_s=float(state.time.to_sec()),
                commanded=np.array(signal.dq, np.float64).reshape(7),
                joints=np.array(state.q, np.float64).reshape(7),
                speeds=np.array(state.dq, np.float64).reshape(7),
            )
        )


class Hand:
    """The Franka Hand, in a thread of its own: a command to it takes until the fingers have arrived.

    The newest wish is carried out when the one before is, or when the fingers are stopped by something.
    Fingers that are to close, or that are stopped by an object on their way, grasp with a force, which the
    hand keeps up by itself until a wish is wider than what it holds. A command that does not succeed is no
    failure: on an object of unknown size that is how a movement ends. What does fail is raised by the next
    look at `opening`.

    Args:
        gripper: franky's.
        speed: of the fingers [m/s].
        force: of a grasp [N].
        errors: exceptions of franky that mean that the hand has failed.
        refusal: its exception for a command that did not succeed.
    """

    def __init__(
        self,
        *,
        gripper: Any,
        speed: float,
        force: float,
        errors: tuple[type[Exception], ...],
        refusal: type[Exception],
    ) -> None:
        self._gripper, self._speed, self._force = gripper, speed, force
        self._errors, self._refusal = errors, refusal
        self._lock = threading.Lock()
        self._wanted_m: float | None = None
        self._failure = ""
        self._width_m = float(gripper.state.width)
        self._asked_m = self._width_m  # the last command
        self._under_way: Any = None  # its future
        self._is_grasp = False  # whether it was a grasp that has not failed
        self._moved_at_m, self._moved_at_s = self._width_m, 0.0  # where and, on the hand's clock, since when
        self._is_stalled = False  # whether the fingers have stood still for a while
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="franka-hand", daemon=True)
        self._thread.start()

    @property
    def opening(self) -> float:
        """How far the fingers are apart, as a share of their greatest width.

        Raises:
            FrankaFault: the hand has failed.
        """
        with self._lock:
            if self._failure:
                raise FrankaFault(f"the hand has failed: {self._failure}")
            if not (self._thread.is_alive() or self._is_closed.is_set()):
                raise FrankaFault("the hand's thread has ended by an unexpected error; see above")
            return float(np.clip(self._width_m / MAX_WIDTH_M, 0.0, 1.0))

    def move(self, opening: float) -> None:
        """Note a wish."""
        with self._lock:
            self._wanted_m = float(np.clip(opening, 0.0, 1.0)) * MAX_WIDTH_M

    def close(self) -> None:
        """End the thread once the command under way has ended; what is grasped stays grasped."""
        self._is_closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closed.wait(_GRIPPER_POLL_S):
            try:
                self._look()
            except self._errors as error:
                with self._lock:
                    self._failure = f"{type(error).__name__}: {error}"
                return

    def _look(self) -> None:
        """Note where the fingers are and do what is to be done now."""
        state = self._gripper.state
        width, now_s = float(state.width), float(state.time.to_sec())
        with self._lock:
            self._width_m, wanted = width, self._wanted_m
        if abs(width - self._moved_at_m) > _STALLED_M:
            self._moved_at_m, self._moved_at_s = width, now_s
        self._is_stalled = now_s - self._moved_at_s >= _STALLED_S
        if self._under_way is not None and self._under_way.wait(0.0):
            self._end_command()
        if wanted is None:
            return
        if self._is_grasp and wanted <= width + _GRIP_CHANGE_M / 2:
            return  # it holds, or is about to; a second grasp would be an error
        if abs(wanted - self._asked_m) > _GRIP_CHANGE_M:
            if self._under_way is None or self._is_stalled:
                self._begin(wanted, is_grasp=wanted <= _CLOSED_M)
        elif self._asked_m < width - _GRIP_CHANGE_M and self._is_stalled:
            self._begin(wanted, is_grasp=True)  # there is an object in the way

    def _begin(self, wanted: float, *, is_grasp: bool) -> None:
        """Send a command, after stopping what the hand does."""
        if self._under_way is not None or self._is_grasp:
            self._stop()
        self._asked_m, self._is_grasp = wanted, is_grasp
        state = self._gripper.state
        self._moved_at_m, self._moved_at_s = float(state.width), float(state.time.to_sec())
        if is_grasp:
            self._under_way = self._gripper.grasp_async(
                wanted, self._speed, self._force, epsilon_inner=wanted, epsilon_outer=MAX_WIDTH_M - wanted
            )
        else:
            self._under_way = self._gripper.move_async(wanted, self._speed)

    def _stop(self) -> None:
        with contextlib.suppress(self._refusal):
            self._gripper.stop()
        if self._under_way is not None and self._under_way.wait(_ABORT_S):
            self._end_command()
        self._under_way, self._is_grasp = None, False

    def _end_command(self) -> None:
        """Take the outcome of the command that has ended."""
        try:
            succeeded = bool(self._under_way.get())
        except self._refusal:
            succeeded = False
        self._under_way = None
        self._is_grasp = self._is_grasp and succeeded


def wait_at_rest(arm: FrankyArm, *, speed: float = 0.002, timeout_s: float = 5.0) -> None:
    """Wait until an arm stands still; for scripts, not for control loops.

    The time is the arm's own, which a simulator on a busy machine lets pass slowly.

    Raises:
        FrankaFault: it does not come to rest in time.
    """
    give_up, before = time.monotonic() + _SLOWEST * timeout_s, arm.read()
    until_s = before.time_s + timeout_s
    while before.time_s < until_s and time.monotonic() < give_up:
        time.sleep(0.05)
        after = arm.read()
        passed = after.time_s - before.time_s
        if passed > 0.03:
            if float(np.abs(after.joints - before.joints).max()) < speed * passed:
                return
            before = after
    raise FrankaFault(f"the arm still moves after {timeout_s} s")
