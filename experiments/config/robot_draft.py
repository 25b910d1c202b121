"""Drafts a robot file from a recording: its spec, and limits that every recorded command keeps."""

import json
import math
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

from policies.runtime.limits import GRIPPER, MOTION, ChannelLimits, SafetyLimits
from vla.data.reader import Dataset
from vla.files import atomic_write_text
from vla.spec import ACTION_CONVENTIONS, GRIPPER_SIGNS, Channel, RobotSpec

_GRIPPER_WORDS = ("gripper", "finger", "jaw")
_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
_ROOM = 1.2  # drafted speeds and accelerations, times the greatest recorded
_STILL = 1e-3  # of the range per second: a channel that moves less does not tell how fast it may


def draft_robot_file(dataset: Dataset) -> str:
    """Return the text of a robot file for a recording: its spec, and limits that the recording keeps.

    Args:
        dataset: opened with its spec.
    """
    spec, limits = dataset.robot_spec, draft_limits(dataset)
    cameras = ", ".join(f"{_word(one.name)}: [{one.height}, {one.width}]" for one in spec.cameras)
    lines = [
        "# Drafted by experiments.check: look at every line. Units: rad, deg, m, or 1 for a ratio.",
        f"name: {_word(spec.name)}",
        f"control_hz: {spec.control_hz:g}",
        f"action_convention: {spec.action_convention}   # {' | '.join(ACTION_CONVENTIONS)}",
        f"gripper_sign: {spec.gripper_sign}   # {' | '.join(GRIPPER_SIGNS)}",
        f"cameras: {{{cameras}}}   # height, width",
        *_channel_lines("state", spec.state),
        *_channel_lines("action", spec.action),
        "",
        f"# Those of the recording; speeds and accelerations times {_ROOM:g}. Check them at the robot.",
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
    atomic_write_text(path, draft_robot_file(dataset))
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
