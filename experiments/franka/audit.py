"""Checks what was really sent to a Franka arm, millisecond by millisecond, against the robot's own limits.

Reads setpoints, sends nothing. The limits are libfranka 0.21.2's for joint motions (`rate_limiting.h`) and
the FR3's documented ranges, not those that the arm was driven with: one may be held against the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.tabletop.arm import JOINT_HIGH, JOINT_LOW, JOINT_SPEED
from policies.robots.franky_arm import Setpoint

ACCELERATION, JERK = 10.0, 5000.0  # of every joint [rad/s2, rad/s3]
_TICK_S = 0.001
MAX_LOST = 20  # packets in a row without which a robot carries on; it stops itself after that (libfranka)
_MAX_STALL_S = 0.2  # a simulator carries on for longer; by then a command is over and the arm at rest
_AT_REST = 0.01  # a motion begins and ends within this of zero [rad/s]
_MOVES = 0.02  # measured joint speed above which the arm counts as moving [rad/s]


@dataclass(frozen=True, kw_only=True, slots=True)
class SetpointAudit:
    """The largest share of each limit that was used, over all joints; 1 is the limit."""

    setpoints: int
    velocity: float  # commanded
    acceleration: float
    jerk: float
    measured_speed: float
    range_margin_rad: float  # of the measured joints from the ends of their ranges, the least
    abrupt_ends: int  # motions that began or ended at speed
    lost: int  # milliseconds of motions in which the arm received no command, as happens on a busy machine,
    lost_in_a_row: int  # and the most of them in a row

    @property
    def violations(self) -> int:
        """How many of the limits were broken."""
        shares = (self.velocity, self.acceleration, self.jerk, self.measured_speed)
        return sum(share > 1.0 for share in shares) + (self.range_margin_rad < 0) + self.abrupt_ends


def audit_setpoints(setpoints: Sequence[Setpoint]) -> SetpointAudit:
    """Return what a stream of setpoints, in the order of their times, came to.

    Raises:
        ValueError: there are none.
    """
    if not setpoints:
        raise ValueError("no setpoint was recorded; did the arm move at all?")
    times = np.array([one.time_s for one in setpoints])
    commanded = np.array([one.commanded for one in setpoints])
    joints = np.array([one.joints for one in setpoints])
    speeds = np.array([one.speeds for one in setpoints])
    gaps = np.diff(times)
    moves = np.abs(commanded).max(axis=1) > _AT_REST
    whole = gaps < 1.5 * _TICK_S
    joined = gaps < (MAX_LOST + 1.5) * _TICK_S  # else one motion ended, and another began
    joined |= (gaps < _MAX_STALL_S) & moves[:-1] & moves[1:]
    lost = np.rint(gaps[joined & ~whole] / _TICK_S - 1.0)
    accelerations = np.diff(commanded, axis=0) / np.maximum(gaps, _TICK_S)[:, None]
    jerks = np.diff(accelerations, axis=0)[whole[1:] & whole[:-1]] / _TICK_S
    ends = np.abs(np.concatenate([commanded[:-1][~joined], commanded[1:][~joined], commanded[[0, -1]]]))
    limit = np.array(JOINT_SPEED)
    margins = np.minimum(joints - np.array(JOINT_LOW), np.array(JOINT_HIGH) - joints)
    return SetpointAudit(
        setpoints=len(setpoints),
        velocity=float((np.abs(commanded) / limit).max()),
        acceleration=float(np.abs(accelerations[joined]).max(initial=0.0)) / ACCELERATION,
        jerk=float(np.abs(jerks).max(initial=0.0)) / JERK,
        measured_speed=float((np.abs(speeds) / limit).max()),
        range_margin_rad=float(margins.min()),
        abrupt_ends=int((ends.max(axis=1) > _AT_REST).sum()),
        lost=int(lost.sum()),
        lost_in_a_row=int(lost.max(initial=0.0)),
    )


def last_motion_s(setpoints: Sequence[Setpoint]) -> float:
    """Return the arm's time at which it was last measured to move [s]."""
    moving = [one.time_s for one in setpoints if float(np.abs(one.speeds).max()) > _MOVES]
    return max(moving, default=-float("inf"))
