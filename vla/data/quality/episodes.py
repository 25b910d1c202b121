"""Checks of whole episodes: idle ends, lengths, copies, sentences and how often each task occurs."""

import hashlib
from collections import Counter, defaultdict

import numpy as np
from jaxtyping import Float64

from vla.data.quality.findings import Finding, found
from vla.data.quality.recording import Recording
from vla.processing.text import TextTokenizer, normalize_instruction

STILL = 0.03  # of a channel's span: nearer to the first (last) frame counts as not moved
IDLE_S, LONG_IDLE_S, IDLE_SHARE = (
    1.0,
    3.0,
    0.05,
)  # an idle end; a long one; a share of all frames that matters
FEWEST_IDLE_FRAMES = 10
IN_MOTION = 0.5  # of the episode's own high speed, in its last frames
SHORT = 0.2  # of the median length of the episodes of the same task
UNEQUAL = 5.0  # most frequent task to the rarest


def idle_ends(recording: Recording, number: int) -> tuple[int, int]:
    """Return how many frames at the beginning (end) of an episode differ little from its first (last).

    An episode that never moves is all beginning.
    """
    episode = recording.episodes[number]
    length = episode.stop - episode.start
    away = np.flatnonzero(recording.distance_from(episode, 0) > STILL)
    if not away.size:
        return length, 0
    back = np.flatnonzero(recording.distance_from(episode, -1) > STILL)
    return int(away[0]), length - 1 - int(back[-1])


def fewest_idle_frames(recording: Recording) -> int:
    """Return how many frames an idle end must have to count: a second's worth."""
    return max(FEWEST_IDLE_FRAMES, round(IDLE_S * recording.dataset.robot_spec.control_hz))


def check_episodes(recording: Recording, *, action_horizon: int, max_tokens: int) -> list[Finding]:
    """Find episodes and sentences that teach something else than the task.

    Args:
        recording: the dataset.
        action_horizon: control periods in a chunk of the policy to be trained.
        max_tokens: longest instruction that it takes, in tokens of a tokenizer trained on this dataset.
    """
    return [
        *_idle(recording),
        *_ends_in_motion(recording),
        *_short(recording, action_horizon),
        *_copies(recording),
        *_failed(recording),
        *_sentences(recording, max_tokens),
        *_tasks(recording),
    ]


def _idle(recording: Recording) -> list[Finding]:
    findings = []
    hz = recording.dataset.robot_spec.control_hz
    ends = [idle_ends(recording, number) for number in range(recording.num_episodes)]
    for end, (check, word) in enumerate((("idle_start", "first"), ("idle_end", "last"))):
        frames = {
            number: both[end]
            for number, both in enumerate(ends)
            if both[end] >= fewest_idle_frames(recording)
        }
        if not frames:
            continue
        share, longest = sum(frames.values()) / recording.dataset.num_frames, max(frames.values()) / hz
        matters = share >= IDLE_SHARE or longest >= LONG_IDLE_S
        message = (
            f"nothing moves in the {word} seconds of {recording.count(list(frames))}: up to {longest:.1f} s, "
            f"{share:.0%} of all frames"
        )
        findings.append(found(check, "warning" if matters else "note", message, episodes=frames))
    return findings


def _ends_in_motion(recording: Recording) -> list[Finding]:
    moving = []
    for number, episode in enumerate(recording.episodes):
        speeds = _speeds(recording, episode)
        if len(speeds) >= 5 and speeds[-3:].mean() > IN_MOTION * np.quantile(speeds, 0.9):
            moving.append(number)
    if not moving:
        return []
    message = f"the arm is still moving in the last frames of {recording.count(moving)}"
    return [found("ends_in_motion", "note", message, episodes=moving)]


def _speeds(recording: Recording, episode: slice) -> Float64[np.ndarray, " steps"]:
    """Return the step of the fastest channel from frame to frame, as share of its span."""
    if not recording.moving_states:
        return np.zeros(0)
    states = (
        recording.states[episode][:, recording.moving_states] / recording.state_span[recording.moving_states]
    )
    return np.abs(np.diff(states, axis=0)).max(axis=1)


def short_episodes(recording: Recording, action_horizon: int) -> list[int]:
    """Return the episodes that are shorter than a chunk and far shorter than others of their task."""
    lengths = recording.dataset.episode_lengths
    groups: dict[str, list[int]] = defaultdict(list)
    for number, task in enumerate(task_names(recording) or [""] * recording.num_episodes):
        groups[task].append(number)
    usual = {task: float(np.median(lengths[numbers])) for task, numbers in groups.items()}
    return sorted(
        number
        for task, numbers in groups.items()
        for number in numbers
        if lengths[number] < 2 or (lengths[number] < action_horizon and lengths[number] < SHORT * usual[task])
    )


def _short(recording: Recording, action_horizon: int) -> list[Finding]:
    lengths = recording.dataset.episode_lengths
    tiny = short_episodes(recording, action_horizon)
    if tiny:
        message = (
            f"{recording.count(tiny)} have {min(lengths[tiny])} to {max(lengths[tiny])} frames, others of "
            f"their task {np.median(lengths):.0f}; a chunk has {action_horizon}"
        )
        return [found("short", "warning", message, episodes=tiny)]
    short = np.flatnonzero(lengths < action_horizon).tolist()
    if not short:
        return []
    message = f"{recording.count(short)} are shorter than a chunk of {action_horizon}: {min(lengths)} or more"
    mostly = len(short) > recording.num_episodes / 2
    return [found("short", "warning" if mostly else "note", message, episodes=short)]


def copies(recording: Recording) -> dict[int, int]:
    """Return episodes with exactly the numbers of an earlier one: copy -> the first."""
    first: dict[bytes, int] = {}
    found_copies = {}
    dataset = recording.dataset
    for number, episode in enumerate(recording.episodes):
        content = dataset.states[episode].tobytes() + dataset.actions[episode].tobytes()
        key = hashlib.sha256(content).digest()
        if key in first:
            found_copies[number] = first[key]
        else:
            first[key] = number
    return found_copies


def _copies(recording: Recording) -> list[Finding]:
    again = copies(recording)
    if not again:
        return []
    number, first = next(iter(again.items()))
    message = (
        f"{recording.count(list(again))} have the numbers of an earlier one, such as {number} of {first}"
    )
    return [found("duplicate", "warning", message, episodes=again)]


def _failed(recording: Recording) -> list[Finding]:
    success = recording.dataset.episode_extra.get("success", [])
    failed = [number for number, value in enumerate(success) if value is False]
    if not failed:
        return []
    message = f"{recording.count(failed)} are marked as failures (success is false)"
    return [found("failed", "note", message, episodes=failed)]


def task_names(recording: Recording) -> list[str] | None:
    """Return the `task_name` of every episode, where the recording has that column."""
    names = recording.dataset.episode_extra.get("task_name")
    return None if names is None or any(name is None for name in names) else [str(name) for name in names]


def sentences(recording: Recording) -> list[str]:
    """Return the instruction of every episode: that of its first frame."""
    dataset = recording.dataset
    return [dataset.instructions[index] for index in dataset.task_index[dataset.episode_starts]]


def spellings(texts: list[str]) -> dict[str, str]:
    """Return the more frequent spelling of sentences that differ by case, marks or blanks alone.

    >>> spellings(["lift it", "lift it", "Lift it. "])
    {'Lift it. ': 'lift it'}
    """
    counts = Counter(texts)
    groups: dict[str, list[str]] = defaultdict(list)
    for text in counts:
        groups[normalize_instruction(text)].append(text)
    better = {}
    for key, group in groups.items():
        best = max(group, key=lambda text: counts[text])
        better |= {text: best for text in group if key and text != best}
    return better


def _sentences(recording: Recording, max_tokens: int) -> list[Finding]:
    findings = []
    texts = sentences(recording)
    counts = Counter(normalize_instruction(text) for text in texts)
    empty = [number for number, text in enumerate(texts) if not normalize_instruction(text)]
    if empty:
        message = f"{recording.count(empty)} have no instruction"
        findings.append(found("sentence_empty", "error", message, episodes=empty))
    better = spellings(texts)
    if better:
        pairs = [f"{text!r} and {other!r}" for text, other in better.items()]
        odd = [number for number, text in enumerate(texts) if text in better]
        message = f"{len(pairs)} sentences differ from another by case, marks or spaces alone: {pairs[0]}"
        findings.append(found("sentence_spelling", "warning", message, episodes=odd))
    rare = [text for text, count in counts.items() if count == 1]
    usual = float(np.median(list(counts.values())))
    if rare and usual >= 4 and len(rare) <= 0.34 * len(counts):
        odd = [number for number, text in enumerate(texts) if normalize_instruction(text) in rare]
        message = f"{len(rare)} of {len(counts)} sentences occur once, most {usual:.0f} times: {rare[0]!r}"
        findings.append(found("sentence_rare", "warning", message, episodes=odd))
    tokenizer = TextTokenizer.train([text for text in counts if text] or ["-"])
    lengths = {text: 1 + len(tokenizer.encode(text)) for text in counts}
    long = [text for text, length in lengths.items() if length > max_tokens]
    if long:
        odd = [number for number, text in enumerate(texts) if normalize_instruction(text) in long]
        most = max(lengths.values())
        message = (
            f"{len(long)} sentences have up to {most} tokens, the limit is {max_tokens}: {long[0][:60]!r}"
        )
        findings.append(found("sentence_long", "warning", message, episodes=odd))
    return findings


def _tasks(recording: Recording) -> list[Finding]:
    names = task_names(recording)
    if names is None:
        return []
    findings = []
    texts: dict[str, set[str]] = defaultdict(set)
    for name, text in zip(names, sentences(recording), strict=True):
        texts[name].add(normalize_instruction(text))
    several = sorted(name for name, those in texts.items() if len(those) > 1)
    if several and len(texts) >= 3 and len(several) <= 0.34 * len(texts):
        message = (
            f"{len(several)} of {len(texts)} tasks have several sentences: {several[0]!r} has "
            f"{sorted(texts[several[0]])}"
        )
        odd = [number for number, name in enumerate(names) if name in several]
        findings.append(found("sentence_task", "warning", message, episodes=odd))
    counts = Counter(names).most_common()
    (most, highest), (least, lowest) = counts[0], counts[-1]
    if highest >= UNEQUAL * lowest:
        message = f"{most!r} has {highest} episodes, {least!r} has {lowest}"
        odd = [number for number, name in enumerate(names) if name == least]
        findings.append(found("task_balance", "warning", message, episodes=odd))
    return findings
