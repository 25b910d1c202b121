"""What a robot (or a simulated one) looks like from outside: cameras, state, action, units, limits, rate.

A `RobotSpec` is plain data. It is written into datasets, checkpoints and bundles, and compared wherever two
of them meet, so a policy cannot drive a robot whose conventions differ from those it was trained on.
It knows nothing about models, simulators or files other than its own JSON form.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla.errors import Refusal

ACTION_CONVENTIONS = (
    "joint_target",
    "joint_delta",
    "joint_velocity",
    "end_effector_target",
    "end_effector_delta",
)
MOST_PIXELS_A_SIDE = 8192
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
GRIPPER_SIGNS = ("positive_opens", "positive_closes", "none")


class SpecMismatch(Refusal):
    """Two robot specs that had to agree do not; the message lists each difference."""


def is_utf8(text: str) -> bool:
    """Tell whether text can be written as UTF-8, which a lone surrogate (half a character) cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Tell whether a value is a finite number, also in the precision of states and actions."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and bool(abs(value) <= _LARGEST_FLOAT32)


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraSpec:
    """One RGB camera: its name and the size of its frames in pixels.

    The name becomes the name of files and folders, so it is one path component of printable characters.
    """

    name: str
    height: int
    width: int

    def __post_init__(self) -> None:
        name = self.name
        is_printable = isinstance(name, str) and name.isprintable() and len(name.encode()) <= 200
        if not is_printable or not 1 <= len(name) <= 100 or name.startswith(".") or {"/", "\\"} & set(name):
            raise ValueError(
                f"camera name {name!r} cannot name a file; give 1 to 100 printable characters (200 bytes in "
                "UTF-8) without '/' and '\\' that do not begin with '.', such as 'wrist_left'"
            )
        for kind, size in (("height", self.height), ("width", self.width)):
            if not _is_integer(size) or not 1 <= size <= MOST_PIXELS_A_SIDE:
                raise ValueError(
                    f"camera {name!r} has the {kind} {size!r}; give 1 to {MOST_PIXELS_A_SIDE} pixels"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """One number of the state or the action: name, unit (SI, `rad`, `1` for a ratio) and its closed range."""

    name: str
    unit: str
    low: float
    high: float

    def __post_init__(self) -> None:
        for kind, text in (("name", self.name), ("unit", self.unit)):
            if not isinstance(text, str) or not text or not is_utf8(text):
                raise ValueError(f"channel {self.name!r} has the {kind} {text!r}; give text in valid UTF-8")
        if not (_is_number(self.low) and _is_number(self.high) and self.low < self.high):
            raise ValueError(
                f"channel {self.name!r} has range [{self.low}, {self.high}]; it must be finite, also as "
                "float32, and low < high"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RobotSpec:
    """Everything that two programs must agree on before one may command the other.

    `action_convention` is one of `ACTION_CONVENTIONS`: targets are positions; a delta is applied each control
    period to the commanded position, that of an end effector in the robot's base frame; a velocity, in units
    per second, holds for one control period. `gripper_sign` tells what a larger gripper action does.
    """

    name: str
    cameras: tuple[CameraSpec, ...]
    state: tuple[Channel, ...]
    action: tuple[Channel, ...]
    control_hz: float
    action_convention: str
    gripper_sign: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not is_utf8(self.name):
            raise ValueError(f"the robot name {self.name!r} is no valid UTF-8 text")
        if self.action_convention not in ACTION_CONVENTIONS:
            raise ValueError(f"action_convention {self.action_convention!r} is none of {ACTION_CONVENTIONS}")
        if self.gripper_sign not in GRIPPER_SIGNS:
            raise ValueError(f"gripper_sign {self.gripper_sign!r} is none of {GRIPPER_SIGNS}")
        if not (_is_number(self.control_hz) and self.control_hz > 0):
            raise ValueError(f"control_hz is {self.control_hz!r}; it must be a positive, finite rate in Hz")
        for kind, names in (
            ("camera", self.camera_names),
            ("state", self.state_names),
            ("action", self.action_names),
        ):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"robot spec {self.name!r} repeats the {kind} names {repeated}")

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Camera names in the order in which every array stacks them."""
        return tuple(camera.name for camera in self.cameras)

    @property
    def state_names(self) -> tuple[str, ...]:
        """State channel names in array order."""
        return tuple(channel.name for channel in self.state)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Action channel names in array order."""
        return tuple(channel.name for channel in self.action)

    @property
    def action_low(self) -> Float32[np.ndarray, " action"]:
        """Smallest allowed action, in each channel's unit."""
        return np.array([channel.low for channel in self.action], dtype=np.float32)

    @property
    def action_high(self) -> Float32[np.ndarray, " action"]:
        """Largest allowed action, in each channel's unit."""
        return np.array([channel.high for channel in self.action], dtype=np.float32)

    @property
    def gives_positions(self) -> bool:
        """Whether actions are positions; else they are changes (see `change_per_action`)."""
        return self.action_convention.endswith("_target")

    @property
    def change_per_action(self) -> float:
        """By how much an action of 1 changes the commanded position in a control period."""
        return 1.0 / self.control_hz if self.action_convention == "joint_velocity" else 1.0

    def seeing(self, cameras: Sequence[str]) -> "RobotSpec":
        """Return the spec with only these of its cameras, in this order.

        Raises:
            ValueError: none is named, one is named twice, or does not exist.
        """
        mine = {camera.name: camera for camera in self.cameras}
        if not cameras or len(set(cameras)) < len(cameras) or not set(cameras) <= set(mine):
            raise ValueError(
                f"cameras {list(cameras)} must be some of those of {self.name!r}, each once: {list(mine)}"
            )
        return dataclasses.replace(self, cameras=tuple(mine[name] for name in cameras))

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON-ready dictionaries and lists."""
        data = dataclasses.asdict(self)
        for key in ("cameras", "state", "action"):
            data[key] = list(data[key])
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RobotSpec":
        """Rebuild a spec from `to_json`.

        Raises:
            ValueError: a key is missing or unknown; the message names both sets.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        if set(data) != expected:
            missing, unknown = sorted(expected - set(data)), sorted(set(data) - expected)
            raise ValueError(f"robot spec JSON lacks {missing} and has unknown keys {unknown}")
        rate = data["control_hz"]
        return cls(
            name=data["name"],
            cameras=tuple(CameraSpec(**camera) for camera in data["cameras"]),
            state=tuple(Channel(**channel) for channel in data["state"]),
            action=tuple(Channel(**channel) for channel in data["action"]),
            control_hz=float(rate) if _is_number(rate) else rate,
            action_convention=data["action_convention"],
            gripper_sign=data["gripper_sign"],
        )

    def differences(self, other: "RobotSpec") -> list[str]:
        """Return one line for each field on which the two specs disagree; empty when they agree."""
        mine, theirs = self.to_json(), other.to_json()
        return [f"{key}: {mine[key]} against {theirs[key]}" for key in mine if mine[key] != theirs[key]]

    def require_same(self, other: "RobotSpec", *, mine: str, theirs: str) -> None:
        """Check that two specs are interchangeable.

        Args:
            other: the spec to compare with.
            mine: what this spec belongs to, for the message (for example ``"checkpoint runs/a"``).
            theirs: what the other belongs to.

        Raises:
            SpecMismatch: they differ; the message lists every difference.
        """
        lines = self.differences(other)
        if lines:
            listing = "\n  ".join(lines)
            raise SpecMismatch(f"{mine} and {theirs} describe different robots:\n  {listing}")
