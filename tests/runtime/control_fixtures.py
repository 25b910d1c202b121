"""A fake robot, fake policies and a harness that runs a real controller on a simulated clock."""

from pathlib import Path

import numpy as np
from runtime_fixtures import arm_limits, arm_spec, reading_at

from policies.runtime.chunking import make_schedule
from policies.runtime.clock import SimulatedClock
from policies.runtime.controller import Controller
from policies.runtime.inference import SimulatedInference
from policies.runtime.observation_buffer import StreamLimits
from policies.runtime.recorder import Recorder, audit_recording, read_recording
from policies.runtime.safety import SafetyFilter
from policies.runtime.states import State
from policies.runtime.watchdog import WatchdogLimits

HZ = 20.0
DT = 1.0 / HZ
OPEN: list[Recorder] = []  # closed by conftest.py when a test ends


class FakeArm:
    """Follows deltas perfectly. Every fault of a real one can be switched on."""

    def __init__(self, clock, *, start=(0.0, 0.0, 1.0), spec=None):
        self.robot_spec = arm_spec() if spec is None else spec
        self.clock = clock
        self.position = np.array(start, float)
        self.commands, self.num_stops = [], 0
        self.observe_error = self.command_error = self.stop_error = None
        self.is_silent = self.is_frozen = self.is_black = False
        self.work_s = 0.0  # that a command takes
        self.edit = lambda reading: reading  # what happens to a reading on its way
        self._last = None

    def observe(self):
        if self.observe_error:
            raise self.observe_error
        if self._last is not None and self.is_silent:
            return self._last
        shade = 0 if self.is_black else 77 if self.is_frozen else None
        self._last = self.edit(reading_at(self.clock.now(), state=self.position, shade=shade))
        return self._last

    def command(self, action):
        if self.command_error:
            raise self.command_error
        self.commands.append(action.copy())
        moves = self.robot_spec.action_convention != "joint_target"
        self.position[:2] = action[:2] + (self.position[:2] if moves else 0.0)
        self.position[2] = action[2]
        if self.work_s:
            self.clock.advance(self.work_s)

    def stop(self):
        self.num_stops += 1
        if self.stop_error:
            raise self.stop_error


class FakePolicy:
    """Moves to and fro; `answer` may be replaced by anything."""

    frame_offsets = (0,)
    action_horizon = 8

    def __init__(self, spec=None):
        self.robot_spec = arm_spec() if spec is None else spec
        self.seen = []
        self.answer = lambda observation: np.tile(np.float32([0.004, -0.002, 1.0]), (8, 1))

    def predict(self, observations):
        self.seen.extend(observations)
        return [self.answer(observation) for observation in observations]


class Harness:
    """A controller with everything fake but itself; `step` runs one period of simulated time."""

    def __init__(
        self,
        directory: Path,
        *,
        schedule="async",
        delay_s=0.0,
        arm=None,
        velocity=0.5,
        acceleration=20.0,
        make_inference=None,
        **watchdog,
    ):
        self.clock = SimulatedClock(start_s=100.0) if arm is None else arm.clock
        self.arm = FakeArm(self.clock) if arm is None else arm
        self.policy = FakePolicy(self.arm.robot_spec)
        self.delay_s = delay_s
        self.directory = directory
        self.limits = arm_limits(low=-5.0, high=5.0, velocity=velocity, acceleration=acceleration, jerk=800.0)
        self.inference = self.simulated_inference() if make_inference is None else make_inference(self)
        about = {"limits": self.limits.to_json()}
        self.recorder = Recorder(directory, spec=self.arm.robot_spec, about=about)
        OPEN.append(self.recorder)
        self.controller = Controller(
            robot=self.arm,
            inference=self.inference,
            schedule=make_schedule(schedule, period_s=DT, execute_horizon=4, num_actions=3, max_committed=7),
            safety=SafetyFilter(spec=self.arm.robot_spec, limits=self.limits),
            instruction="go on",
            frame_offsets=self.policy.frame_offsets,
            clock=self.clock,
            watchdog=WatchdogLimits(**watchdog),
            stream=StreamLimits(state_jump=0.2),
            recorder=self.recorder,
        )
        self.records = []

    def simulated_inference(self):
        return SimulatedInference(policy=self.policy, clock=self.clock, delay_s=lambda: self.delay_s)

    @property
    def state(self):
        return self.controller.state

    def steps(self, count=1):
        """Run periods; the loop is the controller's own."""
        left = [count]

        def on_period(record):
            self.records.append(record)
            left[0] -= 1
            return left[0] > 0

        self.controller.run(on_period)
        return self.records[-1]

    def started(self, count=4):
        self.steps(4)
        self.controller.arm()
        self.controller.start()
        self.steps(count)
        return self

    def until(self, state: State, *, at_most: int):
        """Return how many periods passed until a state was reached."""
        for count in range(at_most + 1):
            if self.state is state:
                return count
            self.steps(1)
        raise AssertionError(f"still {self.state} after {at_most} periods; events {self.events()}")

    def executed(self):
        """The periods in which an action of the policy was executed."""
        return [one for one in self.records if one.state == "RUNNING" and one.target is not None]

    def ran_blind(self):
        """Whether it was RUNNING without an action after it had executed one since its start."""
        has_acted = False
        for one in self.records:
            if one.state not in ("RUNNING", "HOLD"):
                has_acted = False
            elif one.state == "RUNNING" and one.target is None and has_acted:
                return True
            has_acted = has_acted or (one.state == "RUNNING" and one.target is not None)
        return False

    def events(self):
        return [event for record in self.records for event in record.events]

    def violations(self):
        """What the recorded stream broke, by the audit's own arithmetic."""
        self.recorder.close()
        recording = read_recording(self.directory)
        assert len(recording.periods) == len(self.records)
        return audit_recording(recording, self.limits)
