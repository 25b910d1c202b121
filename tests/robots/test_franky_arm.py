"""What is sent to franky, with a small imitation of it: the motions, the errors, the hand."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from policies.robots import franky_arm
from policies.robots.franky_arm import Dynamics, FrankaFault, FrankyArm, FrankyMissing, load_franky

TIMEOUT_S = 10.0  # for the hand's thread, on the slowest of machines


class Limit:
    def __init__(self, value):
        self.max, self.value = np.full(7, value), np.full(7, value)

    def set(self, value):
        self.value = np.array(value)


class Motion:
    def __init__(self, *arguments, **settings):
        self.arguments, self.settings, self.callbacks = arguments, settings, []

    def register_callback(self, callback):
        self.callbacks.append(callback)


class JointVelocityWaypointMotion(Motion):
    pass


class JointVelocityStopMotion(Motion):
    pass


class JointMotion(Motion):
    pass


class FakeFranky:
    """The part of franky's module that is used, and the robot behind it."""

    Twist = staticmethod(lambda linear, angular: (linear, angular))
    Duration = staticmethod(lambda milliseconds: milliseconds)
    RelativeDynamicsFactor = staticmethod(lambda share: share)
    RealtimeConfig = SimpleNamespace(Enforce="enforce", Ignore="ignore")
    Frame = SimpleNamespace(EndEffector="ee")
    JointVelocityWaypointMotion = JointVelocityWaypointMotion
    JointVelocityStopMotion = JointVelocityStopMotion
    JointMotion = JointMotion

    def __init__(self):
        for name in franky_arm._EXCEPTIONS:
            setattr(self, name, type(name, (Exception,), {}))
        self.connected = []
        self.robot, self.gripper = FakeRobot(), FakeGripper()
        self.connect_error = None

    @staticmethod
    def JointVelocityWaypoint(target, hold_target_duration=0):  # noqa: N802 (franky's name)
        return np.array(target), hold_target_duration

    def Robot(self, address, *, realtime_config):  # noqa: N802
        if self.connect_error:
            raise self.connect_error
        self.connected.append((address, realtime_config))
        return self.robot

    def Gripper(self, _address):  # noqa: N802
        return self.gripper


class FakeRobot:
    def __init__(self):
        self.joint_velocity_limit = Limit(2.175)
        self.joint_acceleration_limit, self.joint_jerk_limit = Limit(10.0), Limit(5000.0)
        self.moves, self.joins = [], 0
        self.is_in_control = self.has_errors = False
        self.error = None
        self.model = SimpleNamespace(zero_jacobian=lambda _frame, _state: np.eye(6, 7))
        matrix = np.eye(4)
        matrix[:3, 3] = [0.5, 0.1, 0.2]
        self.state = SimpleNamespace(
            time=SimpleNamespace(to_sec=lambda: 1.25),
            q=np.array([0.0, -0.7, 0.0, -2.0, 0.0, 1.5, 0.7]),
            dq=np.zeros(7),
            O_T_EE=SimpleNamespace(translation=matrix[:3, 3], matrix=matrix),
            current_errors="[cartesian_reflex]",
        )

    def poll_motion(self):
        if self.error:
            raise self.error

    def move(self, motion, *, asynchronous):
        if self.error:
            raise self.error
        self.moves.append((motion, asynchronous))

    def join_motion(self):
        self.joins += 1

    def recover_from_errors(self):
        self.has_errors = False
        return True


class Command:
    """The future of a command to the hand."""

    def __init__(self):
        self.done, self.outcome = threading.Event(), True

    def end(self, outcome):
        self.outcome = outcome
        self.done.set()

    def wait(self, timeout):
        return self.done.wait(timeout)

    def get(self):
        assert self.done.is_set()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class FakeGripper:
    """Fingers that go where they are sent, as far as an object lets them; commands end when a test says so.

    As the real one: a movement onto an object never ends by itself, a second grasp is refused, and while
    something is grasped no movement begins.
    """

    def __init__(self):
        self.width, self.error, self.object_m = 0.04, None, 0.0
        self.moves, self.commands, self.moved = [], [], threading.Event()
        self.looks = threading.Semaphore(0)
        self.grasped = False
        self.refusal = RuntimeError

    @property
    def state(self):
        self.looks.release()
        if self.error:
            raise self.error
        now_s = time.monotonic()
        return SimpleNamespace(width=self.width, time=SimpleNamespace(to_sec=lambda: now_s))

    def _note(self, *what):
        self.moves.append(what)
        self.commands.append(Command())
        self.moved.set()
        return self.commands[-1]

    def move_async(self, width, speed):
        assert not self.grasped, "a hand that grasps does not move"
        return self._note(width, speed)

    def grasp_async(self, width, speed, force, epsilon_inner, epsilon_outer):
        assert not self.grasped, "a second grasp is an error"
        return self._note("grasp", width, speed, force, epsilon_outer)

    def stop(self):
        self.moves.append(("stop",))
        self.grasped = False
        for command in self.commands:
            if not command.done.is_set():
                command.end(self.refusal("Command aborted"))

    def wait_for(self, number):
        give_up = time.monotonic() + TIMEOUT_S
        while len(self.moves) < number and time.monotonic() < give_up:
            time.sleep(0.005)
        return self.moves

    def pass_looks(self, number=4):
        while self.looks.acquire(blocking=False):
            pass
        for _ in range(number):
            assert self.looks.acquire(timeout=TIMEOUT_S)


@pytest.fixture
def franky():
    return FakeFranky()


def arm(franky, **settings):
    given = {"address": "127.0.0.9", "has_gripper": False, "posture": np.zeros(7), "franky": franky}
    return FrankyArm(**(given | settings))


def test_a_missing_franky_is_named_with_what_installs_it(monkeypatch):
    def fail(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(franky_arm.importlib, "import_module", fail)
    with pytest.raises(FrankyMissing, match=r"vla-stack\[franka\].*make franka-setup"):
        load_franky()


def test_a_real_arm_needs_a_realtime_kernel_unless_told_otherwise(franky):
    arm(franky)
    arm(franky, needs_realtime=False)
    assert franky.connected == [("127.0.0.9", "enforce"), ("127.0.0.9", "ignore")]


def test_nobody_at_the_address_is_told(franky):
    franky.connect_error = franky.NetworkException("timeout")
    with pytest.raises(FrankaFault, match=r"no Franka arm at 127\.0\.0\.9: NetworkException: timeout"):
        arm(franky)


def test_the_arm_s_own_limits_are_set_before_it_moves(franky):
    arm(franky, dynamics=Dynamics(acceleration=2.0, jerk=300.0))
    np.testing.assert_array_equal(franky.robot.joint_acceleration_limit.value, np.full(7, 2.0))
    np.testing.assert_array_equal(franky.robot.joint_jerk_limit.value, np.full(7, 300.0))
    assert (franky.robot.joint_velocity_limit.value <= 2.175).all()
    with pytest.raises(ValueError, match="acceleration"):
        Dynamics(acceleration=20.0)


def test_a_reading_says_where_the_hand_is(franky):
    reading = arm(franky).read()
    np.testing.assert_array_equal(reading.position, [0.5, 0.1, 0.2])
    np.testing.assert_array_equal(reading.joints, franky.robot.state.q)
    assert (reading.time_s, reading.opening) == (1.25, 1.0)


def test_a_twist_is_held_for_a_while_and_ends_at_rest(franky):
    arm(franky, posture=franky.robot.state.q).follow(np.array([0.1, 0, 0]), np.zeros(3), for_s=0.075)
    motion, asynchronous = franky.robot.moves[0]
    (target, held_ms), (rest, _) = motion.arguments[0]
    assert asynchronous
    assert isinstance(motion, JointVelocityWaypointMotion)
    assert held_ms == 75
    assert target[0] == pytest.approx(0.1, rel=1e-2)  # the fake's Jacobian is the identity
    np.testing.assert_array_equal(rest, np.zeros(7))


def test_a_stop_is_sent_only_to_an_arm_that_is_driven(franky):
    one = arm(franky)
    one.stop()
    assert not franky.robot.moves
    franky.robot.is_in_control = True
    one.stop()
    assert [type(motion) for motion, _ in franky.robot.moves] == [JointVelocityStopMotion]


def test_a_stop_from_another_thread_passes_a_reading_that_waits(franky):
    one = arm(franky)
    franky.robot.is_in_control = True
    waiting, may_go_on = threading.Event(), threading.Event()

    def wait():
        waiting.set()
        assert may_go_on.wait(TIMEOUT_S)

    franky.robot.poll_motion = wait
    reading = threading.Thread(target=one.read)
    reading.start()
    assert waiting.wait(TIMEOUT_S)
    one.stop()
    one.stop()
    assert [type(motion) for motion, _ in franky.robot.moves] == [JointVelocityStopMotion] * 2
    may_go_on.set()
    reading.join(TIMEOUT_S)


def test_errors_are_raised_by_everything_until_recovered(franky):
    one = arm(franky)
    franky.robot.has_errors = True
    with pytest.raises(FrankaFault, match="cartesian_reflex"):
        one.read()
    with pytest.raises(FrankaFault, match="cartesian_reflex"):
        one.follow(np.zeros(3), np.zeros(3), for_s=0.1)
    assert not franky.robot.moves
    assert one.recover()
    one.read()
    franky.robot.error = franky.ControlException("Move command aborted")
    with pytest.raises(FrankaFault, match="ControlException: Move command aborted"):
        one.read()


def test_leaving_brings_the_arm_to_rest(franky):
    franky.robot.is_in_control = True
    with arm(franky) as one:
        one.go_to([0.1] * 7)
        assert franky.robot.moves[-1][1] is False  # waits until it is there
    assert isinstance(franky.robot.moves[-1][0], JointVelocityStopMotion)
    assert franky.robot.joins == 2


def test_leaving_an_arm_in_error_still_closes_all_and_raises_the_first_fault(franky):
    one = arm(franky, has_gripper=True)
    franky.robot.is_in_control = True
    franky.robot.error = franky.ControlException("reflex")
    with pytest.raises(FrankaFault, match="reflex"):
        one.close()
    assert not one._hand._thread.is_alive()
    assert franky.robot.joins == 1


def test_an_arm_that_cannot_even_be_asked_still_closes_its_hand(franky):
    one = arm(franky, has_gripper=True)

    class Gone(FakeRobot):
        @property
        def is_in_control(self):
            raise franky.NetworkException("gone")

        @is_in_control.setter
        def is_in_control(self, value):
            pass

    one._robot = Gone()
    with pytest.raises(FrankaFault, match="NetworkException: gone"):
        one.close()
    assert not one._hand._thread.is_alive()
    assert one._robot.joins == 1


def test_a_fault_on_leaving_does_not_hide_what_went_wrong_before(franky):
    franky.robot.is_in_control = True

    def drive():
        with arm(franky):
            franky.robot.error = franky.ControlException("reflex")
            raise KeyError("camera")

    with pytest.raises(KeyError, match="camera") as caught:
        drive()
    assert "could not be brought to rest: ControlException: reflex" in caught.value.__notes__[0]


def test_every_setpoint_can_be_listened_to(franky):
    received = []
    one = arm(franky, on_setpoint=received.append)
    one.follow(np.array([0.1, 0, 0]), np.zeros(3), for_s=0.075)
    report = franky.robot.moves[0][0].callbacks[0]
    report(franky.robot.state, None, None, None, SimpleNamespace(dq=[0.1] * 7))
    assert received[0].time_s == 1.25
    np.testing.assert_array_equal(received[0].commanded, np.full(7, 0.1))


@pytest.fixture
def hand(franky):
    """A gripper whose hand is driven, and what sends wishes to it."""
    franky.gripper.refusal = franky.CommandException
    with arm(franky, has_gripper=True, gripper_speed=0.1, gripper_force=30.0) as one:
        yield franky.gripper, one


GRASP = ("grasp", 0.0, 0.1, 30.0, 0.08)


def test_the_hand_carries_out_the_newest_wish_when_the_one_before_is(hand):
    gripper, one = hand
    assert one.read().opening == pytest.approx(0.5)
    one.grip(0.6)
    assert gripper.wait_for(1) == [(pytest.approx(0.048), 0.1)]
    one.grip(0.8)
    one.grip(1.0)  # before the first has ended
    gripper.pass_looks()
    assert len(gripper.moves) == 1
    gripper.width = 0.048
    gripper.commands[0].end(True)
    assert gripper.wait_for(2)[1:] == [(0.08, 0.1)]


def test_a_wish_in_the_other_direction_waits_for_the_fingers_unless_they_are_stopped(monkeypatch, hand):
    monkeypatch.setattr(franky_arm, "_STALLED_S", 0.2)
    gripper, one = hand
    one.grip(1.0)
    gripper.wait_for(1)
    one.grip(0.0)
    for step in range(8):
        gripper.width = 0.05 + 0.001 * step
        gripper.pass_looks(2)
    assert gripper.moves == [(0.08, 0.1)]
    assert gripper.wait_for(3) == [(0.08, 0.1), ("stop",), GRASP]


def test_an_object_is_grasped_with_force_once_and_let_go_whatever_its_size(hand):
    gripper, one = hand
    one.grip(0.0)
    assert gripper.wait_for(1) == [GRASP]
    gripper.width = 0.035
    gripper.grasped = True
    gripper.commands[0].end(True)
    for wish in (0.1, 0.3, 0.0):  # all narrower than the object
        one.grip(wish)
        gripper.pass_looks()
    assert gripper.moves == [GRASP]
    one.grip(1.0)
    assert gripper.wait_for(3)[1:] == [("stop",), (0.08, 0.1)]


def test_a_stop_of_the_arm_lets_nothing_fall(franky, hand):
    gripper, one = hand
    one.grip(0.0)
    gripper.wait_for(1)
    gripper.grasped = True
    gripper.commands[0].end(True)
    franky.robot.is_in_control = True
    one.stop()
    one.close()
    assert gripper.moves == [GRASP]


@pytest.mark.parametrize("outcome", [False, "refused"])
def test_a_grasp_of_nothing_is_no_failure_and_the_hand_opens_again(franky, hand, outcome):
    gripper, one = hand
    one.grip(0.0)
    gripper.wait_for(1)
    gripper.width = 0.0
    gripper.commands[0].end(franky.CommandException("Command failed!") if outcome else False)
    gripper.pass_looks()
    assert one.read().opening == 0.0
    one.grip(1.0)
    assert gripper.wait_for(2)[1:] == [(0.08, 0.1)]


@pytest.mark.parametrize("ends", [False, True])
def test_fingers_that_meet_an_object_on_their_way_grasp_it(monkeypatch, hand, ends):
    monkeypatch.setattr(franky_arm, "_STALLED_S", 0.1)
    gripper, one = hand
    one.grip(0.25)
    gripper.wait_for(1)
    gripper.width = 0.035  # and no further
    if ends:
        gripper.commands[0].end(True)
    moves = [move for move in gripper.wait_for(2 if ends else 3) if move != ("stop",)]
    assert moves == [(0.02, 0.1), ("grasp", 0.02, 0.1, 30.0, pytest.approx(0.06))]


def test_a_movement_that_never_ends_does_not_keep_the_hand_from_opening(monkeypatch, hand):
    monkeypatch.setattr(franky_arm, "_STALLED_S", 0.2)
    gripper, one = hand
    one.grip(0.25)
    gripper.wait_for(1)
    gripper.width = 0.035
    one.grip(1.0)
    assert gripper.wait_for(3) == [(0.02, 0.1), ("stop",), (0.08, 0.1)]


def test_a_hand_that_fails_is_told_by_the_next_reading(franky):
    with arm(franky, has_gripper=True) as one:
        franky.gripper.error = franky.NetworkException("gone")
        one._hand._thread.join(TIMEOUT_S)
        with pytest.raises(FrankaFault, match="the hand has failed: NetworkException: gone"):
            one.read()
