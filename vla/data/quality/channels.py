"""Checks of single channels: ranges, clipping, jumps, outliers, constants and the gripper."""

import re

import numpy as np
from jaxtyping import Bool, Float64, Int64

from vla.data.quality.findings import Finding, found
from vla.data.quality.recording import Recording, is_gripper
from vla.spec import Channel

OUTSIDE = 0.05  # of the declared range, beyond its ends
FEW_VALUES = 8  # a channel with so few different values is a switch: it may jump
JUMP = 0.1  # of the channel's span; and
JUMP_FACTOR = 6  # times the steps next to it, and
USUAL_FACTOR = 5  # times the largest of the usual steps (their 99th percentile)
GRASPING = re.compile(r"\b(pick|lift|grasp|grab|take|place|put|stack|raise|fetch|insert|pour)", re.IGNORECASE)


def check_channels(recording: Recording) -> list[Finding]:
    """Find values that a sensor or command of this robot cannot have had."""
    findings = []
    spec = recording.dataset.robot_spec
    for kind, values, channels in (
        ("state", recording.states, spec.state),
        ("action", recording.actions, spec.action),
    ):
        for i, channel in enumerate(channels):
            name, column = recording.name(kind, i), values[:, i]
            findings += _out_of_range(recording, name, column, channel)
            if is_gripper(channel.name):
                continue
            if np.ptp(column) == 0:
                message = f"{name} is {column[0]:g} in every frame"
                findings.append(found("constant", "warning", message, channel=name))
            elif kind == "state" or recording.absolute:
                findings += _discontinuities(recording, name, column, channel)
    return [*findings, *_clipped(recording), *_gripper(recording)]


def _out_of_range(
    recording: Recording, name: str, column: Float64[np.ndarray, " N"], channel: Channel
) -> list[Finding]:
    margin = OUTSIDE * (channel.high - channel.low)
    outside = (column < channel.low - margin) | (column > channel.high + margin)
    if not outside.any():
        return []
    message = (
        f"{name} reaches [{column.min():.4g}, {column.max():.4g}], its range is [{channel.low:.4g}, "
        f"{channel.high:.4g}] {channel.unit}: {outside.sum()} frames"
    )
    return [found("out_of_range", "warning", message, episodes=_episodes(recording, outside), channel=name)]


def _discontinuities(
    recording: Recording, name: str, column: Float64[np.ndarray, " N"], channel: Channel
) -> list[Finding]:
    """Find steps that no motor makes: far larger than the steps around them."""
    if len(np.unique(column[:10_000])) <= FEW_VALUES:
        return []
    low, high = np.quantile(column, [0.01, 0.99])
    steps = np.where(recording.follows, np.diff(column), 0.0)
    size = np.abs(steps)
    around = np.maximum.reduce([np.roll(size, 2), np.roll(size, 3), np.roll(size, -2), np.roll(size, -3)])
    usual = np.quantile(size, 0.99) if len(size) else 0.0
    large = (size > JUMP * (high - low)) & (size > JUMP_FACTOR * around) & (size > USUAL_FACTOR * usual)
    back = np.zeros_like(large)  # a step whose next one undoes it: a single wrong frame
    back[:-1] = (size[:-1] > JUMP * (high - low)) & (np.abs(steps[:-1] + steps[1:]) < 0.3 * size[:-1])
    alone = np.flatnonzero(back & (large | np.roll(large, -1))) + 1
    alone = alone[recording.follows[np.minimum(alone, len(size) - 1)]]
    single = np.zeros(len(column), dtype=bool)
    single[alone] = True
    jumps = large.copy()
    jumps[alone - 1] = jumps[alone] = False
    turn = {"rad": 2 * np.pi, "deg": 360.0}.get(channel.unit, np.inf)
    wraps = (np.abs(size - turn) < 0.15 * turn) & recording.follows
    jumps &= ~wraps
    findings = []
    for check, severity, where, words in (
        ("outlier", "error", single, "has a value that lasts one frame and fits neither neighbor"),
        ("jump", "warning", np.append(False, jumps), "jumps from one frame to the next"),
        ("angle_wrap", "warning", np.append(False, wraps), "jumps by a whole turn"),
    ):
        if where.any():
            episodes = _episodes(recording, where)
            first = int(np.argmax(where))
            frame = first - recording.dataset.episode_starts[episodes[0]]
            place = f"first at frame {frame} of episode {episodes[0]}"
            message = f"{name} {words} in {recording.count(episodes)}, {place}"
            findings.append(found(check, severity, message, episodes=episodes, channel=name))
    return findings


def _clipped(recording: Recording) -> list[Finding]:
    """Find channels that stay exactly at their largest or smallest value in the middle of a motion."""
    findings, normal = [], []
    spec = recording.dataset.robot_spec
    columns = [("state", i, recording.states[:, i], c) for i, c in enumerate(spec.state)]
    columns += [("action", i, recording.actions[:, i], c) for i, c in enumerate(spec.action)]
    for kind, i, column, channel in columns:
        if is_gripper(channel.name) or len(np.unique(column)) <= FEW_VALUES:
            continue
        for limit in (column.min(), column.max()):
            share, episodes = _plateaus(recording, column, limit)
            if share < 0.02:
                continue
            name = recording.name(kind, i)
            if kind == "action" and not recording.absolute:
                normal.append((name, share))
            else:
                message = (
                    f"{name} stays at exactly {limit:.4g} in {share:.0%} of the frames, entered at speed"
                )
                findings.append(found("clipped", "warning", message, episodes=episodes, channel=name))
    if normal:
        names = list(dict.fromkeys(name for name, _ in normal))
        most = max(share for _, share in normal)
        message = (
            f"deltas stay at their largest value in up to {most:.0%} of the frames: normal at full speed"
        )
        findings.append(found("clipped", "note", message, channel=", ".join(names)))
    return findings


def _plateaus(
    recording: Recording, column: Float64[np.ndarray, " N"], limit: float
) -> tuple[float, list[int]]:
    """Return the share of frames in runs at `limit` that are entered at speed, and their episodes."""
    steps = np.abs(np.diff(column))[recording.follows]
    steps = steps[steps > 0]
    fast = 0.25 * float(np.quantile(steps, 0.75)) if steps.size else np.inf
    frames, episodes, runs, sharp = 0, [], 0, 0
    for number, episode in enumerate(recording.episodes):
        values = column[episode]
        for start, stop in _runs(values == limit):
            if start == 0 or stop == len(values) or stop - start < 3:
                continue
            runs += 1
            if abs(values[start] - values[start - 1]) > fast:
                sharp += 1
                frames += stop - start
                episodes.append(number)
    return (frames / len(column), episodes) if runs >= 3 and sharp >= 0.4 * runs else (0.0, [])


def _runs(mask: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, "runs 2"]:
    """Return first and one past the last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return edges.reshape(-1, 2)


def _gripper(recording: Recording) -> list[Finding]:
    """Find grippers that are never commanded, or commanded and never move."""
    findings = []
    spec = recording.dataset.robot_spec
    still = [
        n
        for n, c in zip(spec.action_names, recording.actions.T, strict=True)
        if is_gripper(n) and np.ptp(c) == 0
    ]
    stuck = [
        n
        for n, c in zip(spec.state_names, recording.states.T, strict=True)
        if is_gripper(n) and np.ptp(c) == 0
    ]
    if still:
        needed = [text for text in recording.dataset.instructions if GRASPING.search(text)]
        because = f", and there are tasks that grasp, such as {needed[0]!r}" if needed else ""
        message = f"{', '.join(still)} has one value in the whole recording{because}"
        severity = "warning" if needed else "note"
        channel = ", ".join(f"action/{name}" for name in still)
        findings.append(found("gripper_still", severity, message, channel=channel))
    elif stuck and any(is_gripper(name) for name in spec.action_names):
        message = f"the gripper is commanded, but {', '.join(stuck)} never changes"
        channel = ", ".join(f"state/{name}" for name in stuck)
        findings.append(found("gripper_still", "warning", message, channel=channel))
    return findings


def _episodes(recording: Recording, frames: Bool[np.ndarray, " N"]) -> list[int]:
    return np.unique(recording.dataset.episode_index[frames]).tolist()
