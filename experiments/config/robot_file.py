"""A robot's file: its spec in a few lines, then the limits of its commands, as YAML for people to edit.

`experiments.check` drafts it from a recording (robot_draft.py); `train` takes from it what the numbers of a
recording mean, and `control robot=lerobot` what the robot is and what it may do. Drafted limits are those of
the recording and count for nothing until a person has confirmed them in the file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from policies.runtime.limits import SafetyLimits
from vla.errors import VLAError
from vla.registry import Choices, Range, SettingError, check_attributes, check_settings
from vla.spec import ACTION_CONVENTIONS, GRIPPER_SIGNS, CameraSpec, Channel, RobotSpec

Channels = dict[str, tuple[str, float, float]]


class LimitsNotConfirmed(VLAError):
    """Nobody has confirmed the limits of a robot file."""


@dataclass(frozen=True, kw_only=True)
class RobotFile:
    """What a robot file says; `spec` and `limits` are what programs use."""

    name: Annotated[str, "of the robot"]
    control_hz: Annotated[float, Range(0.1, 1000), "commands per second, as recorded"]
    action_convention: Annotated[str, Choices(*ACTION_CONVENTIONS), "what an action is"]
    gripper_sign: Annotated[str, Choices(*GRIPPER_SIGNS), "what a larger number does to the gripper"]
    cameras: Annotated[dict[str, tuple[int, int]], Range(1, 8192), "height and width of the frames [pixels]"]
    state: Annotated[Channels, Range(-(10**6), 10**6), "unit, least and greatest value, by channel"]
    action: Annotated[Channels, Range(-(10**6), 10**6), "unit, least and greatest value, by channel"]
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
            state=_channels(self.state, kind="state"),
            action=_channels(self.action, kind="action"),
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


def require_confirmed_limits(path: Path | str) -> None:
    """Check that a person has confirmed the limits of a robot file.

    Raises:
        LimitsNotConfirmed: nobody has.
        ValueError: as `read_robot_file`.
    """
    if not read_robot_file(path).limits_confirmed:
        raise LimitsNotConfirmed(
            f"the limits in {path} were drafted from a recording, and nobody has confirmed them. Check every "
            "number under limits at the robot (dry_run=true tries them without a command), then write "
            "limits_confirmed: true in that file"
        )


def _channels(channels: Channels, *, kind: str) -> tuple[Channel, ...]:
    try:
        return tuple(
            Channel(name=name, unit=unit, low=low, high=high) for name, (unit, low, high) in channels.items()
        )
    except ValueError as error:
        raise SettingError(f"{kind}: {error}") from error
