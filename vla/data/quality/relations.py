"""Checks of actions against states: conventions, lags, units and channels that were exchanged."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float64

from vla.data.quality.findings import Finding, found
from vla.data.quality.recording import Recording, correlation

LAGS = range(-6, 7)  # in frames, of the state behind the action; an action precedes what it causes
FACTORS = {"degrees and rad": 180 / np.pi, "millimeters and m": 1000.0, "percent and a share": 100.0}
SAME = 1e-6  # of a channel's span: equal but for rounding
MOST_SHARE = 0.4  # of the episodes: where more are odd, it is not they that are odd
FEWEST_EPISODES = 5  # below, no episode is odd


def check_relations(recording: Recording) -> list[Finding]:
    """Find actions that do not mean what the robot spec declares."""
    findings = _convention(recording) or _double_delta(recording)
    if not findings:
        findings = _echo(recording) or _lag(recording)
        findings += _units(recording)
    return [*findings, *_units_of_some_episodes(recording), *_swapped(recording)]


def _convention(recording: Recording) -> list[Finding]:
    actions, states, changes = recording.lagged(1)
    votes: dict[bool, list[int]] = {True: [], False: []}
    for i, j in recording.pairs:
        action, state, change = actions[:, i], states[:, j], changes[:, j]
        off_target, off_change = np.median(np.abs(action - state)), np.median(np.abs(action - change))
        like_target, like_change = correlation(action, state) > 0.5, correlation(action, change) > 0.4
        if recording.absolute and like_change and off_change < 0.3 * off_target:
            votes[True].append(i)
        if not recording.absolute and like_target and off_target < 0.3 * off_change:
            votes[False].append(i)
    wrong = votes[recording.absolute]
    if not wrong or len(wrong) < len(recording.pairs) / 2:
        return []
    convention = recording.dataset.robot_spec.action_convention
    check = "deltas_called_absolute" if recording.absolute else "absolutes_called_deltas"
    what = "changes of the state" if recording.absolute else "positions"
    message = (
        f"the convention is {convention}, but {len(wrong)} of {len(recording.pairs)} channels are {what}"
    )
    return [found(check, "error", message, channel=_names(recording, "action", wrong))]


def _double_delta(recording: Recording) -> list[Finding]:
    if recording.absolute:
        return []
    summed = np.concatenate([np.cumsum(recording.actions[episode], axis=0) for episode in recording.episodes])
    twice = []
    for i, j in recording.pairs:
        once, undone = -1.0, -1.0
        for lag in (0, 1, 2):
            frames, changes = _frames_and_changes(recording, lag)
            once = max(once, correlation(recording.actions[frames, i], changes[:, j]))
            undone = max(undone, correlation(summed[frames, i], changes[:, j]))
        if undone > 0.6 and undone > once + 0.3:
            twice.append(i)
    if not twice or len(twice) < len(recording.pairs) / 2:
        return []
    message = f"{len(twice)} of {len(recording.pairs)} action channels are differences of deltas"
    return [found("double_delta", "error", message, channel=_names(recording, "action", twice))]


def _frames_and_changes(recording: Recording, lag: int) -> tuple[np.ndarray, np.ndarray]:
    index = recording.dataset.episode_index
    frames = np.arange(len(index) - 1 - lag)
    frames = frames[index[frames] == index[frames + lag + 1]]
    return frames, recording.states[frames + lag + 1] - recording.states[frames + lag]


def _echo(recording: Recording) -> list[Finding]:
    """Find actions that repeat what was measured."""
    if not recording.pairs:
        return []
    actions, states, changes = recording.lagged(0)
    columns = [i for i, _ in recording.pairs], [j for _, j in recording.pairs]
    span = recording.state_span[columns[1]]
    action, state, change = actions[:, columns[0]], states[:, columns[1]], changes[:, columns[1]]

    def share(wanted: Float64[np.ndarray, "n pairs"]) -> float:
        return float((np.abs(action - wanted) <= SAME * span).all(axis=1).mean()) if len(action) else 0.0

    if recording.absolute and share(state) > 0.95:
        return [found("action_equals_state", "error", "every action is the state of the same frame")]
    if share(state + change if recording.absolute else change) > 0.95:
        return [
            found("action_equals_next_state", "warning", "every action is the next measured state, exactly")
        ]
    return []


def _lag(recording: Recording) -> list[Finding]:
    """Find actions that come after the motion that they should have caused."""
    fits = {lag: _fit(recording, lag) for lag in LAGS}
    best = max(fits, key=lambda lag: fits[lag])
    causal = max(fit for lag, fit in fits.items() if lag >= 0)
    if best >= 0 or fits[best] < 0.4 or 1 - fits[best] > 0.7 * (1 - causal):
        return []
    message = (
        f"actions fit best to the state {-best} frames before them (agreement {fits[best]:.2f}, "
        f"{causal:.2f} at best after them)"
    )
    return [found("action_late", "error", message)]


def _fit(recording: Recording, lag: int) -> float:
    """Return how well actions fit to the state `lag` frames later: 1 is perfect; mean over channels."""
    actions, states, changes = recording.lagged(lag)
    if not recording.pairs or len(actions) < 3:
        return 0.0
    if not recording.absolute:
        return float(np.mean([correlation(actions[:, i], changes[:, j]) for i, j in recording.pairs]))
    off = [np.abs(actions[:, i] - states[:, j]).mean() / recording.state_span[j] for i, j in recording.pairs]
    return 1 - float(np.mean(off))


def _units(recording: Recording) -> list[Finding]:
    findings = []
    actions, states, changes = recording.lagged(1)
    moved = states if recording.absolute else changes
    for i, j in recording.pairs:
        if correlation(actions[:, i], moved[:, j]) < (0.8 if recording.absolute else 0.4):
            continue
        ratio = float(actions[:, i].std() / moved[:, j].std())
        ratio = max(ratio, 1 / ratio)
        likely = [name for name, factor in FACTORS.items() if abs(ratio / factor - 1) < 0.2]
        if ratio > 20:
            about = f", as between {likely[0]}" if likely else ""
            message = f"action and state differ by a factor of {ratio:.3g}{about}"
            findings.append(found("unit", "error", message, channel=recording.name("action", i)))
    return findings


def _units_of_some_episodes(recording: Recording) -> list[Finding]:
    """Find angles and lengths that no robot has, and episodes in which several channels are far larger."""
    spec = recording.dataset.robot_spec
    findings = []
    starts = recording.dataset.episode_starts
    largest = np.maximum.reduceat(np.abs(recording.states), starts, axis=0)
    for j, channel in enumerate(spec.state):
        most = {"rad": 4 * np.pi, "m": 50.0}.get(channel.unit, np.inf)
        if np.median(largest[:, j]) > most:
            message = f"the unit is {channel.unit}, the values reach {largest[:, j].max():.4g}"
            findings.append(found("unit", "error", message, channel=recording.name("state", j)))
    if recording.num_episodes < FEWEST_EPISODES or len(recording.moving_states) < 2:
        return findings
    typical = np.array(
        [
            np.median(np.abs(recording.states[e][:, recording.moving_states]), axis=0)
            for e in recording.episodes
        ]
    )
    ratio = typical / np.maximum(np.median(typical, axis=0), 1e-9)
    odd = np.flatnonzero((ratio > 15).mean(axis=1) > 0.5)
    if 0 < len(odd) <= MOST_SHARE * recording.num_episodes:
        factor = np.median(ratio[odd])
        message = f"most state channels are {factor:.3g} times as large in {recording.count(odd.tolist())}"
        findings.append(found("unit", "error", message, episodes=odd.tolist()))
    return findings


def _swapped(recording: Recording) -> list[Finding]:
    """Find pairs of channels that are exchanged in some episodes, in state and action or in one of them."""
    spec = recording.dataset.robot_spec
    findings = []
    for (i, j), (k, m) in combinations(recording.pairs, 2):
        if spec.state[j].unit == spec.state[m].unit and spec.action[i].unit == spec.action[k].unit:
            odd = _disagreeing(recording, (i, j), (k, m))
            if odd:
                message = f"actions fit the state of the other channel in {recording.count(odd)}"
                channel = _names(recording, "action", (i, k))
                findings.append(found("swapped_channels", "error", message, episodes=odd, channel=channel))
    for j, m in combinations(recording.moving_states, 2):
        odd = _exchanged_starts(recording, j, m) if spec.state[j].unit == spec.state[m].unit else []
        if odd:
            message = f"episodes start where the other channel starts in the rest: {recording.count(odd)}"
            channel = _names(recording, "state", (j, m))
            findings.append(found("swapped_channels", "error", message, episodes=odd, channel=channel))
    return findings


def _disagreeing(recording: Recording, first: tuple[int, int], second: tuple[int, int]) -> list[int]:
    """Return the episodes in which two action channels fit each other's state channel, not their own."""
    own, cross, size = np.zeros((3, recording.num_episodes))
    (i, j), (k, m) = first, second
    gain = {} if recording.absolute else {j: _gain(recording, i, j), m: _gain(recording, k, m)}
    for number, episode in enumerate(recording.episodes):
        states, actions = recording.states[episode], recording.actions[episode]
        if recording.absolute:
            moved, actions = states[1:], actions[:-1]
        else:
            moved, actions = np.diff(states, axis=0)[1:] / recording.change_per_action, actions[:-2]
        if len(actions) < 5:
            continue

        def distance(
            action: int, state: int, actions: np.ndarray = actions, moved: np.ndarray = moved
        ) -> float:
            return float(np.abs(actions[:, action] - gain.get(state, 1.0) * moved[:, state]).mean())

        own[number] = distance(i, j) + distance(k, m)
        cross[number] = distance(i, m) + distance(k, j)
        size[number] = np.abs(actions[:, i]).mean() + np.abs(actions[:, k]).mean()
    usual = min(float(np.median(own)), float(np.median(cross)))
    odd = (cross < 0.4 * own) & (own > 3 * usual)
    odd &= own > (0.1 * recording.state_span[[j, m]].sum() if recording.absolute else 0.3 * size)
    return np.flatnonzero(odd).tolist()


def _gain(recording: Recording, action: int, state: int) -> float:
    """Return how large a delta is, in changes of the state that follows it."""
    actions, _, changes = recording.lagged(1)
    return float((actions[:, action] * changes[:, state]).sum() / max((changes[:, state] ** 2).sum(), 1e-12))


def _exchanged_starts(recording: Recording, j: int, m: int) -> list[int]:
    """Return the episodes in which two state channels start at each other's usual place."""
    if recording.num_episodes < FEWEST_EPISODES:
        return []
    starts = recording.states[recording.dataset.episode_starts][:, [j, m]]
    usual = np.median(starts, axis=0)
    spread = 1.5 * np.median(np.abs(starts - usual), axis=0) + 0.01 * recording.state_span[[j, m]]
    own = np.abs(starts - usual).sum(axis=1)
    cross = np.abs(starts - usual[::-1]).sum(axis=1)
    odd = np.flatnonzero((cross < 0.25 * own) & (own > 6 * spread.sum()))
    return odd.tolist() if len(odd) <= MOST_SHARE * recording.num_episodes else []


def _names(recording: Recording, kind: str, channels: Sequence[int]) -> str:
    return ", ".join(recording.name(kind, i) for i in channels)
