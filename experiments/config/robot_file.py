"""A robot's file: its spec in a few lines, then the limits of its commands, as YAML for people to edit.

`experiments.check` drafts it from a recording; `train` takes from it what the numbers of a recording mean,
and `control robot=lerobot` what the robot is and what it may do. Drafted limits are those of the recording
and count for nothing until a person has confirmed them in the file.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from policies.runtime.limits import GRIPPER, MOTION, ChannelLimits, SafetyLimits
from vla.data.reader import Dataset
from vla.errors import VLAError
from vla.files import atomic_write_bytes
from vla.registry import Choices, Range, check_attributes, check_settings
from vla.spec import ACTION_CONVENTIONS, GRIPPER_SIGNS, CameraSpec, Channel, RobotSpec

Channels = dict[str, tuple[str, float, float]]
_GRIPPER_WORDS = ("gripper", "finger", "jaw")
_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
_ROOM = 1.2  # drafted speeds and accelerations, times the greatest recorded
_STILL = 1e-3  # of the range per second: a channel that moves less does not tell how fast it may


class LimitsNotConfirmed(VLAError):
    """Nobody has confirmed the limits of a robot file."""


@dataclass(frozen=True, kw_only=True)
class RobotFile:
    """What a robot file says; `spec` and `limits` are what programs use."""

    name: Annotated[str, "of the robot"]
    control_hz: Annotated[float, Range(0, open_low=True), "commands per second, as recorded"]
    action_convention: Annotated[str, Choices(*ACTION_CONVENTIONS), "what an action is"]
    gripper_sign: Annotated[str, Choices(*GRIPPER_SIGNS), "what a larger number does to the gripper"]
    cameras: Annotated[dict[str, tuple[int, int]], Range(1), "height and width of the frames [pixels]"]
    state: Annotated[Channels, Range(), "unit, least and greatest value, by channel"]
    action: Annotated[Channels, Range(), "unit, least and greatest value, by channel"]
    limits_confirmed: Annotated[bool, "whether a person has checked the limits at the robot"]
    limits: Annotated[SafetyLimits, "what commands may never exceed"]

    def __post_init__(self) -> None:
        check_attributes(self)
        self.limits.require_fitting(self.spec)

    @property
    def spec(self) -> RobotSpec:
        """The robot as recordings, policies and drivers know it."""
        return RobotSpec(
            name=self.name,
            cameras=tuple(
                CameraSpec(name=name, height=height, width=width)
                for name, (height, width) in self.cameras.items()
            ),
            state=_channels(self.state),
            action=_channels(self.action),
            control_hz=self.control_hz,
            action_convention=self.action_convention,
            gripper_sign=self.gripper_sign,
        )


def read_robot_file(path: Path | str) -> RobotFile:
    """Read a robot file.

    Raises:
        ValueError: it is missing, no YAML, or holds something that makes no sense; the message names the file
            and the key.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError as error:
        raise ValueError(
            f"there is no robot file {path}; `python -m experiments.check dataset=...` drafts one"
        ) from error
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"robot file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"robot file {path} holds no keys; it should begin with name, control_hz, ...")
    try:
        values = {str(key): value for key, value in content.items()}
        return RobotFile(**check_settings(RobotFile, values))
    except ValueError as error:
        raise ValueError(f"robot file {path}: {error}") from error


def confirmed_limits(path: Path | str) -> SafetyLimits:
    """Return the limits of a robot file.

    Raises:
        LimitsNotConfirmed: nobody has confirmed them.
        ValueError: as `read_robot_file`.
    """
    file = read_robot_file(path)
    if not file.limits_confirmed:
        raise LimitsNotConfirmed(
            f"the limits in {path} were drafted from a recording, and nobody has confirmed them. Check every "
            "number under limits at the robot, then write limits_confirmed: true in that file"
        )
    return file.limits


def draft_robot_file(dataset: Dataset) -> str:
    """Return the text of a robot file for a recording: its spec, and limits that the recording keeps.

    Args:
        dataset: opened with its spec.
    """
    spec, limits = dataset.robot_spec, draft_limits(dataset)
    cameras = ", ".join(f"{_word(one.name)}: [{one.height}, {one.width}]" for one in spec.cameras)
    lines = [
        "# Drafted from a recording by experiments.check: look at every line. Units: rad, deg, m, or 1.",
        f"name: {_word(spec.name)}",
        f"control_hz: {spec.control_hz:g}",
        f"action_convention: {spec.action_convention}   # {' | '.join(ACTION_CONVENTIONS)}",
        f"gripper_sign: {spec.gripper_sign}   # {' | '.join(GRIPPER_SIGNS)}",
        f"cameras: {{{cameras}}}   # height, width",
        *_channel_lines("state", spec.state),
        *_channel_lines("action", spec.action),
        "",
        "# What commands may never exceed: commanded positions, in the unit of the channel, and their speeds.",
        f"# These are the recorded ones, speeds and accelerations times {_ROOM:g}. Check them at the robot.",
        "limits_confirmed: false",
        "limits:",
        "  channels:",
        *(f"    {_word(name)}: {_limits_text(one)}" for name, one in limits.channels.items()),
    ]
    return "\n".join(lines) + "\n"


def write_draft(path: Path, dataset: Dataset) -> bool:
    """Write the draft of a robot file, unless one is there already; return whether it was written."""
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, draft_robot_file(dataset).encode())
    return True


def draft_limits(dataset: Dataset) -> SafetyLimits:
    """Return limits that every command of a recording keeps, with room for speeds and accelerations."""
    spec = dataset.robot_spec
    channels = {}
    for column, channel in enumerate(spec.action):
        is_gripper = any(word in channel.name for word in _GRIPPER_WORDS)
        measured_by = _measured_by(spec, channel.name)
        tracks = _commanded_positions(dataset, column, is_gripper=is_gripper, measured_by=measured_by)
        low, high = min(float(track.min()) for track in tracks), max(float(track.max()) for track in tracks)
        if measured_by is None:
            low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            low, high = low - 0.5, high + 0.5
        least = _STILL * (high - low) * spec.control_hz
        speed = max(_greatest(tracks, 1) * spec.control_hz, least)
        acceleration = max(_greatest(tracks, 2) * spec.control_hz**2, least)
        channels[channel.name] = ChannelLimits(
            low=_outward(low, -1),
            high=_outward(high, 1),
            velocity=_outward(_ROOM * speed, 1),
            acceleration=math.inf if is_gripper else _outward(_ROOM * acceleration, 1),
            kind=GRIPPER if is_gripper else MOTION,
            measured_by=measured_by,
        )
    return SafetyLimits(channels=channels)


def _commanded_positions(
    dataset: Dataset, column: int, *, is_gripper: bool, measured_by: str | None
) -> list[Float[np.ndarray, " time"]]:
    """Return the commanded positions of a channel, episode by episode."""
    spec, actions = dataset.robot_spec, dataset.actions[:, column].astype(np.float64)
    tracks = []
    for start, length in zip(dataset.episode_starts, dataset.episode_lengths, strict=True):
        track = actions[start : start + length]
        if not (spec.gives_positions or is_gripper):
            first = 0.0 if measured_by is None else dataset.states[start, spec.state_names.index(measured_by)]
            track = float(first) + np.cumsum(track) * spec.change_per_action
        tracks.append(track)
    return tracks


def _greatest(tracks: list[Float[np.ndarray, " time"]], order: int) -> float:
    """Return the greatest absolute difference of an order between neighboring periods."""
    return max((float(np.abs(np.diff(track, n=order)).max(initial=0.0)) for track in tracks), default=0.0)


def _measured_by(spec: RobotSpec, action: str) -> str | None:
    """Return the state channel that measures what an action channel commands: the one of the same name."""
    return action if action in spec.state_names else None


def _outward(value: float, direction: int) -> float:
    """Return the nearest number of four digits that is not less (direction 1) or not greater (-1)."""
    if value == 0.0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    steps = math.ceil(value / unit - 1e-9) if direction > 0 else math.floor(value / unit + 1e-9)
    return float(f"{steps * unit:.4g}")


def _channels(channels: Channels) -> tuple[Channel, ...]:
    return tuple(
        Channel(name=name, unit=unit, low=low, high=high) for name, (unit, low, high) in channels.items()
    )


def _channel_lines(kind: str, channels: tuple[Channel, ...]) -> list[str]:
    rows = (
        f"  {_word(one.name)}: [{_word(one.unit)}, {_outward(one.low, -1):g}, {_outward(one.high, 1):g}]"
        for one in channels
    )
    return [f"{kind}:", *rows]


def _word(text: str) -> str:
    """Return text as YAML reads it back: quoted where it could be taken for something else."""
    is_plain = re.fullmatch(r"[A-Za-z_][\w.-]*", text, re.ASCII) and text.lower() not in _YAML_WORDS
    return text if is_plain else json.dumps(text)


def _limits_text(limits: ChannelLimits) -> str:
    values = {"low": limits.low, "high": limits.high, "velocity": limits.velocity}
    if math.isfinite(limits.acceleration):
        values["acceleration"] = limits.acceleration
    parts = [f"{key}: {value:g}" for key, value in values.items()]
    parts += [f"kind: {limits.kind}"] if limits.kind == GRIPPER else []
    parts += [f"measured_by: {_word(limits.measured_by)}"] if limits.measured_by is not None else []
    return "{" + ", ".join(parts) + "}"
