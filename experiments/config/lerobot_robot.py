"""`robot=lerobot`: any robot that LeRobot drives, by the name under which it is registered there.

Leaving the program lets no arm fall: where the robot's configuration has `disable_torque_on_disconnect`, it
is false unless `settings` say otherwise, and a printed line says what the motors will do.

LeRobot is not a dependency: install it into the environment that controls the robot (Python 3.12 or newer).
Robots of packages named `lerobot_robot_*`, and those that a module among `plugins` registers, are found
too.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn

import numpy as np
from jaxtyping import Float32

from experiments.config.robot import RobotSetup
from experiments.config.robot_file import read_robot_file, require_confirmed_limits
from policies.robots.lerobot import LerobotDevice, LerobotRobot
from policies.runtime.clock import Clock
from policies.runtime.limits import GRIPPER, SafetyLimits
from vla.errors import VLAError, did_you_mean
from vla.interface import SensorReading
from vla.registry import FilePath
from vla.spec import RobotSpec

_TORQUE = "disable_torque_on_disconnect"  # as LeRobot names it


class LerobotMissing(VLAError):
    """LeRobot is not installed, or does not know a robot."""


class LerobotWithoutScene:
    """A LeRobot robot with a task that a person gives and judges."""

    success = None  # nobody judges it
    is_over = False  # the run ends after control's max_seconds, or by Ctrl-C

    def __init__(self, robot: LerobotRobot) -> None:
        self._robot = robot

    @property
    def robot_spec(self) -> RobotSpec:
        """What the robot offers and accepts."""
        return self._robot.robot_spec

    @property
    def instruction(self) -> NoReturn:
        """No scene asks for anything.

        Raises:
            ValueError: always.
        """
        raise ValueError("robot=lerobot stands in no scene that asks for something; give instruction='...'")

    def warm_up(self) -> None:
        """Read all cameras once before time counts."""
        self._robot.observe()

    def observe(self) -> SensorReading:
        """Return the newest reading; see `LerobotRobot.observe`."""
        return self._robot.observe()

    def command(self, action: Float32[np.ndarray, " action"]) -> None:
        """Send targets."""
        self._robot.command(action)

    def stop(self) -> None:
        """Have the motors hold; see `LerobotRobot.stop`."""
        self._robot.stop()


@dataclass(frozen=True, kw_only=True)
class LerobotSetup(RobotSetup):
    """A robot of LeRobot, with the spec and the limits of a robot file."""

    limits: SafetyLimits = field(init=False)
    robot_file: Annotated[str, FilePath(), "its spec, and its limits, which a person has confirmed"]
    type: Annotated[str, "the robot's type as LeRobot registers it: so101_follower"]
    settings: Annotated[
        dict[str, Any], "of that type as LeRobot names them: {port: /dev/ttyACM0, id: arm, cameras: {...}}"
    ] = field(default_factory=dict)
    cameras: Annotated[list[str] | None, "those of the robot file that the policy sees; null: all"] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", read_robot_file(self.robot_file).limits)

    def require_confirmed(self) -> None:
        """Check that a person has confirmed the limits in the robot file.

        Raises:
            LimitsNotConfirmed: nobody has.
        """
        require_confirmed_limits(self.robot_file)

    @contextmanager
    def open(
        self, env_config: Mapping[str, Any], *, seed: int, clock: Clock
    ) -> Iterator[LerobotWithoutScene]:
        """Connect to the robot, and disconnect on leaving; scene and seed are of no consequence.

        Raises:
            LerobotMissing: LeRobot is not installed, or has no such robot.
            ValueError: a setting is wrong, or the device lacks a channel or camera of the robot file.
        """
        spec = read_robot_file(self.robot_file).spec
        if self.cameras is not None:
            spec = spec.seeing(self.cameras)
        grippers = tuple(name for name, limits in self.limits.channels.items() if limits.kind == GRIPPER)
        device = make_device(self.type, self.settings)
        with LerobotRobot(device=device, spec=spec, clock=clock, grippers=grippers) as robot:
            yield LerobotWithoutScene(robot)


def make_device(kind: str, settings: Mapping[str, Any]) -> LerobotDevice:
    """Make a driver of LeRobot, not yet connected, and print what its motors do when the program ends.

    Args:
        kind: its registered type.
        settings: of its configuration class.

    Raises:
        LerobotMissing: LeRobot is not installed, or has no such robot; the message names the nearest.
        ValueError: a setting is wrong.
    """
    try:
        draccus = importlib.import_module("draccus")
        robots = importlib.import_module("lerobot.robots")
        plugins = importlib.import_module("lerobot.utils.import_utils")
    except ModuleNotFoundError as error:
        raise LerobotMissing(
            f"robot=lerobot needs LeRobot ({error}): pip install 'lerobot[dataset,hardware]==0.6.1' into "
            "environment (Python 3.12 or newer), with what your robot needs, such as lerobot[feetech]"
        ) from error
    unusable = _register_all(robots)
    plugins.register_third_party_plugins()
    known = robots.RobotConfig.get_known_choices()
    if kind not in known:
        more = f" Not usable here: {unusable}." if unusable else ""
        raise LerobotMissing(f"LeRobot has no robot type {kind!r}; {did_you_mean(kind, known)}.{more}")
    try:
        config = draccus.decode(robots.RobotConfig, {"type": kind, **settings})
    except draccus.utils.DecodingError as error:
        raise ValueError(f"robot.settings of {kind!r}: {error}") from error
    print(_torque_line(kind, torque_at_the_end(config, settings)), flush=True)
    return robots.make_robot_from_config(config)


def torque_at_the_end(config: Any, settings: Mapping[str, Any]) -> list[bool]:
    """Have the motors hold at the end unless `settings` say otherwise; return who lets go, one per arm.

    Args:
        config: of the robot; those of the arms of a robot with two lie inside.
        settings: what the user gave, in the same form.
    """
    lets_go = []
    for field_ in dataclasses.fields(config):
        value, given = getattr(config, field_.name), settings.get(field_.name)
        if field_.name == _TORQUE:
            if given is None:
                setattr(config, _TORQUE, False)
            lets_go.append(bool(getattr(config, _TORQUE)))
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            lets_go += torque_at_the_end(value, given if isinstance(given, Mapping) else {})
    return lets_go


def _torque_line(kind: str, lets_go: list[bool]) -> str:
    if not lets_go:
        return (
            f"{kind}: what its motors do when this program ends is its driver's to decide; support the robot"
        )
    if any(lets_go):
        return f"{kind}: when this program ends its motors let go, and what is in the air falls ({_TORQUE})"
    return (
        f"{kind}: when this program ends its motors go on holding, under power and getting warm; with "
        f"{_TORQUE}: true in robot.settings they let go"
    )


def _register_all(robots: Any) -> dict[str, str]:
    """Import all of LeRobot's robots, so that they register; return those that lack something, and what."""
    unusable = {}
    for module in pkgutil.iter_modules(robots.__path__):
        if module.ispkg:
            try:
                importlib.import_module(f"{robots.__name__}.{module.name}")
            except ImportError as error:
                unusable[module.name] = str(error)
    return unusable
