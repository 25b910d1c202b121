"""Opens a recording to be examined, whoever wrote it; what stands in the way of that becomes findings."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vla.data import origin, tables
from vla.data.foreign import derive_robot_spec
from vla.data.layout import ACTION_KEY, DATA_PATH, STATE_KEY, DatasetError, read_info
from vla.data.quality.findings import Finding, count_of, found
from vla.data.quality.recording import Recording, correlation, is_gripper, paired_channels, stem
from vla.data.reader import Dataset
from vla.spec import RobotSpec, SpecMismatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """What came of opening a dataset.

    Attributes:
        dataset: None if it cannot be opened.
        findings: why not.
        guesses: what the dataset does not say and was guessed, each with its reason.
    """

    dataset: Dataset | None
    findings: list[Finding]
    guesses: list[str]


def open_examined(
    root: Path | str,
    *,
    robot_spec: RobotSpec | None = None,
    action_convention: str | None = None,
    gripper_sign: str | None = None,
) -> Opened:
    """Open a dataset.

    Args:
        root: the directory that holds `meta/`.
        robot_spec: what its numbers mean, in place of what it states.
        action_convention: of a dataset that states none, as those of LeRobot; None guesses it.
        gripper_sign: likewise.

    Raises:
        ValueError: a convention was given for a dataset whose spec is given or stored.
    """
    root = Path(root)
    given = {"action_convention": action_convention, "gripper_sign": gripper_sign}
    findings = not_finite(root)
    try:
        if robot_spec is not None or origin.read_origin(root, read_info(root)) is not None:
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f"the robot spec of {root} states the {name}; leave {name}={value} out")
            return Opened(dataset=Dataset(root, robot_spec=robot_spec), findings=findings, guesses=[])
        spec = derive_robot_spec(
            root, action_convention=action_convention or "joint_target", gripper_sign=gripper_sign or "none"
        )
        dataset = Dataset(root, robot_spec=spec)
        guesses = []
        if action_convention is None:
            convention, reason = guess_action_convention(dataset)
            spec = dataclasses.replace(spec, action_convention=convention)
            guesses.append(f"action_convention={convention}: {reason}")
        if gripper_sign is None:
            sign, reason = guess_gripper_sign(dataset)
            spec = dataclasses.replace(spec, gripper_sign=sign)
            guesses.append(f"gripper_sign={sign}: {reason}")
        return Opened(dataset=Dataset(root, robot_spec=spec), findings=findings, guesses=guesses)
    except (DatasetError, SpecMismatch) as error:
        findings = findings or [found("unreadable", "error", str(error))]
        return Opened(dataset=None, findings=findings, guesses=[])


def guess_action_convention(dataset: Dataset) -> tuple[str, str]:
    """Return the likely convention and why: targets are near the next state, deltas like its next change."""
    recording, names = Recording.of(dataset), dataset.robot_spec.action_names
    where = "end_effector" if {"x", "y", "z"} <= {stem(name) for name in names} else "joint"
    if not recording.pairs:
        return f"{where}_delta", "no action channel has the name or the place of a state channel that moves"
    actions, states, changes = recording.lagged(1)
    targets, deltas, gains = [], [], []
    for i, j in recording.pairs:
        action, state, change = actions[:, i], states[:, j], changes[:, j]
        off = np.abs(action - state).mean() / recording.state_span[j]
        targets.append(correlation(action, state) / (1 + off))
        deltas.append(correlation(action, change))
        gains.append((action * change).sum() / max((change**2).sum(), 1e-12))
    target, delta = float(np.mean(targets)), float(np.mean(deltas))
    compared = f"({target:.2f} for positions, {delta:.2f} for changes)"
    if target >= delta:
        return f"{where}_target", f"actions follow the next state rather than its change {compared}"
    if where == "joint" and abs(float(np.median(gains)) * dataset.robot_spec.control_hz**-1 - 1) < 0.5:
        return "joint_velocity", f"actions are the change of the state per second {compared}"
    return f"{where}_delta", f"actions follow the change of the state rather than the state {compared}"


def guess_gripper_sign(dataset: Dataset) -> tuple[str, str]:
    """Return the likely sign and why, taking larger gripper states for wider open ones."""
    names = dataset.robot_spec
    grippers = [name for name in names.action_names if is_gripper(name)]
    if not grippers:
        return "none", "no action channel is called a gripper"
    pairs = [
        (i, j)
        for i, j in paired_channels(names.action_names, names.state_names)
        if names.action_names[i] in grippers
    ]
    if not pairs:
        return "positive_opens", f"as usual; no state channel tells what {grippers[0]!r} does"
    actions, states, changes = Recording.of(dataset).lagged(1)
    i, j = pairs[0]
    moved, held = correlation(actions[:, i], changes[:, j]), correlation(actions[:, i], states[:, j])
    sign = "positive_closes" if moved + held < 0 else "positive_opens"
    return (
        sign,
        f"{names.action_names[i]!r} and its state agree by {held:.2f}, if a larger state is wider open",
    )


def not_finite(root: Path) -> list[Finding]:
    """Find NaN, infinite and missing numbers in the data files, with which a dataset does not open.

    Files that cannot be read are left to the reader, which says what is wrong with them.
    """
    findings = []
    try:
        info = read_info(root)
        tables.check_version(root, info)
        episodes = tables.read_episodes(root, info["total_episodes"])
        paths = tables.data_files(root, episodes, info.get("data_path") or DATA_PATH)
        for kind, key in (("state", STATE_KEY), ("action", ACTION_KEY)):
            where: set[int] = set()
            channels: set[int] = set()
            for path in paths:
                table = tables.read_table(path, [key, "episode_index"])
                rows, columns = _bad_cells(table[key])
                where |= set(table["episode_index"].to_numpy()[rows].tolist())
                channels |= set(columns.tolist())
            if where:
                listed = ", ".join(map(str, sorted(channels)))
                message = (
                    f"NaN, infinity or nothing in {kind} channels {listed} (counted from 0) of "
                    f"{count_of(sorted(where), info['total_episodes'])}"
                )
                findings.append(found("not_finite", "error", message, episodes=where))
    except DatasetError:
        return []
    return findings


def _bad_cells(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and channels of null, NaN or infinite numbers; none for another kind of column."""
    nothing = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    nested = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
    values = column.combine_chunks().flatten() if nested else column
    if (
        column.null_count
        or not len(column)
        or len(values) % len(column)
        or not pa.types.is_floating(values.type)
    ):
        return nothing
    matrix = values.to_numpy().reshape(len(column), -1)  # nulls become NaN
    rows, columns = np.nonzero(~np.isfinite(matrix))
    return rows, columns
