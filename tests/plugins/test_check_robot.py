"""The check of a robot: a sound one has no finding, and each planted fault is found by name."""

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
import pytest

from experiments.checks import robots
from experiments.checks.examination import CHECKS, NOT_TRIED
from experiments.checks.robots import check_robot
from experiments.config.robot import RobotSetup
from policies.runtime.limits import ChannelLimits, SafetyLimits
from vla.interface import SensorReading
from vla.spec import CameraSpec, Channel, RobotSpec

SPEC = RobotSpec(
    name="cart",
    cameras=(CameraSpec(name="top", height=16, width=16),),
    state=tuple(Channel(name=name, unit="m", low=-1.0, high=1.0) for name in "xy"),
    action=tuple(Channel(name=f"v{name}", unit="m", low=-1.0, high=1.0) for name in "xy"),
    control_hz=20.0,
    action_convention="joint_velocity",
    gripper_sign="none",
)
PERIOD_S = 1 / SPEC.control_hz


class Cart:
    """Rolls as fast as commanded, for one control period."""

    robot_spec, instruction, success, is_over = SPEC, "roll", None, False

    def __init__(self, clock):
        self.clock, self.position, self.velocity = clock, np.array([0.1, 0.1]), np.zeros(2)
        self.since, self.until = clock.now(), clock.now()
        self.num_commands, self.lock = 0, threading.Lock()

    def warm_up(self):
        self.observe()

    def roll(self):
        now = self.clock.now()
        self.position = self.position + self.velocity * max(0.0, min(now, self.until) - self.since)
        self.since = now

    def observe(self):
        self.roll()
        now = self.clock.now()
        frame = np.random.default_rng().integers(90, 255, (16, 16, 3)).astype(np.uint8)
        return SensorReading(
            images={"top": frame},
            image_stamps={"top": now},
            state=self.position.astype(np.float32),
            state_stamp=now,
        )

    def command(self, action):
        self.roll()
        self.num_commands += 1
        self.velocity, self.until = np.asarray(action, float), self.clock.now() + PERIOD_S

    def stop(self):
        self.velocity = np.zeros(2)


def limits(names=("vx", "vy")):
    motion = {"low": -0.9, "high": 0.9, "velocity": 1.0, "acceleration": 50.0, "jerk": 5000.0}
    return SafetyLimits(
        channels={name: ChannelLimits(**motion, measured_by=name.removeprefix("v")) for name in names}
    )


@dataclass(frozen=True, kw_only=True)
class CartSetup(RobotSetup):
    is_simulated: ClassVar[bool] = True
    limits: Annotated[SafetyLimits, "of commands"] = field(default_factory=limits)
    make: Annotated[str, "test's own"] = ""
    opened: list = field(default_factory=list)
    kind: type = Cart

    @contextmanager
    def open(self, env_config, *, seed, clock):
        self.opened.append(self.kind(clock))
        yield self.opened[-1]


@dataclass(frozen=True, kw_only=True)
class RealCart(CartSetup):
    is_simulated: ClassVar[bool] = False


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(robots, "OBSERVE_S", 0.5)
    monkeypatch.setattr(robots, "STOP_WAIT_S", 2.0)


def check(setup, **given):
    return check_robot(setup, {}, seed=0, **{"may_move": False, **given})


def test_a_sound_robot_has_no_finding():
    seen = check(CartSetup())
    assert seen.findings == []
    tried = {row[0] for row in seen.rows}
    assert {"commands arrive", "a stop brings it to rest", "a command ends by itself"} <= tried


class NeverEnds(Cart):
    def command(self, action):
        super().command(action)
        self.until = np.inf


class NeverStops(NeverEnds):
    def stop(self):
        pass


class Backwards(Cart):
    def command(self, action):
        super().command(-np.asarray(action))


class OneChannel(Cart):
    def command(self, action):
        super().command(np.array([action[0], 0.0]))


class SameArray(Cart):
    kept = np.zeros((16, 16, 3), np.uint8)

    def observe(self):
        reading = super().observe()
        self.kept[...] = reading.images["top"]
        return SensorReading(
            images={"top": self.kept},
            image_stamps=reading.image_stamps,
            state=reading.state,
            state_stamp=reading.state_stamp,
        )


class SlowStop(Cart):
    def stop(self):
        time.sleep(0.6)


class HangingStop(Cart):
    def stop(self):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(3)


class StopRaises(Cart):
    def stop(self):
        raise OSError("the bus is busy")


class OtherSize(Cart):
    robot_spec = RobotSpec(**{**{f: getattr(SPEC, f) for f in SPEC.__slots__}, "cameras": (
        CameraSpec(name="top", height=32, width=16),
    )})  # fmt: skip


class Whole:
    robot_spec, instruction, success = SPEC, "roll", None

    def __init__(self, clock):
        pass


@pytest.mark.parametrize(
    ("kind", "check_name", "message"),
    [
        (NeverStops, "stop_does_nothing", "1 s after stop() it still moves"),
        (NeverEnds, "runs_on", "1 s after the last command it still moves"),
        (Backwards, "command_ignored", "0.1 of -0.1 m measured"),
        (OneChannel, "command_ignored", "0 of -0.1 m measured"),
        (SameArray, "reading_reused", "top: the array of the first reading"),
        (SlowStop, "stop_slow", "it took 0."),
        (HangingStop, "stop_slow", "it took more than 2 s"),
        (StopRaises, "robot_raises", "OSError: the bus is busy"),
        (OtherSize, "robot_observes", "0 of 11 are whole"),
        (Whole, "robot_lacks", "Whole has no observe, command, stop, is_over, warm_up"),
    ],
)
def test_a_planted_fault_is_found(kind, check_name, message):
    found = [one for one in check(CartSetup(kind=kind)).findings if one.check == check_name]
    assert found, check_name
    assert any(message in one.message for one in found), [one.message for one in found]
    assert found[0].advice
    if kind is OneChannel:
        assert [one.channel for one in found] == ["action/vy"]


def test_limits_of_another_robot_are_found():
    seen = check(CartSetup(limits=limits(("vx",))))
    assert seen.findings[0].check == "robot_limits"
    assert "safety limits are for ('vx',)" in seen.findings[0].message
    assert seen.findings[0].advice == CHECKS["robot_limits"]


def test_a_robot_that_opens_once_is_found():
    @dataclass(frozen=True, kw_only=True)
    class Once(CartSetup):
        @contextmanager
        def open(self, env_config, *, seed, clock):
            if self.opened:
                raise OSError("the port is busy")
            with super().open(env_config, seed=seed, clock=clock) as robot:
                yield robot

    assert [one.check for one in check(Once()).findings] == ["reopens"]


def test_a_robot_that_is_not_simulated_is_not_commanded():
    setup = RealCart()
    seen = check(setup)
    assert seen.findings == []
    (cart,) = setup.opened
    assert cart.num_commands == 0
    assert {row[0] for row in seen.rows if row[2] == NOT_TRIED} == {
        "commands arrive",
        "a stop brings it to rest",
        "a command ends by itself",
        "opening it again",
    }


def test_a_person_lets_it_move_when_the_limits_are_confirmed():
    setup = RealCart(kind=NeverStops)
    checks = [one.check for one in check(setup, may_move=True).findings]
    assert "stop_does_nothing" in checks
    assert len(setup.opened) == 1

    @dataclass(frozen=True, kw_only=True)
    class Unconfirmed(RealCart):
        def require_confirmed(self):
            raise ValueError("nobody has confirmed them")

    with pytest.raises(ValueError, match="nobody has confirmed"):
        check(Unconfirmed(), may_move=True)
    assert check(Unconfirmed()).findings == []


def test_a_robot_that_moves_when_it_is_opened_is_not_opened():
    @dataclass(frozen=True, kw_only=True)
    class Moves(RealCart):
        moves_on_opening: ClassVar[bool] = True

    setup = Moves()
    with pytest.raises(ValueError, match="opening this robot moves it; give may_move=true"):
        check(setup)
    assert setup.opened == []
