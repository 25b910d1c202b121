"""What can be wrong with a recording: every check by name, and what to do about it.

A finding is an ``error`` (a policy trained on it will be wrong), a ``warning`` (look at it before training)
or a ``note`` (often intended).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")

# Check -> what to do when it finds something.
CHECKS = {
    # files
    "unreadable": "restore the file that the message names, or record or download the dataset again",
    "not_finite": "drop these episodes; then look for the driver or conversion that wrote NaN or infinity",
    "statistics": "recompute meta/stats.json (`lerobot-edit-dataset`, recompute_stats): policies that "
    "normalize by it learn wrong numbers. A conversion to deltas must come before the statistics",
    # time
    "time_missing": "record `timestamp` in seconds from the start of the episode",
    "time_doubled": "drop these episodes, or write the time stamps of the camera, one per frame",
    "time_gaps": "drop these episodes: frames are missing; look for a slow disk, encoder or bus",
    "time_drift": "rewrite the time stamps as frame / rate if frames were captured evenly, else resample",
    "control_rate": "set `fps` in meta/info.json to the recorded rate, or resample to the declared one",
    # actions against states
    "deltas_called_absolute": "declare the convention joint_delta (or end_effector_delta), or add the state "
    "to the actions",
    "absolutes_called_deltas": "declare the convention joint_target, or subtract the state from the actions",
    "double_delta": "undo one of the two conversions: the cumulative sum of the actions is the delta",
    "action_late": "shift the actions back by that many frames; look at where the command is recorded",
    "action_equals_state": "record what was commanded: a policy that learns the present state stands still",
    "action_equals_next_state": "record what was commanded, where it exists: measured positions lag behind "
    "commands, so the arm lags and cannot push or hold",
    "swapped_channels": "exchange the channels in these episodes (mending.restore=[channels] does)",
    "unit": "convert to one unit (rad, m) in state and action, in all episodes",
    # single channels
    "out_of_range": "correct the range in the robot spec, or the values",
    "constant": "leave the channel out, or look for the sensor that does not report",
    "clipped": "widen the limit, or look for the converter that clips: the true value is lost",
    "jump": "look at these frames: a lost connection, a reset, or two episodes in one",
    "outlier": "drop these episodes, or replace the single frame by the mean of its neighbors",
    "angle_wrap": "unwrap the angle, or record its sine and cosine",
    "gripper_still": "look whether the gripper is recorded: tasks that grasp need it",
    # episodes
    "idle_start": "cut the idle beginning: a policy learns to wait",
    "idle_end": "cut the idle end, or keep a second of it: it teaches to stop",
    "ends_in_motion": "record until the arm rests, if the policy is to stop at the goal by itself",
    "short": "drop these episodes: most of every chunk of actions is padding",
    "duplicate": "drop the copies: they weigh double, and may be trained on and held out at once",
    "failed": "leave failures out unless you want them: they are demonstrations too",
    # sentences
    "sentence_empty": "write what was done: a policy cannot follow an empty instruction",
    "sentence_spelling": "use one spelling",
    "sentence_rare": "look whether it is a slip of typing for a frequent one",
    "sentence_task": "give one task one sentence, or many sentences to every task",
    "sentence_long": "shorten it, or train with a larger processor.inputs.text.max_tokens",
    "task_balance": "record more of the rare ones, or balance them in training",
    # pictures
    "picture_damaged": "drop these episodes, or restore the file from a copy",
    "picture_black": "drop these episodes; look at cable, exposure and lens cap",
    "picture_overexposed": "drop these episodes; fix exposure and gain before recording",
    "camera_frozen": "drop these episodes; look for a driver that repeats its last frame",
    "camera_same": "give every camera its own device: both names show the same pictures",
    "cameras_exchanged": "exchange the cameras in these episodes (mending.restore=[cameras] does)",
    "color_order": "exchange red and blue in these episodes: OpenCV gives BGR",
    "picture_turned": "turn or mirror the pictures of these episodes back",
    "letterbox": "crop the black bars, or bring all episodes to one picture size in the same way",
    "picture_late": "shift the pictures forward by that many frames; record each frame with its own stamp",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong, or may be.

    Attributes:
        check: its name in `CHECKS`.
        severity: one of `SEVERITIES`.
        message: what was found, with numbers.
        advice: what to do.
        episodes: where; empty if it concerns the whole dataset.
        channel: ``state/<name>`` or ``action/<name>``, if it concerns some; several separated by commas.
        camera: its name, if it concerns one.
    """

    check: str
    severity: str
    message: str
    advice: str
    episodes: list[int]
    channel: str | None = None
    camera: str | None = None


def found(
    check: str,
    severity: str,
    message: str,
    *,
    episodes: Iterable[int] = (),
    channel: str | None = None,
    camera: str | None = None,
) -> Finding:
    """Return a finding with the advice of its check."""
    assert severity in SEVERITIES
    return Finding(
        check=check,
        severity=severity,
        message=message,
        advice=CHECKS[check],
        episodes=sorted({int(episode) for episode in episodes}),
        channel=channel,
        camera=camera,
    )


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings, errors first, otherwise in the order of `CHECKS`."""
    names = list(CHECKS)
    return sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), names.index(one.check)))


def count_of(numbers: Sequence[int], total: int) -> str:
    """Return how many episodes, in words.

    >>> count_of([3], 12), count_of([1, 2], 12), count_of([0, 1], 2)
    ('1 of 12 episodes', '2 of 12 episodes', 'all 2 episodes')
    """
    return f"all {total} episodes" if len(numbers) == total else f"{len(numbers)} of {total} episodes"
