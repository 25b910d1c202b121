"""A simulated task as a `Robot`: observed and commanded over time, with the faults that real ones have.

Time comes from a clock, real or simulated. Physics advances a control period for every period that passes;
one for which no command came is spent holding. Frames can arrive late, unevenly or not at all.
"""

from collections import deque
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float, Float32

from envs.base import ManipulationEnv
from policies.runtime.clock import Clock
from vla.interface import SensorReading
from vla.registry import Range, check_attributes
from vla.spec import RobotSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class SensorFaults:
    """What is wrong with the way from the sensors to the computer."""

    latency_s: Annotated[float, Range(0, 60), "from capture to arrival of an observation [s]"] = 0.0
    jitter_s: Annotated[
        float, Range(0, 60), "more latency, drawn evenly between 0 and this for each observation [s]"
    ] = 0.0
    drop_probability: Annotated[
        float, Range(0, 1, open_high=True), "share of observations that never arrive"
    ] = 0.0

    def __post_init__(self) -> None:
        check_attributes(self, where="faults")


class SimRobot:
    """A manipulation environment that time passes for. Its episode begins with the first observation.

    Args:
        env: the task; `start_episode` has been called.
        clock: its periods are control periods of the environment.
        faults: of the sensors.
        seed: of the faults' randomness.
    """

    def __init__(
        self, *, env: ManipulationEnv, clock: Clock, faults: SensorFaults | None = None, seed: int = 0
    ) -> None:
        self._env, self._clock = env, clock
        self._faults = SensorFaults() if faults is None else faults
        self._rng = np.random.default_rng(seed)
        self._period_s = 1.0 / env.robot_spec.control_hz
        self._begun: float | None = None
        self._on_the_way: deque[tuple[float, SensorReading]] = deque()  # arrival time
        self._newest: SensorReading | None = None
        self._captured_step = -1
        self._num_stops = 0
        self._hold = self._first_hold()
        self.success = False  # whether the goal has been reached
        self.is_over = False  # whether the episode has ended, by success or by time

    @property
    def robot_spec(self) -> RobotSpec:
        """What the robot offers and accepts."""
        return self._env.robot_spec

    @property
    def instruction(self) -> str:
        """What the episode asks for."""
        return self._env.instruction

    def warm_up(self) -> None:
        """Draw once with every camera before time counts: the first picture takes long."""
        for name in self.robot_spec.camera_names:
            self._env.render_camera(name)

    def observe(self) -> SensorReading:
        """Return the newest reading that has arrived."""
        now = self._clock.now()
        self._catch_up(now)
        if self._env.num_steps > self._captured_step:
            self._captured_step = self._env.num_steps
            self._capture(now)
        while self._on_the_way and self._on_the_way[0][0] <= now + 1e-9:
            arrived = self._on_the_way.popleft()[1]
            if self._newest is None or arrived.stamp > self._newest.stamp:
                self._newest = arrived
        assert self._newest is not None, "the first observation always arrives"
        return self._newest

    def command(self, action: Float32[np.ndarray, " action"]) -> None:
        """Execute one action in the period that has begun; a second one for the same period comes too late.

        Raises:
            ValueError: the action is not finite or has the wrong shape.
        """
        num_stops = self._num_stops
        passed = self._catch_up(self._clock.now())
        if self._num_stops != num_stops:  # stopped by another thread since this command began
            return
        self._hold = self._holding(action)
        if self._env.num_steps <= passed:
            self._advance(action)

    def stop(self) -> None:
        """Let the arm come to rest: its servos hold the last target in periods without a command.

        What the gripper holds stays held. See `Robot.stop`.
        """
        self._num_stops += 1

    def _catch_up(self, now: float) -> int:
        """Spend the periods that have passed without a command, and return how many have passed in all."""
        if self._begun is None:
            self._begun = now
        passed = int(np.floor((now - self._begun) / self._period_s + 0.25))
        while self._env.num_steps < passed and not self.is_over:
            self._advance(self._hold)
        return passed

    def _advance(self, action: Float[np.ndarray, " action"]) -> None:
        outcome = self._env.advance(action)
        self.success = self.success or outcome.success
        self.is_over = self.is_over or outcome.terminated or outcome.truncated

    def _capture(self, now: float) -> None:
        is_first = self._newest is None and not self._on_the_way
        dropped = self._rng.random() < self._faults.drop_probability
        delay = self._faults.latency_s + self._rng.uniform(0.0, 1.0) * self._faults.jitter_s
        if dropped and not is_first:
            return
        names = self.robot_spec.camera_names
        reading = SensorReading(
            images={name: self._env.render_camera(name) for name in names},
            image_stamps=dict.fromkeys(names, now),
            state=self._env.read_state(),
            state_stamp=now,
        )
        if is_first:  # the robot was there before the clock was looked at
            self._newest = reading
        else:
            self._on_the_way.append((now + delay, reading))

    def _first_hold(self) -> Float32[np.ndarray, " action"]:
        """Return the action that changes nothing at the start, with the gripper open."""
        spec = self.robot_spec
        opens_high = spec.gripper_sign == "positive_opens"
        fully_open = spec.action_high if opens_high else spec.action_low
        return self._holding(fully_open)

    def _holding(self, action: Float[np.ndarray, " action"]) -> Float32[np.ndarray, " action"]:
        """Return the action that stays where an action led to; a gripper's channel is named gripper."""
        spec = self.robot_spec
        keeps = [spec.gives_positions or "gripper" in name for name in spec.action_names]
        return np.where(keeps, action, 0.0).astype(np.float32)
