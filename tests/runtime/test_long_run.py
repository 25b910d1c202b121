"""A minute at 50 Hz behind a policy that takes 200 ms, in simulated time."""

import numpy as np
import pytest
from control_fixtures import FakeArm
from runtime_fixtures import arm_limits, arm_spec

from policies.runtime.chunking import make_schedule
from policies.runtime.clock import SimulatedClock
from policies.runtime.controller import Controller
from policies.runtime.inference import SimulatedInference
from policies.runtime.observation_buffer import StreamLimits
from policies.runtime.recorder import Recording, audit_recording
from policies.runtime.safety import SafetyFilter
from policies.runtime.watchdog import WatchdogLimits

HZ, DELAY_S = 50.0, 0.2


class Wanderer:
    """Moves between random places; every chunk begins a little off from where the last one went."""

    frame_offsets, action_horizon = (0,), 32

    def __init__(self, spec):
        self.robot_spec, self.rng, self.goal = spec, np.random.default_rng(0), np.zeros(2)

    def predict(self, observations):
        if self.rng.random() < 0.1:
            self.goal = self.rng.uniform(-0.4, 0.4, 2)
        left = self.goal - observations[0].state[:2]
        steps = 0.05 * left * 0.95 ** np.arange(32)[:, None] + self.rng.normal(0, 0.002, (1, 2))
        return np.concatenate([np.clip(steps, -0.01, 0.01), np.ones((32, 1))], axis=1).astype(np.float32)[
            None
        ]


@pytest.mark.parametrize(("schedule", "seconds"), [("async", 10.0), ("rtc", 60.0)])
def test_no_command_is_missed_and_no_limit_broken_at_50_hz_behind_200_ms(schedule, seconds):
    spec, clock = arm_spec(control_hz=HZ), SimulatedClock()
    limits = arm_limits(velocity=0.5, acceleration=5.0, jerk=200.0)
    arm = FakeArm(clock, spec=spec)
    controller = Controller(
        robot=arm,
        inference=SimulatedInference(policy=Wanderer(spec), clock=clock, delay_s=lambda: DELAY_S),
        schedule=make_schedule(
            schedule, period_s=1 / HZ, execute_horizon=12, num_actions=3, max_committed=16
        ),
        safety=SafetyFilter(spec=spec, limits=limits),
        instruction="wander",
        frame_offsets=(0,),
        clock=clock,
        watchdog=WatchdogLimits(),
        stream=StreamLimits(),
    )
    records = []

    def on_period(record):
        records.append(record)
        if record.index == 3:
            controller.arm()
            controller.start()
        return len(arm.commands) < seconds * HZ

    controller.run(on_period)
    assert len(records) - 4 == len(arm.commands) == seconds * HZ  # one in each period after the start
    assert controller.counts["missed periods"] == 0
    assert controller.counts["times HOLD"] == 0
    assert controller.counts["chunks"] > 3 * seconds
    assert audit_recording(Recording(robot_spec=spec, about={}, periods=records), limits) == []
    commands = np.array(arm.commands)
    assert np.ptp(np.cumsum(commands[:, 0])) > 0.2  # it did wander
