"""A LeRobot driver as a robot, tried with an imitation that has its four methods."""

import threading

import numpy as np
import pytest

from policies.robots.lerobot import LerobotDevice, LerobotRobot, RobotNotStopped
from policies.runtime.clock import SimulatedClock
from vla.interface import ObservationError
from vla.spec import CameraSpec, Channel, RobotSpec

KEYS = ("shoulder_pan.pos", "gripper.pos")


class Driver:
    """As lerobot's SO-101 follower: flat dictionaries, degrees and 0 to 100."""

    def __init__(self):
        self.is_connected = False
        self.observation_features = {KEYS[0]: float, KEYS[1]: float, "front": (6, 8, 3)}
        self.action_features = {KEYS[0]: float, KEYS[1]: float}
        self.seen = {KEYS[0]: 12.5, KEYS[1]: 40.0, "front": np.full((6, 8, 3), 9, np.uint8)}
        self.sent = []

    def connect(self):
        self.is_connected = True

    def get_observation(self):
        return self.seen

    def send_action(self, action):
        self.sent.append(action)
        return action

    def disconnect(self):
        self.is_connected = False


def so101_spec(**changes):
    joints = (
        Channel(name="shoulder_pan", unit="deg", low=-100.0, high=100.0),
        Channel(name="gripper", unit="percent", low=0.0, high=100.0),
    )
    given = {
        "name": "so101",
        "cameras": (CameraSpec(name="front", height=6, width=8),),
        "state": joints,
        "action": joints,
        "control_hz": 30.0,
        "action_convention": "joint_target",
        "gripper_sign": "positive_opens",
    }
    return RobotSpec(**(given | changes))


def make(driver, *, spec=None, keys=KEYS, grippers=None):
    return LerobotRobot(
        device=driver,
        spec=so101_spec() if spec is None else spec,
        clock=SimulatedClock(start_s=3.0),
        state_keys=keys,
        action_keys=keys,
        grippers=grippers,
    )


def test_numbers_and_pictures_come_in_the_spec_s_order():
    driver = Driver()
    assert isinstance(driver, LerobotDevice)
    with make(driver) as robot:
        assert driver.is_connected
        reading = robot.observe()
    assert not driver.is_connected
    np.testing.assert_array_equal(reading.state, np.float32([12.5, 40.0]))
    assert reading.images["front"].shape == (6, 8, 3)
    assert reading.image_stamps == {"front": 3.0}


@pytest.mark.parametrize("grippers", [None, ("gripper",)])
def test_a_stop_lets_no_arm_sag_and_no_object_fall(grippers):
    driver = Driver()
    robot = make(driver, grippers=grippers)
    robot.command(np.float32([15.5, 10.0]))
    driver.seen |= {KEYS[0]: 12.5, KEYS[1]: 35.0}  # hangs 3 degrees below; the fingers press an object
    robot.observe()
    robot.stop()
    robot.stop()
    assert driver.sent == [{KEYS[0]: 15.5, KEYS[1]: 10.0}] * 3


def test_a_stop_in_motion_holds_where_the_joint_was_just_measured():
    driver = Driver()
    robot = make(driver)
    robot.observe()
    robot.command(np.float32([60.0, 55.0]))
    robot.stop()
    assert driver.sent == [{KEYS[0]: 60.0, KEYS[1]: 55.0}, {KEYS[0]: 12.5, KEYS[1]: 55.0}]


def test_a_channel_that_is_no_gripper_by_the_limits_holds_as_a_joint():
    driver = Driver()
    robot = make(driver, grippers=())
    robot.observe()
    robot.command(np.float32([15.0, 90.0]))
    robot.stop()
    assert driver.sent[-1] == {KEYS[0]: 15.0, KEYS[1]: 40.0}


def test_a_lost_packet_does_not_keep_an_arm_from_being_stopped():
    driver = Driver()
    robot = make(driver)
    robot.observe()
    send, failures = driver.send_action, [ConnectionError("no status packet")] * 2

    def fail_at_first(action):
        if failures:
            raise failures.pop()
        return send(action)

    driver.send_action = fail_at_first
    robot.stop()
    assert driver.sent == [{KEYS[0]: 12.5, KEYS[1]: 40.0}]
    failures += [ConnectionError("no status packet")] * 3
    with pytest.raises(ConnectionError):
        robot.stop()


@pytest.mark.parametrize(
    "error", [ConnectionError("no status packet"), TimeoutError("no frame"), RuntimeError("camera is gone")]
)
def test_a_read_that_fails_once_is_no_observation_and_a_stop_needs_none(error):
    driver = Driver()
    robot = make(driver)
    robot.observe()
    read = driver.get_observation

    def fail():
        raise error

    driver.get_observation = fail
    with pytest.raises(ObservationError, match=f"{type(error).__name__}: {error}"):
        robot.observe()
    robot.stop()
    assert driver.sent == [{KEYS[0]: 12.5, KEYS[1]: 40.0}]
    driver.get_observation = read
    assert robot.observe().state[0] == 12.5


def test_a_stop_keeps_the_last_targets_when_what_was_measured_is_old():
    driver = Driver()
    robot = make(driver)
    robot.observe()
    robot.command(np.float32([20.0, 55.0]))
    robot._clock.advance(0.2)

    def broken():
        raise RuntimeError("camera is gone")

    driver.get_observation = broken
    with pytest.raises(ObservationError, match="camera is gone"):
        robot.observe()
    robot.stop()
    robot.stop()
    assert driver.sent == [{KEYS[0]: 20.0, KEYS[1]: 55.0}] * 3


def test_a_stop_that_reaches_not_every_motor_says_so():
    driver = Driver()
    robot = make(driver)
    del driver.seen[KEYS[1]]
    with pytest.raises(ObservationError):
        robot.observe()
    with pytest.raises(RobotNotStopped, match=r"gripper\.pos.*cut its power"):
        robot.stop()
    assert driver.sent == [{KEYS[0]: 12.5}]


def test_a_stop_from_another_thread_passes_an_observation_that_hangs():
    driver = Driver()
    robot = make(driver)
    robot.command(np.float32([20.0, 55.0]))
    hanging, may_go_on = threading.Event(), threading.Event()

    def hang():
        hanging.set()
        assert may_go_on.wait(30.0)
        return driver.seen

    driver.get_observation = hang
    observing = threading.Thread(target=robot.observe)
    observing.start()
    assert hanging.wait(30.0)
    robot.stop()
    assert driver.sent == [{KEYS[0]: 20.0, KEYS[1]: 55.0}] * 2
    may_go_on.set()
    observing.join(30.0)


def test_a_stop_during_a_command_outlasts_it():
    driver = Driver()
    robot = make(driver)
    robot.observe()
    send = driver.send_action

    def interrupted(targets):
        driver.send_action = send
        threading.Thread(target=robot.stop).start()  # it sends past the command when that takes too long
        while len(driver.sent) < 1:
            threading.Event().wait(0.001)
        return send(targets)

    driver.send_action = interrupted
    robot.command(np.float32([20.0, 55.0]))
    assert driver.sent[-1] == {KEYS[0]: 12.5, KEYS[1]: 40.0}


@pytest.mark.parametrize("broken", [np.float32([np.nan, 0.0]), np.float32([1.0])])
def test_a_broken_action_is_not_sent(broken):
    driver = Driver()
    with pytest.raises(ValueError, match="2 finite numbers"):
        make(driver).command(broken)
    assert not driver.sent


def test_what_the_driver_leaves_out_is_named():
    driver = Driver()
    robot = make(driver)
    del driver.seen[KEYS[1]]
    with pytest.raises(ObservationError, match=r"did not send \['gripper\.pos'\]"):
        robot.observe()
    driver.seen = Driver().seen | {"front": np.zeros((6, 8, 3), np.float32)}
    with pytest.raises(ObservationError, match="not uint8"):
        robot.observe()


def test_a_device_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not have \\['shoulder_pan', 'gripper'\\]"):
        make(Driver(), keys=None)
    with pytest.raises(ValueError, match="2 are needed"):
        make(Driver(), keys=KEYS[:1])
    with pytest.raises(ValueError, match="joint targets"):
        make(Driver(), spec=so101_spec(action_convention="joint_delta"))
    smaller = so101_spec(cameras=(CameraSpec(name="front", height=3, width=8),))
    with pytest.raises(ValueError, match=r"\(6, 8, 3\), the spec says \(3, 8, 3\)"):
        make(Driver(), spec=smaller)
