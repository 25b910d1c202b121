"""An arm that goes where it is told, a part of the way in each period, and writes down what it was told."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lerobot.robots import RobotConfig


@RobotConfig.register_subclass("stand_in_arm")
@dataclass
class StandInConfig:
    log: str
    start: dict
    cameras: dict = field(default_factory=dict)
    id: str | None = None
    disable_torque_on_disconnect: bool = True

    def make(self):
        return StandInArm(self)


class StandInArm:
    def __init__(self, config):
        self.config, self.is_connected = config, False
        self.position = dict(config.start)

    @property
    def observation_features(self):
        sizes = {name: (height, width, 3) for name, (height, width) in self.config.cameras.items()}
        return dict.fromkeys(self.config.start, float) | sizes

    @property
    def action_features(self):
        return dict.fromkeys(self.config.start, float)

    def connect(self):
        self.is_connected = True

    def get_observation(self):
        pictures = {
            name: np.full((height, width, 3), 90, np.uint8)
            for name, (height, width) in self.config.cameras.items()
        }
        return dict(self.position) | pictures

    def send_action(self, action):
        for name, target in action.items():
            self.position[name] += 0.5 * (target - self.position[name])
        with Path(self.config.log).open("a") as file:
            file.write(json.dumps(action) + "\n")
        return action

    def disconnect(self):
        self.is_connected = False
        with Path(self.config.log).open("a") as file:
            file.write(json.dumps({"torque off": self.config.disable_torque_on_disconnect}) + "\n")
