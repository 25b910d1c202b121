"""The robots that programs can drive, by name: what each needs to know, and how it is opened.

To add one, write a dataclass like `SimulatedRobot` and add it to `ROBOTS`, from a module of your own that
`extensions` names.
"""

import abc
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from envs.registry import make_env
from envs.sim_robot import SensorFaults, SimRobot
from policies.runtime.clock import Clock
from policies.runtime.limits import SafetyLimits
from vla.interface import Robot
from vla.registry import Registry


class TaskRobot(Robot, Protocol):
    """A robot in a scene that asks for something."""

    @property
    def instruction(self) -> str:
        """The instruction of the episode."""
        ...

    @property
    def success(self) -> bool:
        """Whether that has been done."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        ...

    def warm_up(self) -> None:
        """Draw once with every camera before time counts: the first picture takes long."""
        ...


@dataclass(frozen=True, kw_only=True)
class RobotSetup(abc.ABC):
    """What a program needs to know of a robot before it opens it."""

    limits: Annotated[SafetyLimits, "what commands may never exceed"]

    @abc.abstractmethod
    def open(
        self, env_config: Mapping[str, Any], *, seed: int, clock: Clock
    ) -> AbstractContextManager[TaskRobot]:
        """Return the robot, ready to be driven and released on leaving.

        Args:
            env_config: what `make_env` takes, for the scene that a robot stands in.
            seed: of the scene's episode.
            clock: the robot's time.

        Raises:
            ValueError: the task, or a key of the environment, is unknown.
            RuntimeError: the robot does not answer, or is in error.
        """


@dataclass(frozen=True, kw_only=True)
class SimulatedRobot(RobotSetup):
    """A simulated task as a robot, with faults of its sensors (`envs.sim_robot`)."""

    faults: Annotated[SensorFaults, "of the way from the cameras to the computer"] = field(
        default_factory=SensorFaults
    )

    @contextmanager
    def open(self, env_config: Mapping[str, Any], *, seed: int, clock: Clock) -> Iterator[SimRobot]:
        """Build the environment, start its episode, and close it on leaving."""
        env = make_env(env_config)
        try:
            env.start_episode(seed=seed)
            yield SimRobot(env=env, clock=clock, faults=self.faults, seed=seed)
        finally:
            env.close()


ROBOTS: Registry[RobotSetup] = Registry(
    "robot",
    {
        "sim": "experiments.config.robot:SimulatedRobot",
        "franka": "experiments.franka.scene:FrankaSetup",
    },
)
