"""`robot=sim`: a simulated task as a robot. Apart from robot.py, as it needs a simulator."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from envs.registry import make_env
from envs.sim_robot import SensorFaults, SimRobot
from experiments.config.robot import RobotSetup
from policies.runtime.clock import Clock


@dataclass(frozen=True, kw_only=True)
class SimulatedRobot(RobotSetup):
    """A simulated task as a robot, with faults of its sensors (`envs.sim_robot`)."""

    is_simulated: ClassVar[bool] = True
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
