"""Robots, limits and policies for the runtime's tests: small, and as nasty as policies get."""

import math

import numpy as np

from policies.runtime.limits import ChannelLimits, SafetyLimits
from vla.interface import Observation, SensorReading
from vla.spec import CameraSpec, Channel, RobotSpec


def arm_spec(convention="end_effector_delta", control_hz=20.0) -> RobotSpec:
    """Two motion channels and a gripper, all measured."""
    reach = 0.025 if convention.endswith("delta") else 2.0
    return RobotSpec(
        name="testarm",
        cameras=(CameraSpec(name="front", height=8, width=8),),
        state=(
            Channel(name="at_x", unit="m", low=-2.0, high=2.0),
            Channel(name="at_y", unit="m", low=-2.0, high=2.0),
            Channel(name="opening", unit="1", low=0.0, high=1.0),
        ),
        action=(
            Channel(name="x", unit="m", low=-reach, high=reach),
            Channel(name="y", unit="m", low=-reach, high=reach),
            Channel(name="gripper", unit="1", low=0.0, high=1.0),
        ),
        control_hz=control_hz,
        action_convention=convention,
        gripper_sign="positive_opens",
    )


def arm_limits(
    *, velocity=0.5, acceleration=4.0, jerk=60.0, low=-0.5, high=0.5, step=math.inf, **rest
) -> SafetyLimits:
    motion = {"low": low, "high": high, "velocity": velocity, "acceleration": acceleration, "jerk": jerk}
    return SafetyLimits(
        channels={
            "x": ChannelLimits(measured_by="at_x", step=step, **motion),
            "y": ChannelLimits(measured_by="at_y", step=step, **motion),
            "gripper": ChannelLimits(kind="gripper", low=0.0, high=1.0, velocity=4.0, measured_by="opening"),
        },
        **rest,
    )


def reading_at(stamp, *, state=(0.0, 0.0, 1.0), shade=None, image_stamp=None) -> SensorReading:
    frame = np.full((8, 8, 3), 100 if shade is None else shade, np.uint8)
    if shade is None:  # as from a real camera, no two frames are equal
        frame[0, 0] = np.frombuffer(np.float32(stamp).tobytes()[:3], np.uint8)
    return SensorReading(
        images={"front": frame},
        image_stamps={"front": stamp if image_stamp is None else image_stamp},
        state=np.array(state, np.float32),
        state_stamp=stamp,
    )


def observation_at(stamp) -> Observation:
    reading = reading_at(stamp)
    return Observation(
        images={name: frame[None] for name, frame in reading.images.items()},
        state=reading.state,
        instruction="go on",
        committed=np.zeros((0, 3), np.float32),
        stamp=stamp,
    )
