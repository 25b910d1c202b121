"""A Franka arm for the programs that drive robots: built from configuration, placed in a live view."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float32

from envs.registry import make_env
from envs.tabletop.arm import HOME_JOINTS
from envs.tabletop.env import TabletopEnv
from envs.tabletop.live_view import LiveView
from experiments.config.robot import RobotSetup
from policies.robots.franka import Following, FrankaRobot
from policies.robots.franky_arm import (
    GRASP_FORCE_N,
    Dynamics,
    FrankaFault,
    FrankyArm,
    Setpoint,
    wait_at_rest,
)
from policies.runtime.clock import Clock
from vla.interface import SensorReading
from vla.registry import Range
from vla.spec import RobotSpec

_POLL_S = 0.001


class FrankaInScene:
    """A `Robot` with a task: the arm, and the scene that gives an instruction and judges it."""

    def __init__(self, *, robot: FrankaRobot, view: LiveView) -> None:
        self._robot, self._view = robot, view
        self._judged_at = -float("inf")

    @property
    def robot_spec(self) -> RobotSpec:
        """What the robot offers and accepts."""
        return self._robot.robot_spec

    @property
    def instruction(self) -> str:
        """What the scene's episode asks for."""
        return self._view.instruction

    @property
    def success(self) -> bool:
        """Whether the goal has held as long as the task asks for."""
        return self._view.success

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return self._view.success

    def warm_up(self) -> None:
        """Draw once with every camera before time counts: the first picture takes long."""
        self._robot.observe()

    def observe(self) -> SensorReading:
        """Return the newest reading, and judge the goal once for each new state."""
        reading = self._robot.observe()
        if reading.state_stamp > self._judged_at:
            self._judged_at = reading.state_stamp
            self._view.note_period()
        return reading

    def command(self, action: Float32[np.ndarray, " action"]) -> None:
        """Have the arm follow one action for one period."""
        self._robot.command(action)

    def stop(self) -> None:
        """Begin to come to rest; see `Robot.stop`."""
        self._robot.stop()


class ArmClock:
    """Time as the arm's own clock tells it: a simulator that is slower than time slows all else too."""

    def __init__(self, arm: FrankyArm) -> None:
        self._arm = arm

    def now(self) -> float:
        """Return the time of the newest reading [s]."""
        return self._arm.newest_time_s

    def sleep_until(self, moment: float) -> None:
        """Return when the arm has reached `moment` [s], or has failed: then its next reading raises."""
        with contextlib.suppress(FrankaFault):
            while self._arm.read().time_s < moment:
                time.sleep(_POLL_S)


@dataclass(frozen=True, kw_only=True)
class FrankaSetup(RobotSetup):
    """A Franka FR3 through franky (`policies.robots`), its cameras drawn from a tabletop scene."""

    moves_on_opening: ClassVar[bool] = True  # the hand opens, and the arm goes to the start of the scene
    address: Annotated[str, "of the robot, or of franky-sim"]
    needs_realtime: Annotated[bool, "refuse to run without a real-time kernel; a simulator needs none"] = True
    has_gripper: Annotated[bool, "whether the arm has a Franka Hand"] = True
    gripper_speed: Annotated[float, Range(0, 1, open_low=True), "of the fingers [m/s]"] = 0.05
    gripper_force: Annotated[float, Range(0, 70, open_low=True), "with which an object is grasped [N]"] = (
        GRASP_FORCE_N
    )
    dynamics: Annotated[Dynamics, "how hard every joint may move"] = field(default_factory=Dynamics)
    following: Annotated[Following, "how the arm follows its commands"] = field(default_factory=Following)
    go_to_start: Annotated[bool, "move to where the scene's episode begins; look that the way is free"] = True

    @contextlib.contextmanager
    def open(self, env_config: Mapping[str, Any], *, seed: int, clock: Clock) -> Iterator[FrankaInScene]:
        """Connect to the arm and place it in the scene of a seed; bring it to rest on leaving.

        Raises:
            ValueError: the environment is no tabletop, or its task moves objects.
            FrankyMissing: franky is not installed.
            FrankaFault: nobody answers, or the arm is in error.
        """
        with open_live_view(env_config) as view, self.open_arm() as arm:
            yield self.place_in_scene(arm=arm, view=view, seed=seed, clock=clock)

    def open_arm(self, *, on_setpoint: Callable[[Setpoint], None] | None = None) -> FrankyArm:
        """Connect to the arm.

        Raises:
            FrankyMissing: franky is not installed; the message says what to do.
            FrankaFault: nobody answers, or the robot refuses.
        """
        return FrankyArm(
            address=self.address,
            posture=HOME_JOINTS,
            dynamics=self.dynamics,
            has_gripper=self.has_gripper,
            gripper_speed=self.gripper_speed,
            gripper_force=self.gripper_force,
            needs_realtime=self.needs_realtime,
            on_setpoint=on_setpoint,
        )

    def place_in_scene(self, *, arm: FrankyArm, view: LiveView, seed: int, clock: Clock) -> FrankaInScene:
        """Lay out the scene of a seed, bring the arm to its start with an open hand, and return the robot.

        Raises:
            FrankaFault: the arm is in error.
        """
        start = view.begin(seed=seed)
        arm.grip(1.0)
        if self.go_to_start:
            arm.go_to(start)
            wait_at_rest(arm)
        robot = FrankaRobot(
            spec=view.robot_spec,
            arm=arm,
            cameras=view,
            clock=clock,
            following=self.following,
        )
        return FrankaInScene(robot=robot, view=view)


@contextlib.contextmanager
def open_live_view(env_config: Mapping[str, Any]) -> Iterator[LiveView]:
    """Build the scene that cameras are drawn from, and close it on leaving.

    Raises:
        ValueError: the environment is no tabletop, or its task moves objects.
    """
    env = make_env(env_config)
    try:
        if not isinstance(env, TabletopEnv):
            raise ValueError(f"a Franka arm stands in a tabletop scene; this is {env_config['family']!r}")
        yield LiveView(env)
    finally:
        env.close()
