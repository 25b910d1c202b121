"""What leaving the program does to a LeRobot arm that holds something in the air."""

from dataclasses import dataclass, field

import pytest

from experiments.config.lerobot_robot import torque_at_the_end


@dataclass
class Arm:
    port: str = "/dev/ttyACM0"
    disable_torque_on_disconnect: bool = True


@dataclass
class TwoArms:
    left: Arm = field(default_factory=Arm)
    right: Arm = field(default_factory=Arm)


@dataclass
class Base:
    speed: float = 1.0


@pytest.mark.parametrize(
    ("config", "settings", "lets_go"),
    [
        (Arm(), {}, [False]),
        (Arm(), {"port": "COM3"}, [False]),
        (Arm(), {"disable_torque_on_disconnect": True}, [True]),
        (Arm(disable_torque_on_disconnect=False), {"disable_torque_on_disconnect": False}, [False]),
        (TwoArms(), {}, [False, False]),
        (TwoArms(), {"right": {"disable_torque_on_disconnect": True}}, [False, True]),
        (Base(), {}, []),
    ],
)
def test_motors_hold_at_the_end_unless_the_user_says_otherwise(config, settings, lets_go):
    assert torque_at_the_end(config, settings) == lets_go
    arms = (
        [config]
        if isinstance(config, Arm)
        else [config.left, config.right][: len(lets_go)]
        if lets_go
        else []
    )
    assert [arm.disable_torque_on_disconnect for arm in arms] == lets_go
