"""Tiny robot, processor and observations for the policy tests; the golden bundle has them. No torch."""

import numpy as np

from vla.interface import Observation
from vla.processing.moments import Demonstrations
from vla.processing.processor import DEFAULT_INPUTS, Processor
from vla.spec import CameraSpec, Channel, RobotSpec

INSTRUCTIONS = ("lift the red cube", "push the blue ball to the green mat", "open the drawer")


def tiny_spec() -> RobotSpec:
    return RobotSpec(
        name="tiny",
        cameras=(
            CameraSpec(name="exterior", height=32, width=32),
            CameraSpec(name="wrist", height=32, width=32),
        ),
        state=(
            Channel(name="x", unit="m", low=-0.5, high=0.5),
            Channel(name="y", unit="m", low=-0.5, high=0.5),
            Channel(name="opening", unit="1", low=0.0, high=1.0),
        ),
        action=(
            Channel(name="dx", unit="m", low=-0.025, high=0.025),
            Channel(name="yaw", unit="rad", low=-0.1, high=0.1),
            Channel(name="gripper", unit="1", low=0.0, high=1.0),
        ),
        control_hz=20.0,
        action_convention="end_effector_delta",
        gripper_sign="positive_opens",
    )


def tiny_processor(frame_offsets=(0,), max_committed=0, codec=None) -> Processor:
    rng = np.random.default_rng(0)
    spec = tiny_spec()
    states = rng.uniform(-0.5, 0.5, (200, 3)).astype(np.float32)
    actions = rng.uniform(spec.action_low, spec.action_high, (200, 3)).astype(np.float32)
    return Processor.fit(
        Demonstrations(
            robot_spec=spec,
            states=states,
            actions=actions,
            chunks=actions.reshape(50, 4, 3),
            instructions=list(INSTRUCTIONS),
        ),
        codec=codec or {"kind": "uniform", "num_bins": 16},
        inputs={**DEFAULT_INPUTS, "text": {"kind": "text", "max_tokens": 24, "vocab_size": 280}},
        frame_offsets=frame_offsets,
        max_committed=max_committed,
    )


def tiny_observations(count: int, *, num_frames=1, seed=1) -> list[Observation]:
    rng = np.random.default_rng(seed)
    return [
        Observation(
            images={
                name: rng.integers(0, 256, (num_frames, 32, 32, 3), dtype=np.uint8)
                for name in ("exterior", "wrist")
            },
            state=rng.uniform(-0.5, 0.5, 3).astype(np.float32),
            instruction=INSTRUCTIONS[i % len(INSTRUCTIONS)],
            committed=np.zeros((0, 3), dtype=np.float32),
            stamp=float(i),
        )
        for i in range(count)
    ]
