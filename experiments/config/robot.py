"""The robots that programs can drive, by name: what each needs to know, and how it is opened.

To add one, write a dataclass like `SimulatedRobot` (simulated_robot.py) and add it to `ROBOTS`, from a module
of your own that `plugins` names. This module needs no simulator, so that a robot's computer needs none.
"""

import abc
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

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
    def success(self) -> bool | None:
        """Whether that has been done; None where nobody judges it."""
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
    """What a program needs to know of a robot before it opens it.

    Attributes:
        is_simulated: whether it can be driven in simulated time.
        moves_on_opening: whether `open` moves it.
        limits: what commands may never exceed.
    """

    is_simulated: ClassVar[bool] = False
    moves_on_opening: ClassVar[bool] = False
    limits: Annotated[SafetyLimits, "what commands may never exceed"]

    def require_confirmed(self) -> None:  # noqa: B027  most robots have nothing to confirm
        """Check that a person stands by the limits; called before a robot is commanded.

        Raises:
            ValueError: nobody has confirmed them.
        """

    @abc.abstractmethod
    def open(
        self, env_config: Mapping[str, Any], *, seed: int, clock: Clock
    ) -> AbstractContextManager[TaskRobot]:
        """Return the robot, ready to be driven and released on leaving.

        Args:
            env_config: what `make_env` takes, for the scene that a robot stands in; empty without one.
            seed: of the scene's episode.
            clock: the robot's time.

        Raises:
            ValueError: the robot stands in a scene and none is given, or the task or a key of it is unknown.
            RuntimeError: the robot does not answer, or is in error.
        """


ROBOTS: Registry[RobotSetup] = Registry(
    "robot",
    {
        "sim": "experiments.config.simulated_robot:SimulatedRobot",
        "franka": "experiments.franka.scene:FrankaSetup",
        "lerobot": "experiments.config.lerobot_robot:LerobotSetup",
    },
)
