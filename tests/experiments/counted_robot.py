"""A robot whose commands and stops are counted outside of the process, by datagrams, and that can fail."""

import socket
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from control_fixtures import FakeArm
from runtime_fixtures import arm_limits

from experiments.config.robot import ROBOTS, RobotSetup
from policies.runtime.limits import SafetyLimits
from vla.registry import Choices, Range

ROBOTS.add("counted", "counted_robot:CountedSetup")
FAULTS = ("none", "hang", "observe_key", "command_key", "camera", "close")
FAULT_AT = 15  # commands


class CountedArm(FakeArm):
    """Tells a port of what it is told to do; fails in one way after some commands."""

    instruction, success, is_over = "go on", None, False

    def __init__(self, clock, *, port, fault):
        super().__init__(clock)
        self._fault, self._address = fault, ("127.0.0.1", port)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._clock = clock

    def warm_up(self):
        """Nothing to draw."""

    def _tell(self, what):
        self._socket.sendto(what, self._address)

    def observe(self):
        """Return a reading, unless the fault is due."""
        if len(self.commands) >= FAULT_AT:
            if self._fault == "hang":
                self._tell(b"hangs")
                time.sleep(3600)
            if self._fault == "observe_key":
                raise KeyError("motor 3")
            if self._fault == "camera":
                raise TimeoutError("no frame from camera front")
        return super().observe()

    def command(self, action):
        """Count."""
        if self._fault == "command_key" and len(self.commands) >= FAULT_AT:
            raise KeyError("motor 3")
        self._tell(b"command")
        self.commands.append(action.copy())
        self.position[:2] += action[:2]

    def stop(self):
        """Count."""
        self._tell(b"stop")


@dataclass(frozen=True, kw_only=True)
class CountedSetup(RobotSetup):
    """The robot's settings."""

    limits: Annotated[SafetyLimits, "what commands may never exceed"] = field(
        default_factory=lambda: arm_limits(low=-9.0, high=9.0, acceleration=20.0, jerk=800.0)
    )
    port: Annotated[int, Range(1, 65535), "where it is counted"]
    fault: Annotated[str, Choices(*FAULTS), "what fails"] = "none"

    @contextmanager
    def open(self, env_config, *, seed, clock):
        """Hand out the robot."""
        yield CountedArm(clock, port=self.port, fault=self.fault)
        if self.fault == "close":
            raise OSError("the bus did not close")
