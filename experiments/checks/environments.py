"""Looks at an environment before anything is recorded: pictures, seeds, instructions, actions, expert.

Each task is played by its expert with several seeds, and again with the same seed: in the same environment,
in a new one, in a worker process, and from where a wrong action that is held for a while leads: there experts
are asked, too, when policies improve (experiments/improve.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from envs.base import ManipulationEnv
from envs.collection import collect_episodes
from envs.disturbance import Disturbance
from envs.registry import make_env, require_true_spec
from experiments.checks.examination import Examination
from vla.spec import RobotSpec

PROBE_PERIODS = 10  # for which an action is held to see whether it changes anything
STRIP_FRAMES = 6  # of the expert's episode, on the page
HELD = (0.15, 0.5)  # of the length of the expert's episode: for how long a wrong action is held
_RAISES = "it runs"

Frames = Mapping[str, UInt8[np.ndarray, "h w 3"]]  # by camera


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """One episode of the expert.

    Attributes:
        seed: of the episode.
        instruction: its own.
        swapped: of the control.
        first: what the cameras saw before the first action.
        last: what they saw after the last one.
        states: before each action, and after the last.
        success: whether the goal was reached.
        num_clipped: actions beyond the limits.
        strip: some pictures of its first camera.
    """

    seed: int
    instruction: str
    swapped: str
    first: Frames
    last: Frames
    states: Float32[np.ndarray, "time state"]
    success: bool
    num_clipped: int
    strip: list[np.ndarray]


def check_environment(
    env_config: Mapping[str, Any],
    tasks: Sequence[str],
    *,
    num_seeds: int,
    first_seed: int,
    progress: Callable[[Sequence[str]], Iterable[str]],
) -> Examination:
    """Play each task, the first one in a worker process too, and note what is wrong.

    Args:
        env_config: what `make_env` takes, the task apart.
        tasks: to play.
        num_seeds: episodes of each, at least 2.
        first_seed: of the first of them.
        progress: passes the tasks on, with a bar.

    Raises:
        NoOpenGL: nothing can draw here.
        NotInstalled: the environment needs a package that is not installed.
    """
    seen, seeds = Examination(), range(first_seed, first_seed + num_seeds)
    plays = check_tasks(seen, env_config, progress(tasks), seeds=seeds)
    if plays:
        task = next(iter(plays))
        _in_a_worker(seen, {**env_config, "task": task}, task, plays[task][0])
    return seen


def check_tasks(
    seen: Examination, env_config: Mapping[str, Any], tasks: Iterable[str], *, seeds: Sequence[int]
) -> dict[str, list[Played]]:
    """Play each task in this process and note what is wrong; return the expert's episodes of those that run.

    Args:
        seen: where it is noted.
        env_config: what `make_env` takes, the task apart.
        tasks: to play.
        seeds: of the episodes, at least two.

    Raises:
        NoOpenGL, NotInstalled: as `check_environment`.
    """
    plays: dict[str, list[Played]] = {}
    for task in tasks:
        played = _check_task(seen, {**env_config, "task": task}, task, seeds)
        if played:
            plays[task] = played
    _tasks_alike(seen, plays)
    return plays


def _check_task(
    seen: Examination, config: Mapping[str, Any], task: str, seeds: Sequence[int]
) -> list[Played]:
    """Check one task; return the expert's episodes, none if it does not run."""
    env = seen.tried(lambda: make_env(config), "env_raises", what=_RAISES, place=task)
    if env is None:
        return []
    try:
        if seen.tried(lambda: _begun(env, seeds[0]), "env_raises", what=_RAISES, place=task) is None:
            return []
        if seen.tried(lambda: _true_spec(env), "env_form", what="shapes", place=task) is None:
            return []
        plays = []
        for seed in seeds:
            played = seen.tried(partial(play, env, seed), "env_raises", what=_RAISES, place=task)
            if played is None:
                return []
            plays.append(played)
        _cameras(seen, env.robot_spec, plays, task)
        _seeds(seen, env, config, plays, task)
        _instructions(seen, plays, task)
        _expert(seen, env, plays, task)
        seen.tried(lambda: _recovery(seen, env, plays, task), "env_raises", what=_RAISES, place=task)
        ends = seen.tried(lambda: _actions(seen, env, seeds[0], task), "env_raises", what=_RAISES, place=task)
        _states(
            seen, env.robot_spec, [one.states for one in plays] + ([ends] if ends is not None else []), task
        )
        return plays
    finally:
        seen.tried(env.close, "env_raises", what=_RAISES, place=task)


def _begun(env: ManipulationEnv, seed: int) -> bool:
    """Call once what the shapes are looked up in, so that what these methods raise is told apart."""
    env.start_episode(seed=seed)
    env.expert_action()
    env.read_state()
    for name in env.robot_spec.camera_names:
        env.render_camera(name)
    return True


def _true_spec(env: ManipulationEnv) -> bool:
    require_true_spec(env)
    return True


def _pictures(env: ManipulationEnv) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """Return copies of what the cameras see: an environment may draw into one array again and again."""
    return {name: env.render_camera(name).copy() for name in env.robot_spec.camera_names}


def play(env: ManipulationEnv, seed: int, *, frames_at: Sequence[int] = ()) -> Played:
    """Have the expert play an episode to its end.

    Args:
        env: in any state.
        seed: of the episode.
        frames_at: periods before which a picture of the first camera is kept.
    """
    env.start_episode(seed=seed)
    first, strip = _pictures(env), []
    states, success, is_over = [env.read_state().copy()], False, False
    while not is_over:
        if env.num_steps in frames_at:
            strip.append(env.render_camera(env.robot_spec.camera_names[0]).copy())
        outcome = env.advance(env.expert_action())
        states.append(env.read_state().copy())
        success, is_over = outcome.success, outcome.terminated or outcome.truncated
    return Played(
        seed=seed,
        instruction=env.instruction,
        swapped=env.swapped_instruction(),
        first=first,
        last=_pictures(env),
        states=np.stack(states),
        success=success,
        num_clipped=env.num_clipped,
        strip=strip,
    )


def difference(one: Played, other: Played) -> str | None:
    """Return in words what differs first between two episodes; None if they are the same."""
    if one.instruction != other.instruction:
        return f"the instruction, {one.instruction!r} and {other.instruction!r}"
    if one.swapped != other.swapped:
        return f"the swapped instruction, {one.swapped!r} and {other.swapped!r}"
    for when, mine, theirs in (("first", one.first, other.first), ("last", one.last, other.last)):
        if when == "last":
            length = min(len(one.states), len(other.states))
            unequal = (one.states[:length] != other.states[:length]).any(axis=1)
            if unequal.any():
                return f"the state, from period {int(np.argmax(unequal))} on"
            if len(one.states) != len(other.states):
                return f"the length, {len(one.states) - 1} and {len(other.states) - 1} periods"
        for name, frame in mine.items():
            if not np.array_equal(frame, theirs[name]):
                return f"the {when} picture of camera {name!r}"
    return None


def _cameras(seen: Examination, spec: RobotSpec, plays: Sequence[Played], task: str) -> None:
    has_moved = any((one.states[0] != one.states[-1]).any() for one in plays)
    for name in spec.camera_names:
        what = "pictures change with the scene"
        in_episodes = [_changed(one.first[name], one.last[name]) for one in plays]
        between_seeds = [_changed(plays[0].first[name], one.first[name]) for one in plays[1:]]
        if has_moved and not any(in_episodes):
            message = (
                f"the picture after the expert's episode is that before it, in all {len(plays)} episodes"
            )
            seen.found("camera_frozen", "error", message, what=what, place=task, camera=name)
        elif not any(between_seeds):
            message = f"the first picture is the same for all {len(plays)} seeds"
            seen.found("camera_ignores_scene", "warning", message, what=what, place=task, camera=name)
        else:
            measured = (
                f"{np.mean(in_episodes):.0%} of the pixels in an episode, {np.mean(between_seeds):.0%} "
                "between seeds"
            )
            seen.passed(what, measured, place=f"{task}, {name}")
        if all(np.ptp(one.first[name]) == 0 for one in plays):
            message = f"every pixel is {plays[0].first[name].flat[0]}"
            seen.found("camera_empty", "warning", message, what=what, place=task, camera=name)
        caption = f"{task}, camera {name}, first picture: " + "; ".join(
            f"seed {one.seed}, {one.instruction!r}, swapped: {one.swapped!r}" for one in plays[:2]
        )
        seen.strips.append((caption, [one.first[name] for one in plays[:2]]))


def _changed(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of pixels that differ."""
    return float((one != other).any(axis=-1).mean())


def _seeds(
    seen: Examination, env: ManipulationEnv, config: Mapping[str, Any], plays: Sequence[Played], task: str
) -> None:
    """Check that a seed decides an episode, and all of it: here after others, and in a new environment."""
    what, first, last = "same seed, same episode", plays[0], plays[-1]
    if all(
        np.array_equal(first.states[0], one.states[0])
        and first.instruction == one.instruction
        and all(np.array_equal(first.first[name], one.first[name]) for name in first.first)
        for one in plays[1:]
    ):
        message = f"state, pictures and instruction at the start are the same for all {len(plays)} seeds"
        seen.found("seed_ignored", "error", message, what="another seed, another scene", place=task)
    frames_at = np.unique(np.linspace(0, len(first.states) - 2, STRIP_FRAMES).round().astype(int)).tolist()
    again = seen.tried(
        lambda: play(env, first.seed, frames_at=frames_at), "env_raises", what=_RAISES, place=task
    )
    fresh = seen.tried(lambda: make_env(config), "env_raises", what=_RAISES, place=task)
    if again is None or fresh is None:
        return
    caption = f"{task}, the expert, seed {first.seed}: {again.instruction!r}, {len(again.states) - 1} periods"
    seen.strips.append((caption, again.strip))
    try:
        other = seen.tried(lambda: play(fresh, last.seed), "env_raises", what=_RAISES, place=task)
    finally:
        fresh.close()
    unlike = {
        f"seed {first.seed} played again after other episodes": difference(first, again),
        f"seed {last.seed} played in a new environment": None if other is None else difference(last, other),
    }
    for where, differs in unlike.items():
        if differs is not None:
            seen.found("seed_not_kept", "error", f"{where} differs in {differs}", what=what, place=task)
    if not any(unlike.values()):
        seen.passed(what, "bit for bit, after other episodes and in a new environment", place=task)


def _instructions(seen: Examination, plays: Sequence[Played], task: str) -> None:
    what = "swapped instruction"
    empty = [one.seed for one in plays if not one.instruction.strip() or not one.swapped.strip()]
    same = [one.seed for one in plays if one.instruction == one.swapped]
    if empty:
        seen.found("instruction_empty", "error", f"it is empty for seed {empty[0]}", what=what, place=task)
    elif same:
        message = f"for {len(same)} of {len(plays)} seeds both are {plays[0].instruction!r}"
        seen.found("swapped_same", "error", message, what=what, place=task)
    else:
        seen.passed(what, f"{plays[0].instruction!r} and {plays[0].swapped!r}", place=task)


def _expert(seen: Examination, env: ManipulationEnv, plays: Sequence[Played], task: str) -> None:
    what, reached = "the expert succeeds", [len(one.states) - 1 for one in plays if one.success]
    lengths = f" in {min(reached)} to {max(reached)} periods" if reached else ""
    message = f"{len(reached)} of {len(plays)} episodes{lengths}, of at most {env.max_steps}"
    if len(reached) == len(plays):
        seen.passed(what, message, place=task)
    else:
        severity = "warning" if 2 * len(reached) >= len(plays) else "error"
        seen.found("expert_fails", severity, message, what=what, place=task)
    clipped = sum(one.num_clipped for one in plays)
    if clipped:
        message = f"{clipped} of {sum(len(one.states) - 1 for one in plays)} actions exceed the robot spec"
        seen.found("expert_clipped", "note", message, what=what, place=task)


def _recovery(seen: Examination, env: ManipulationEnv, plays: Sequence[Played], task: str) -> None:
    what, tries = "the expert recovers", [one for one in plays if one.success]
    if not tries:
        seen.not_tried(what, f"the expert of {task} fails undisturbed")
        return
    finished = sum(_recovers(env, one.seed, len(one.states) - 1) for one in tries)
    message = f"{finished} of {len(tries)} episodes in which a wrong action was held for a while"
    if 2 * finished >= len(tries):
        seen.passed(what, message, place=task)
    else:
        seen.found("expert_lost", "warning", message, what=what, place=task)


def _recovers(env: ManipulationEnv, seed: int, length: int) -> bool:
    """Hold a random action for a part of the expert's episode; tell whether it finishes all the same."""
    rng, spec = np.random.default_rng(seed), env.robot_spec
    wrong = rng.uniform(spec.action_low, spec.action_high).astype(np.float32)
    begin = int(rng.integers(length))
    end = begin + max(1, int(rng.uniform(*HELD) * length))
    env.start_episode(seed=seed)
    for period in range(env.max_steps):
        outcome = env.advance(wrong if begin <= period < end else env.expert_action())
        if outcome.success:
            return True
    return False


def _actions(seen: Examination, env: ManipulationEnv, seed: int, task: str) -> np.ndarray:
    """Hold each action channel low and high, and look whether anything differs; return the states found."""
    spec, what = env.robot_spec, "every action is used"
    middle = (spec.action_low + spec.action_high) / 2
    rest = middle if spec.gives_positions else np.clip(0.0, spec.action_low, spec.action_high)
    states, unused = [], []
    for column, name in enumerate(spec.action_names):
        ends = []
        for value in (spec.action_low[column], spec.action_high[column]):
            action = rest.astype(np.float32)
            action[column] = value
            env.start_episode(seed=seed)
            for _ in range(PROBE_PERIODS):
                env.advance(action)
            ends.append((env.read_state().copy(), _pictures(env)))
        states += [state for state, _ in ends]
        (low, low_pictures), (high, high_pictures) = ends
        is_seen = any(not np.array_equal(low_pictures[one], high_pictures[one]) for one in low_pictures)
        if np.array_equal(low, high) and not is_seen:
            unused.append(name)
            message = (
                f"state and pictures are the same after {PROBE_PERIODS} periods of "
                f"{spec.action_low[column]:.4g} and of {spec.action_high[column]:.4g}"
            )
            seen.found("action_unused", "error", message, what=what, place=task, channel=f"action/{name}")
    if not unused:
        seen.passed(what, ", ".join(spec.action_names), place=task)
    if not spec.gives_positions:
        _at_rest(seen, env, seed, rest.astype(np.float32), task)
    return np.stack(states)


def _at_rest(seen: Examination, env: ManipulationEnv, seed: int, rest: np.ndarray, task: str) -> None:
    what = "doing nothing is no success"
    env.start_episode(seed=seed)
    outcomes = [env.advance(rest) for _ in range(env.success_hold_steps + 1)]
    if outcomes[-1].success:
        message = f"after {len(outcomes)} periods of actions that move nothing the goal is reached"
        seen.found("success_at_rest", "warning", message, what=what, place=task)
    else:
        seen.passed(what, f"{len(outcomes)} periods", place=task)


def _states(seen: Examination, spec: RobotSpec, tracks: Sequence[np.ndarray], task: str) -> None:
    what, states = "states", np.concatenate(tracks)
    found = False
    for column, channel in enumerate(spec.state):
        low, high = float(states[:, column].min()), float(states[:, column].max())
        slack = 1e-3 * (channel.high - channel.low)
        where = f"state/{channel.name}"
        if low == high:
            message = f"it is {low:.4g} in all periods"
            seen.found("state_constant", "note", message, what=what, place=task, channel=where)
            found = True
        if low < channel.low - slack or high > channel.high + slack:
            message = (
                f"it goes from {low:.4g} to {high:.4g}; the spec says {channel.low:g} to {channel.high:g}"
            )
            seen.found("state_out_of_range", "warning", message, what=what, place=task, channel=where)
            found = True
    if not found:
        seen.passed(what, f"{len(states)} periods within the ranges of the spec", place=task)


def _tasks_alike(seen: Examination, plays: Mapping[str, Sequence[Played]]) -> None:
    by_sentence: dict[str, set[str]] = {}
    for task, played in plays.items():
        for one in played:
            by_sentence.setdefault(one.instruction, set()).add(task)
    alike = {sentence: tasks for sentence, tasks in by_sentence.items() if len(tasks) > 1}
    what = "tasks have sentences of their own"
    for sentence, tasks in alike.items():
        message = f"{sentence!r} is the instruction of {', '.join(sorted(tasks))}"
        seen.found("tasks_alike", "warning", message, what=what)
    if len(plays) > 1 and not alike:
        seen.passed(what, f"{len(by_sentence)} sentences of {len(plays)} tasks")


def _in_a_worker(seen: Examination, config: Mapping[str, Any], task: str, here: Played) -> None:
    what = "the same episode in a worker process"
    if not here.success:
        seen.not_tried(what, "the expert failed, and workers hand over successes alone")
        return

    def recorded() -> list[Any]:
        episodes = collect_episodes(
            {task: config}, {task: [here.seed]}, disturbance=Disturbance(), num_workers=1
        )
        return list(episodes)

    episodes = seen.tried(recorded, "env_raises", what=what, place=task)
    if episodes is None:
        return
    length = len(here.states) - 1
    if not episodes:
        seen.found("worker_differs", "error", "the expert failed there", what=what, place=task)
    elif episodes[0].instruction != here.instruction:
        message = f"the instruction is {here.instruction!r} here and {episodes[0].instruction!r} there"
        seen.found("worker_differs", "error", message, what=what, place=task)
    elif not np.array_equal(episodes[0].states, here.states[:length]):
        seen.found("worker_differs", "error", "the states differ", what=what, place=task)
    else:
        seen.passed(what, f"seed {here.seed}, {length} periods, bit for bit", place=task)
