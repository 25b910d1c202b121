"""A small robot and its demonstrations: two cameras, a gripper of 0 or 1, an axis that never turns."""

import sys
from pathlib import Path

import numpy as np
import pytest

from vla.interface import Observation
from vla.processing.processor import Processor
from vla.spec import CameraSpec, Channel, RobotSpec

sys.path.insert(0, str(Path(__file__).parent))  # so that the tests of this folder share the fixtures

from processing_fixtures import fit

NUM_DEMONSTRATIONS = 2000


@pytest.fixture(scope="session")
def robot_spec() -> RobotSpec:
    return RobotSpec(
        name="toy",
        cameras=(CameraSpec(name="exterior", height=4, width=6), CameraSpec(name="wrist", height=4, width=6)),
        state=(
            Channel(name="x", unit="m", low=-1.0, high=1.0),
            Channel(name="opening", unit="1", low=0.0, high=1.0),
        ),
        action=(
            Channel(name="dx", unit="m", low=-0.025, high=0.025),
            Channel(name="roll", unit="rad", low=-0.1, high=0.1),
            Channel(name="gripper", unit="1", low=0.0, high=1.0),
        ),
        control_hz=20.0,
        action_convention="end_effector_delta",
        gripper_sign="positive_opens",
    )


@pytest.fixture(scope="session")
def demonstrated_actions() -> np.ndarray:
    generator = np.random.default_rng(0)
    dx = np.clip(generator.normal(0, 0.01, NUM_DEMONSTRATIONS), -0.025, 0.025)
    gripper = (generator.random(NUM_DEMONSTRATIONS) < 0.7).astype(np.float64)
    return np.stack([dx, np.zeros(NUM_DEMONSTRATIONS), gripper], axis=1).astype(np.float32)


@pytest.fixture(scope="session")
def demonstrated_states() -> np.ndarray:
    generator = np.random.default_rng(1)
    return generator.uniform([-0.5, 0.0], [0.7, 1.0], size=(NUM_DEMONSTRATIONS, 2)).astype(np.float32)


@pytest.fixture(scope="session", params=["uniform", "quantile"])
def processor(request, robot_spec, demonstrated_states, demonstrated_actions) -> Processor:
    return fit(robot_spec, demonstrated_states, demonstrated_actions, codec=request.param)


@pytest.fixture
def observation(robot_spec) -> Observation:
    generator = np.random.default_rng(2)
    return Observation(
        images={
            camera.name: generator.integers(0, 256, (2, camera.height, camera.width, 3), dtype=np.uint8)
            for camera in robot_spec.cameras
        },
        state=np.array([0.1, 0.5], dtype=np.float32),
        instruction="Lift the BLUE ball!",
        committed=np.zeros((0, 3), dtype=np.float32),
        stamp=0.0,
    )
