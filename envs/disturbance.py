"""What pushes an expert off its path while it is recorded (DART, arXiv:1703.09327).

Two kinds, both added to the action that is executed and never to the one that is recorded: noise in every
control period, and now and then a bump, a few periods of steady drift, after which the hand is centimeters
from where the expert meant it. Noise alone never leads as far off as a policy strays; bumps show the way
back.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float32

from vla.registry import Range, check_attributes
from vla.spec import RobotSpec

_STREAM = 0x0DA27  # keeps this randomness apart from the scene, which is drawn from the seed alone
_BUMP_STEPS = (3, 7)  # control periods, the second excluded
_BUMP_SIZE = (0.3, 0.8)  # of half the range of a channel


@dataclass(frozen=True, kw_only=True, slots=True)
class Disturbance:
    """How much experts are disturbed.

    Raises:
        SettingError: a value is not allowed.
    """

    noise_std: Annotated[
        float, Range(0, 1), "standard deviation in each period, as a share of half of a channel's range"
    ] = 0.0
    probability: Annotated[float, Range(0, 1), "share of the episodes that are disturbed"] = 0.0
    bump_probability: Annotated[
        float, Range(0, 1), "of a few periods' drift to begin in a period of such an episode"
    ] = 0.0

    def __post_init__(self) -> None:
        check_attributes(self, where="disturbance")

    def of_episode(self, spec: RobotSpec, *, seed: int) -> Iterator[Float32[np.ndarray, " action"]] | None:
        """Return what is to be added to the actions of an episode, one after another; None for nothing."""
        rng = np.random.default_rng([_STREAM, seed])
        return self._drawn(spec, rng) if rng.random() < self.probability else None

    def _drawn(self, spec: RobotSpec, rng: np.random.Generator) -> Iterator[Float32[np.ndarray, " action"]]:
        unit = disturbed_range(spec)
        drift, left = np.zeros_like(unit), 0
        while True:
            if left == 0 and rng.random() < self.bump_probability:
                left = int(rng.integers(*_BUMP_STEPS))
                direction = rng.standard_normal(len(unit)) * (unit > 0)
                drift = (
                    unit * direction * rng.uniform(*_BUMP_SIZE) / max(float(np.abs(direction).max()), 1e-9)
                )
            noise = self.noise_std * unit * rng.standard_normal(len(unit))
            yield (noise + drift * (left > 0)).astype(np.float32)
            left = max(0, left - 1)


def is_gripper(spec: RobotSpec) -> Bool[np.ndarray, " action"]:
    """Return which action channels move a gripper, by their names."""
    return np.array(["gripper" in name for name in spec.action_names])


def disturbed_range(spec: RobotSpec) -> Float32[np.ndarray, " action"]:
    """Return half the range of each channel that may be disturbed, in its units, and 0 for the others.

    Grippers are left alone, and so are the turns of an end effector: that would cost grasps and teach little.
    """
    still = is_gripper(spec)
    if spec.action_convention == "end_effector_delta":
        still = still | np.array([channel.unit == "rad" for channel in spec.action])
    return ((spec.action_high - spec.action_low) / 2 * ~still).astype(np.float32)
