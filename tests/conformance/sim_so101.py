"""A simulated SO-101 on LeRobot's own `Robot` base class: joints that follow their targets, drawn cameras.

For `experiments.control robot=lerobot robot.type=sim_so101 plugins=[sim_so101]`; its scene is that of
make_so101.py. On disconnecting it writes what happened to `log`.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lerobot.robots import Robot, RobotConfig
from make_so101 import CAMERAS, HOME, JOINTS, SENTENCES, draw, links, wrist_view

LAG_S = 0.08  # of a joint behind its target
FRONT, WRIST = "front", "wrist"


@RobotConfig.register_subclass("sim_so101")
@dataclass(kw_only=True)
class SimSO101Config(RobotConfig):
    """Settings of the simulated arm."""

    log: str
    seed: int = 0
    sentence: str = SENTENCES[1]


class SimSO101(Robot):
    """Six joints and two cameras, in real time."""

    config_class, name = SimSO101Config, "sim_so101"

    def __init__(self, config: SimSO101Config) -> None:
        super().__init__(config)
        self.config, self._connected = config, False
        self.joints, self.target = HOME.copy(), HOME.copy()
        self._moved_at = time.monotonic()
        self.sent: list[float] = []
        self.nearest = float("inf")
        rng = np.random.default_rng(config.seed)
        goal, other = (
            HOME + np.array([1.0, 1.0, 1.0, 1.0, 0.5, 0.0]) * rng.uniform(-35, 35, 6) for _ in range(2)
        )
        self.goal = links(goal)[-1]
        self.objects = [(config.sentence, self.goal)]
        self.objects += [(name, links(other)[-1]) for name in SENTENCES if name != config.sentence]

    @property
    def observation_features(self) -> dict:
        cameras = {name: CAMERAS[name] for name in (FRONT, WRIST)}
        return {**{f"{name}.pos": float for name in JOINTS}, **cameras}

    @property
    def action_features(self) -> dict:
        return {f"{name}.pos": float for name in JOINTS}

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def _move(self) -> None:
        now = time.monotonic()
        self.joints += (self.target - self.joints) * (1 - np.exp(-(now - self._moved_at) / LAG_S))
        self._moved_at = now
        self.nearest = min(self.nearest, float(np.linalg.norm(links(self.joints)[-1] - self.goal)))

    def get_observation(self) -> dict:
        self._move()
        image = draw(self.joints, self.objects)
        joints = {f"{name}.pos": float(value) for name, value in zip(JOINTS, self.joints, strict=True)}
        return {**joints, FRONT: np.asarray(image), WRIST: wrist_view(image, self.joints)}

    def send_action(self, action: dict) -> dict:
        self._move()
        self.target = np.array([action[f"{name}.pos"] for name in JOINTS])
        self.sent.append(time.monotonic())
        return action

    def disconnect(self) -> None:
        self._connected = False
        start = float(np.linalg.norm(links(HOME)[-1] - self.goal))
        result = {"commands": len(self.sent), "start_distance": start, "nearest": self.nearest}
        Path(self.config.log).write_text(json.dumps(result))
