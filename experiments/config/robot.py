"""Keys of the programs that drive robots, with types and defaults; the rest is in schema.py.

Which robots there are is `ROBOTS`: each kind has a schema of its own and a file in `conf/robot/`.
"""

import math
from dataclasses import dataclass, field

from omegaconf import MISSING

from experiments.config.env import EnvConfig


@dataclass
class ChannelLimitsConfig:
    """`policies.runtime.limits.ChannelLimits`, the name apart; units are the channel's."""

    low: float = MISSING
    high: float = MISSING
    velocity: float = MISSING
    acceleration: float = math.inf
    jerk: float = math.inf
    step: float = math.inf
    kind: str = "motion"  # motion | gripper
    measured_by: str | None = None  # state channel


@dataclass
class RobotConfig:
    """What every robot needs: limits for each action channel, in the order of its spec."""

    kind: str = MISSING
    limits: dict[str, ChannelLimitsConfig] = MISSING
    max_tracking_error: float = math.inf
    refuse_position_factor: float = 1.5
    refuse_speed_factor: float = 5.0


@dataclass
class SimRobotConfig(RobotConfig):
    """A simulated task as a robot, with faults of its sensors (`envs.sim_robot`)."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    drop_probability: float = 0.0


@dataclass
class FrankaRobotConfig(RobotConfig):
    """A Franka FR3 through franky (`policies.robots`), its cameras drawn from a tabletop scene."""

    address: str = MISSING  # of the robot, or of franky-sim
    needs_realtime: bool = True  # refuse to run without a real-time kernel; a simulator needs none
    has_gripper: bool = True
    gripper_speed: float = 0.05  # of the fingers [m/s]
    acceleration: float = 4.5  # of every joint [rad/s2]; `policies.robots.franky_arm.Dynamics`
    jerk: float = 600.0  # [rad/s3]
    gain_hz: float = 3.0  # `policies.robots.franka.Following`
    max_tracking_error_m: float = 0.03
    go_to_start: bool = True  # move to where the scene's episode begins; look that the way is free


@dataclass
class WatchdogConfig:
    """`policies.runtime.watchdog.WatchdogLimits`."""

    observation_hold_s: float = 0.25
    observation_stop_s: float = 1.0
    blind_stop_s: float = 2.0
    underrun_stop_s: float = 0.5
    failing_stop_s: float = 0.5
    refused_stop_s: float = 0.5
    silent_stop_s: float = 2.0
    missed_stop: int = 5


@dataclass
class StreamConfig:
    """`policies.runtime.observation_buffer.StreamLimits`."""

    frozen_frames: int = 5
    frozen_motion: float = 0.1
    black_level: float = 4.0
    state_jump: float = 0.35


@dataclass
class ControlRun:
    """`python -m experiments.control`."""

    out_dir: str = MISSING
    bundle: str | None = None  # either a bundle, run in this process,
    server: str | None = None  # or the address of a policy server: ws://host:port
    token_env: str = "VLA_SERVE_TOKEN"  # environment variable that holds the server's token, if it wants one
    server_wait_s: float = 30.0  # how long to wait for a server that is not there yet, at the start
    robot: RobotConfig = MISSING
    env: EnvConfig = MISSING  # of a simulated robot
    tasks: list[str] = MISSING  # those of the environment
    task: str | None = None  # the one to do; the first if none is given
    seed: int = MISSING
    instruction: str | None = None  # the task's own if none is given
    schedule: str = "async"  # sync | async | ensemble | rtc
    execute_horizon: int = 4  # control periods from one inference to the next, at least
    delta_to_absolute: bool = True  # whether chunks of changes count from the commanded position at capture
    inference_delay_s: float = 0.0  # added to every inference
    max_seconds: float = 60.0
    replay: str | None = None  # a recording whose commands are sent again, instead of asking a policy
    num_threads: int = 1  # of one inference
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)


@dataclass
class DelayTableRun:
    """`python -m experiments.delay_table`."""

    out_dir: str = MISSING
    bundle: str = MISSING
    robot: RobotConfig = MISSING
    env: EnvConfig = MISSING
    tasks: list[str] = MISSING  # those of the environment
    task: str | None = None  # the one to do; the first if none is given
    delays_ms: list[float] = MISSING
    schedules: list[str] = MISSING
    episodes: int = MISSING  # for each delay and schedule
    first_seed: int = MISSING
    execute_horizon: int = 4
    delta_to_absolute: bool = True  # whether chunks of changes count from the commanded position at capture
    num_threads: int = 1
    num_workers: int = 2  # processes, each with an environment and a policy of its own
    results: str | None = None  # where to write <results>.json and <results>.md besides out_dir
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)


@dataclass
class FrankaTrialsRun:
    """`python -m experiments.franka_trials`."""

    out_dir: str = MISSING
    bundle: str | None = None  # the scripted expert acts in place of a policy if none is given
    robot: FrankaRobotConfig = MISSING
    env: EnvConfig = MISSING
    trials: int = MISSING
    faults: int = MISSING  # of each kind: killed, stopped, slowed
    first_seed: int = MISSING
    time: str = "wall"  # wall | robot: periods of the arm's clock, for machines that simulate it too slowly
    schedule: str = "async"
    execute_horizon: int = 2  # an arm that trails its commands needs fresh ones
    max_seconds: float = 6.0  # a trial
    num_threads: int = 1
    results: str | None = None  # where to write <results>.json and <results>.md besides out_dir
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)


ROBOTS: dict[str, type[RobotConfig]] = {"sim": SimRobotConfig, "franka": FrankaRobotConfig}
