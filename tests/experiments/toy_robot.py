"""A robot that is no part of the package: what a user writes, in one file."""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from experiments.config.robot import ROBOTS, RobotSetup
from policies.runtime.limits import ChannelLimits, SafetyLimits
from vla.interface import SensorReading
from vla.registry import Range
from vla.spec import CameraSpec, Channel, RobotSpec

ROBOTS.add("toy", "toy_robot:ToySetup")
SPEC = RobotSpec(  # that of the bundle in tests/golden
    name="tiny",
    cameras=tuple(CameraSpec(name=name, height=32, width=32) for name in ("exterior", "wrist")),
    state=(
        *(Channel(name=name, unit="m", low=-0.5, high=0.5) for name in "xy"),
        Channel(name="opening", unit="1", low=0.0, high=1.0),
    ),
    action=(
        Channel(name="dx", unit="m", low=-0.025, high=0.025),
        Channel(name="yaw", unit="rad", low=-0.1, high=0.1),
        Channel(name="gripper", unit="1", low=0.0, high=1.0),
    ),
    control_hz=20.0,
    action_convention="end_effector_delta",
    gripper_sign="positive_opens",
)


class ToyRobot:
    """Counts commands, and is done after some."""

    robot_spec, instruction = SPEC, "go on"

    def __init__(self, *, clock, num_commands, noise):
        self.clock, self.left, self.noise = clock, num_commands, np.random.default_rng(noise)

    @property
    def success(self):
        return self.left <= 0

    @property
    def is_over(self):
        return self.left <= 0

    def warm_up(self):
        pass

    def observe(self):
        now = self.clock.now()
        return SensorReading(
            images={name: self.noise.integers(0, 255, (32, 32, 3), np.uint8) for name in SPEC.camera_names},
            image_stamps=dict.fromkeys(SPEC.camera_names, now),
            state=np.array([0.0, 0.0, 0.5], np.float32),
            state_stamp=now,
        )

    def command(self, action):
        self.left -= 1

    def stop(self):
        time.sleep(0)


def limits():
    motion = {"low": -0.4, "high": 0.4, "velocity": 2.0}
    return SafetyLimits(
        channels={
            "dx": ChannelLimits(**motion),
            "yaw": ChannelLimits(**motion),
            "gripper": ChannelLimits(kind="gripper", low=0.0, high=1.0, velocity=20.0, measured_by="opening"),
        }
    )


@dataclass(frozen=True, kw_only=True)
class ToySetup(RobotSetup):
    """The robot's settings."""

    limits: Annotated[SafetyLimits, "what commands may never exceed"] = field(default_factory=limits)
    num_commands: Annotated[int, Range(1), "until it is done"] = 5

    @contextmanager
    def open(self, env_config, *, seed, clock):
        yield ToyRobot(clock=clock, num_commands=self.num_commands, noise=seed)
