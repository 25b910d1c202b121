"""Writes a copy of a recording without what the checks found, where that is safe; the source is only read.

Safe are: dropping whole episodes, cutting frames in which nothing moves, exchanging red and blue back, one
spelling for one sentence. Exchanging channels or cameras back is done on request only. All else (units,
conventions, lags) needs somebody who knows what was recorded.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from vla.data import origin
from vla.data.geometry import read_views, recorded_geometry
from vla.data.layout import PIXEL_FORMATS, DatasetError, camera_key
from vla.data.quality.episodes import fewest_idle_frames, idle_ends, sentences, spellings
from vla.data.quality.findings import Finding
from vla.data.quality.pictures import FRAMES_AT_ONCE, Progress
from vla.data.quality.recording import Recording
from vla.data.reader import Dataset
from vla.data.staging import EXTRA_TYPES
from vla.data.writer import DatasetWriter
from vla.geometry import ViewGeometry
from vla.registry import Choices, Range, check_attributes

DROPPING = (
    "not_finite",
    "time_missing",
    "time_doubled",
    "time_gaps",
    "outlier",
    "short",
    "duplicate",
    "sentence_empty",
    "picture_damaged",
    "picture_black",
    "picture_overexposed",
    "camera_frozen",
)
T = TypeVar("T")
KEPT_IDLE_S = 0.3  # of an idle end: coming to rest is part of the task


@dataclass(frozen=True, kw_only=True, slots=True)
class MendSettings:
    """What a mended copy leaves out, and what it changes."""

    min_frames: Annotated[int, Range(1, 10**6), "shorter episodes are dropped"] = 2
    restore: Annotated[
        list[Annotated[str, Choices("channels", "cameras")]],
        "what to exchange back where it seems to be exchanged in some episodes; look at the report first",
    ] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_attributes(self, where="mending")


@dataclass(kw_only=True, slots=True)
class _Plan:
    """What is done to each episode.

    Attributes:
        frames: of the episodes that are kept, first and one past the last, by number.
        sentences: by number.
        bgr: cameras whose colors are exchanged, by number.
        cameras: pairs of cameras to exchange, by number.
        states: pairs of channels to exchange, by number.
        actions: likewise.
        lines: what was changed, for people.
    """

    frames: dict[int, tuple[int, int]]
    sentences: dict[int, str]
    bgr: dict[int, set[str]] = field(default_factory=dict)
    cameras: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    states: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    actions: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def write_mended(
    dataset: Dataset,
    target: Path,
    *,
    findings: Sequence[Finding],
    settings: MendSettings,
    progress: Progress = iter,
) -> list[str]:
    """Write a copy of a dataset without what was found.

    Args:
        dataset: the source.
        target: a new or empty directory outside of it.
        findings: of `examine`, of this dataset.
        settings: see `MendSettings`.
        progress: wraps the episodes while they are written, such as `tqdm.tqdm`.

    Returns:
        What was changed, a line each.

    Raises:
        DatasetError: the target is not empty or lies in the source, or no episode is left.
    """
    if target.exists() and any(target.iterdir()):
        raise DatasetError(f"{target} is not empty; give a new directory for the mended copy")
    if target.resolve().is_relative_to(dataset.root.resolve()):
        raise DatasetError(f"{target} lies in the source {dataset.root}; give a directory outside of it")
    recording = Recording.of(dataset)
    plan = _plan(recording, findings, settings)
    if not plan.frames:
        raise DatasetError(f"no episode of {dataset.root} is left: " + "; ".join(plan.lines))
    extras = _plain_extras(dataset, plan)
    camera = dataset.robot_spec.camera_names[0]
    info = dataset.info["features"][camera_key(camera)].get("info") or {}
    pixel_format = info.get("video.pix_fmt")
    stored = (origin.read_origin(dataset.root, dataset.info) or {}).get("extra_info", {})
    storages = {dataset.storage(name) for name in dataset.robot_spec.camera_names}
    spec = recorded_geometry(dataset.info, dataset.robot_spec)
    geometry = {} if spec is None else read_views(dataset)
    with DatasetWriter(
        target,
        robot_spec=dataset.robot_spec,
        storage="video" if "video" in storages else "image",
        geometry=spec,
        extra_info={**stored, "mended": plan.lines},
        pixel_format=pixel_format if pixel_format in PIXEL_FORMATS else PIXEL_FORMATS[0],
    ) as writer:
        for number in progress(list(plan.frames)):
            try:
                _write_episode(recording, writer, plan, number, geometry)
            except DatasetError as error:  # a picture that the examination did not look at
                writer.discard_episode()
                plan.lines.append(f"dropped episode {number}: {error}")
                continue
            writer.save_episode(
                plan.sentences[number], {name: values[number] for name, values in extras.items()}
            )
    return plan.lines


def _plan(recording: Recording, findings: Sequence[Finding], settings: MendSettings) -> _Plan:
    why: dict[int, str] = {}
    for one in findings:
        if one.check in DROPPING and one.severity != "note":
            why |= {number: one.check for number in one.episodes if number not in why}
    frames, cut = {}, Counter[str]()
    keep = round(KEPT_IDLE_S * recording.dataset.robot_spec.control_hz)
    for number, episode in enumerate(recording.episodes):
        if number in why:
            continue
        start, stop = episode.start, episode.stop
        idle = [n if n >= fewest_idle_frames(recording) else 0 for n in idle_ends(recording, number)]
        if idle[0] == stop - start:
            why[number] = "nothing moves"
            continue
        start, stop = start + max(0, idle[0] - keep), stop - max(0, idle[1] - keep)
        cut["beginning"] += start - episode.start
        cut["end"] += episode.stop - stop
        if stop - start < settings.min_frames:
            why[number] = f"shorter than {settings.min_frames} frames"
        else:
            frames[number] = (start, stop)
    texts = sentences(recording)
    better = spellings([texts[number] for number in frames])
    plan = _Plan(
        frames=frames,
        sentences={
            number: better[texts[number]] if texts[number] in better else texts[number] for number in frames
        },
    )
    for reason in dict.fromkeys(why.values()):
        dropped = [number for number in sorted(why) if why[number] == reason]
        plan.lines.append(f"dropped {len(dropped)} episodes ({reason}): {_listed(dropped)}")
    for end, count in cut.items():
        if count:
            plan.lines.append(f"cut {count} idle frames from the {end} of episodes")
    plan.lines += [f"wrote {other!r} for {text!r}" for text, other in better.items()]
    _plan_exchanges(recording, findings, settings, plan)
    if any(one.check in ("time_drift", "control_rate") for one in findings):
        plan.lines.append("replaced the time stamps by frame / rate")
    return plan


def _plan_exchanges(
    recording: Recording, findings: Sequence[Finding], settings: MendSettings, plan: _Plan
) -> None:
    """Add what is exchanged back: colors always, cameras and channels on request."""
    spec = recording.dataset.robot_spec
    wrong_actions = {
        (one.channel, number)
        for one in findings
        if one.check == "swapped_channels" and (one.channel or "").startswith("action/")
        for number in one.episodes
    }
    for one in findings:
        numbers = [number for number in one.episodes if number in plan.frames]
        if one.check == "color_order" and one.camera and numbers:
            for number in numbers:
                plan.bgr.setdefault(number, set()).add(one.camera)
            plan.lines.append(f"exchanged red and blue of {one.camera} in episodes {_listed(numbers)}")
        if one.check == "cameras_exchanged" and one.camera and numbers and "cameras" in settings.restore:
            first, second = one.camera.split(", ")
            for number in numbers:
                plan.cameras.setdefault(number, []).append((first, second))
            plan.lines.append(f"exchanged the cameras {one.camera} in episodes {_listed(numbers)}")
        if one.check == "swapped_channels" and one.channel and numbers and "channels" in settings.restore:
            kind = one.channel.split("/")[0]
            names = [name.removeprefix(f"{kind}/") for name in one.channel.split(", ")]
            if kind == "action":
                pair = spec.action_names.index(names[0]), spec.action_names.index(names[1])
            else:
                pair = spec.state_names.index(names[0]), spec.state_names.index(names[1])
            moves = {state: action for action, state in recording.pairs}
            for number in numbers:
                if kind == "state":
                    plan.states.setdefault(number, []).append(pair)
                    paired = [moves[i] for i in pair if i in moves]
                    label = ", ".join(recording.name("action", i) for i in paired)
                    if (
                        len(paired) == 2 and (label, number) not in wrong_actions
                    ):  # actions fit the wrong state
                        plan.actions.setdefault(number, []).append((paired[0], paired[1]))
                elif not _state_is_wrong(recording, findings, pair, number):
                    plan.actions.setdefault(number, []).append(pair)
            plan.lines.append(f"exchanged {one.channel} in episodes {_listed(numbers)}")


def _state_is_wrong(
    recording: Recording, findings: Sequence[Finding], actions: tuple[int, int], number: int
) -> bool:
    """Whether another finding says that it is the state that is exchanged in this episode."""
    states = dict(recording.pairs)
    label = ", ".join(recording.name("state", states[i]) for i in actions)
    return any(
        one.check == "swapped_channels" and one.channel == label and number in one.episodes
        for one in findings
    )


def _write_episode(
    recording: Recording,
    writer: DatasetWriter,
    plan: _Plan,
    number: int,
    geometry: Mapping[str, ViewGeometry],
) -> None:
    dataset = recording.dataset
    first, last = plan.frames[number]
    states, actions = dataset.states[first:last].copy(), dataset.actions[first:last].copy()
    for values, exchanges in ((states, plan.states), (actions, plan.actions)):
        for i, j in exchanges.get(number, []):
            values[:, [i, j]] = values[:, [j, i]]
    views = _exchanged(dict(geometry), plan, number)
    for start in range(first, last, FRAMES_AT_ONCE):
        stop = min(start + FRAMES_AT_ONCE, last)
        images = {name: dataset.frames(name, start, stop) for name in dataset.robot_spec.camera_names}
        images = _restored(images, plan, number)
        for t in range(start, stop):
            frame = {name: frames[t - start] for name, frames in images.items()}
            seen = {
                name: ViewGeometry(depth=view.depth[t], points=view.points[t]) for name, view in views.items()
            }
            writer.add_frame(frame, states[t - first], actions[t - first], views=seen or None)


def _exchanged(by_camera: dict[str, T], plan: _Plan, number: int) -> dict[str, T]:
    """Return what belongs to cameras, all or none, with the exchanges of an episode undone."""
    for first, second in plan.cameras.get(number, []) if by_camera else ():
        by_camera[first], by_camera[second] = by_camera[second], by_camera[first]
    return by_camera


def _restored(
    images: dict[str, UInt8[np.ndarray, "frames h w 3"]], plan: _Plan, number: int
) -> dict[str, np.ndarray]:
    images = _exchanged(images, plan, number)
    for name in plan.bgr.get(number, ()):
        images[name] = np.ascontiguousarray(images[name][..., ::-1])
    return images


def _plain_extras(dataset: Dataset, plan: _Plan) -> dict[str, list[Any]]:
    """Return the additional episode columns that the writer takes; name the others in the plan."""
    kept, left = {}, []
    for name, values in dataset.episode_extra.items():
        kinds = {type(value) for value in values}
        if len(kinds) == 1 and kinds <= set(EXTRA_TYPES):
            kept[name] = values
        else:
            left.append(name)
    if left:
        plan.lines.append(
            f"left out the episode columns {left}: not one of bool, int, float and str throughout"
        )
    return kept


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:20]))
    return shown + (f" and {len(numbers) - 20} more" if len(numbers) > 20 else "")
