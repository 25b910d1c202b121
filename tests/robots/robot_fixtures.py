"""An arm that follows twists exactly, for as long as they are meant to last, on a simulated clock."""

import numpy as np

from policies.robots.franka import ACTION_NAMES, ArmReading, rotation_from_vector
from policies.runtime.limits import ChannelLimits, SafetyLimits
from vla.spec import CameraSpec, Channel, RobotSpec

DOWN = np.diag([1.0, -1.0, -1.0])  # a hand that points down


def franka_spec(**changes) -> RobotSpec:
    names = {"tcp_x": (0.2, 0.8), "tcp_y": (-0.5, 0.5), "tcp_z": (-0.1, 0.5)}
    state = [Channel(name=name, unit="m", low=low, high=high) for name, (low, high) in names.items()]
    state += [Channel(name=name, unit="1", low=-1.0, high=1.0) for name in ("yaw_sin", "yaw_cos")]
    state.append(Channel(name="gripper_opening", unit="1", low=0.0, high=1.0))
    action = [Channel(name=name, unit="m", low=-0.025, high=0.025) for name in ACTION_NAMES[:3]]
    action += [Channel(name=name, unit="rad", low=-0.1, high=0.1) for name in ACTION_NAMES[3:6]]
    action.append(Channel(name="gripper", unit="1", low=0.0, high=1.0))
    given = {
        "name": "franka_test",
        "cameras": (CameraSpec(name="front", height=8, width=8),),
        "state": tuple(state),
        "action": tuple(action),
        "control_hz": 20.0,
        "action_convention": "end_effector_delta",
        "gripper_sign": "positive_opens",
    }
    return RobotSpec(**(given | changes))


def franka_limits() -> SafetyLimits:
    fast = {"velocity": 0.5, "acceleration": 9.0, "jerk": 4500.0}
    ranges = {"x": (0.3, 0.7), "y": (-0.36, 0.36), "z": (0.0, 0.4)}
    channels = {
        f"delta_{axis}": ChannelLimits(low=low, high=high, measured_by=f"tcp_{axis}", **fast)
        for axis, (low, high) in ranges.items()
    }
    channels |= {
        f"delta_{angle}": ChannelLimits(low=-0.6, high=0.6, velocity=2.0, acceleration=17.0, jerk=8500.0)
        for angle in ("roll", "pitch", "yaw")
    }
    channels["gripper"] = ChannelLimits(
        kind="gripper", low=0.0, high=1.0, velocity=20.0, measured_by="gripper_opening"
    )
    return SafetyLimits(channels=channels, max_tracking_error=0.08)


class FakeTwistArm:
    """Where it is follows from the twists that it was given and from the time; faults can be switched on."""

    def __init__(self, clock, *, position=(0.5, 0.0, 0.2)):
        self.clock = clock
        self.position, self.rotation, self.opening = np.array(position, float), DOWN.copy(), 1.0
        self.linear, self.angular = np.zeros(3), np.zeros(3)
        self.until = self.moved_to = clock.now()
        self.twists, self.num_stops = [], 0
        self.error = None
        self.is_blocked = self.is_silent = False
        self._heard = clock.now()

    def _catch_up(self):
        now = self.clock.now()
        passed = max(0.0, min(now, self.until) - self.moved_to)
        if not self.is_blocked:
            self.position = self.position + passed * self.linear
            self.rotation = rotation_from_vector(passed * self.angular) @ self.rotation
        self.moved_to = now

    def read(self):
        if self.error:
            raise self.error
        self._catch_up()
        if not self.is_silent:
            self._heard = self.clock.now()
        return ArmReading(
            time_s=self._heard,
            joints=np.zeros(7),
            position=self.position.copy(),
            rotation=self.rotation.copy(),
            opening=self.opening,
        )

    def follow(self, linear, angular, *, for_s):
        self._catch_up()
        self.linear, self.angular, self.until = linear, angular, self.clock.now() + for_s
        self.twists.append((linear, angular, for_s))

    def grip(self, opening):
        self.opening = opening

    def stop(self):
        self._catch_up()
        self.until = self.clock.now()
        self.num_stops += 1


class StripedCamera:
    """Gives a new picture each time."""

    def __init__(self):
        self.num_frames = 0
        self.error = None

    def frames(self, joints, opening, *, stamp):
        if self.error:
            raise self.error
        self.num_frames += 1
        return {"front": np.full((8, 8, 3), 20 + self.num_frames % 200, np.uint8)}, {"front": stamp}
