"""Checks of pictures: black, frozen, exchanged, turned, with other colors or bars, or late.

A few frames of every episode are looked at, each as a thumbnail. An episode is odd when a change of it (red
and blue exchanged, mirrored, the other camera) looks more like the rest than itself does; where episodes
differ too much among themselves for that, nothing is said.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from PIL import Image

from vla.data.layout import DatasetError
from vla.data.quality.findings import Finding, count_of, found
from vla.data.quality.recording import Recording, is_gripper

LOOKS = 5  # frames of an episode: first, last and three between
SIDE = 12  # of a thumbnail, in blocks
DARK, BRIGHT = 8, 250  # levels
OVEREXPOSED = 0.6  # of the pixels at `BRIGHT` or more
SAME_LEVELS = 6.0  # difference of two pictures, in its strongest places, that coding alone makes
MOVED = 0.15  # of a state channel's span between two looks: then something must differ
BARS = 0.06  # of height or width
MOST_SHARE = 0.4  # of the episodes: where more are odd, it is not they that are odd
FEWEST_EPISODES = 5
FRAMES_AT_ONCE = 64
MOST_LAG_EPISODES, FEWEST_LAG_FRAMES, MOST_LAG = 12, 24, 8

Progress = Callable[[Sequence[int]], Iterable[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Looks:
    """What was seen of one camera in P episodes, a few frames each.

    Attributes:
        episodes: their numbers.
        thumbs: mean thumbnail of each episode, in levels.
        dark: share of black pictures of each.
        bright: share of overexposed pictures of each.
        frozen: whether the pictures stay the same while the robot moves.
        bars: black rows or columns at the edges, as share of height or width; top, bottom, left, right.
        damaged: episodes that cannot be decoded, with the message.
        prints: a number for each picture, equal for equal pictures.
    """

    episodes: list[int]
    thumbs: Float32[np.ndarray, "P side side 3"]
    dark: Float64[np.ndarray, " P"]
    bright: Float64[np.ndarray, " P"]
    frozen: Bool[np.ndarray, " P"]
    bars: Float64[np.ndarray, "P 4"]
    damaged: dict[int, str]
    prints: dict[int, tuple[int, ...]]


def chosen_episodes(recording: Recording, most: int) -> list[int]:
    """Return at most so many episodes, evenly spread."""
    count = min(most, recording.num_episodes)
    return np.unique(np.linspace(0, recording.num_episodes - 1, count).round().astype(int)).tolist()


def check_pictures(
    recording: Recording, *, episodes: Sequence[int], every_frame: bool, progress: Progress
) -> list[Finding]:
    """Find pictures that do not show what those of other episodes show.

    Args:
        recording: the dataset.
        episodes: which ones to look at.
        every_frame: whether to decode all of their frames, which finds every damaged one.
        progress: wraps the episodes while they are looked at, such as `tqdm.tqdm`.
    """
    names = recording.dataset.robot_spec.camera_names
    rows: dict[str, list[dict[str, object]]] = {name: [] for name in names}
    damaged: dict[str, dict[int, str]] = {name: {} for name in names}
    for number in progress(episodes):
        for name in names:
            try:
                rows[name].append(_look(recording, name, number, every_frame=every_frame))
            except DatasetError as error:
                damaged[name][number] = str(error)
    looks = {name: _gathered(rows[name], damaged[name]) for name in names}
    exchanged = _exchanged(looks)
    elsewhere = {number for one in exchanged for number in one.episodes}
    findings = [*exchanged, *_same(looks), *_late(recording, looks)]
    for name, look in looks.items():
        findings += [*_damaged(name, look, len(episodes)), *_exposure(name, look), *_frozen(name, look)]
        findings += [*_bars(name, look), *_changed(name, look, elsewhere)]
    return findings


def thumbnail(image: UInt8[np.ndarray, "h w 3"], side: int = SIDE) -> UInt8[np.ndarray, "side side 3"]:
    """Return the means of side x side blocks."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))


def _look(recording: Recording, camera: str, number: int, *, every_frame: bool) -> dict[str, object]:
    """Measure a few frames of an episode.

    Raises:
        DatasetError: one of them cannot be decoded.
    """
    episode = recording.episodes[number]
    frames = np.unique(np.linspace(episode.start, episode.stop - 1, LOOKS).round().astype(int))
    if every_frame:
        for start in range(episode.start, episode.stop, FRAMES_AT_ONCE):
            recording.dataset.frames(camera, start, min(start + FRAMES_AT_ONCE, episode.stop))
    images = [recording.dataset.frames(camera, int(i), int(i) + 1)[0] for i in frames]
    moved = _moves(recording, frames)
    still = np.array([_same_picture(a, b) for a, b in pairwise(images)], dtype=bool)
    return {
        "episode": number,
        "thumb": np.mean([thumbnail(image) for image in images], axis=0, dtype=np.float32),
        "dark": np.mean([image.max() < 3 * DARK and image.mean() < DARK for image in images]),
        "bright": np.mean([(image.min(axis=-1) >= BRIGHT).mean() > OVEREXPOSED for image in images]),
        "frozen": bool((still & moved).sum() >= 2 and (still & moved).sum() >= 0.5 * moved.sum()),
        "bars": np.min([_bar_shares(image) for image in images], axis=0),
        "prints": tuple(hash(image.tobytes()) for image in images),
    }


def _moves(recording: Recording, frames: np.ndarray) -> np.ndarray:
    """Return whether the robot moved from each of the frames to the next."""
    if not recording.moving_states:
        return np.zeros(len(frames) - 1, dtype=bool)
    states = (
        recording.states[frames][:, recording.moving_states] / recording.state_span[recording.moving_states]
    )
    return np.abs(np.diff(states, axis=0)).max(axis=1, initial=0) > MOVED


def _same_picture(a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]) -> bool:
    off = np.abs(a.astype(np.int16) - b).max(axis=-1)
    height, width = off.shape[0] // 2 * 2, off.shape[1] // 2 * 2
    blocks = off[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)).ravel()
    strongest = max(4, blocks.size // 500)
    return bool(np.partition(blocks, -strongest)[-strongest:].mean() < SAME_LEVELS)


def _bar_shares(image: UInt8[np.ndarray, "h w 3"]) -> Float64[np.ndarray, " 4"]:
    """Return the black rows at top and bottom and columns at left and right, as shares; 0 if all is black."""
    rows, columns = (image.max(axis=(1, 2)) < 2 * DARK), (image.max(axis=(0, 2)) < 2 * DARK)
    if rows.all():
        return np.zeros(4)
    counts = [np.argmin(rows), np.argmin(rows[::-1]), np.argmin(columns), np.argmin(columns[::-1])]
    return np.array(counts) / [len(rows), len(rows), len(columns), len(columns)]


def _gathered(rows: list[dict[str, object]], damaged: dict[int, str]) -> Looks:
    def column(name: str, empty: tuple[int, ...]) -> np.ndarray:
        return np.stack([np.asarray(row[name]) for row in rows]) if rows else np.zeros((0, *empty))

    return Looks(
        episodes=[int(str(row["episode"])) for row in rows],
        thumbs=column("thumb", (SIDE, SIDE, 3)).astype(np.float32),
        dark=column("dark", ()).astype(float),
        bright=column("bright", ()).astype(float),
        frozen=column("frozen", ()).astype(bool),
        bars=column("bars", (4,)).astype(float),
        damaged=damaged,
        prints={int(str(row["episode"])): row["prints"] for row in rows},  # type: ignore[misc]
    )


def _damaged(camera: str, look: Looks, total: int) -> list[Finding]:
    if not look.damaged:
        return []
    where = list(look.damaged)
    message = f"{count_of(where, total)} cannot be decoded: {look.damaged[where[0]]}"
    return [found("picture_damaged", "error", message, episodes=where, camera=camera)]


def _exposure(camera: str, look: Looks) -> list[Finding]:
    findings = []
    for check, shares, word in (
        ("picture_black", look.dark, "black"),
        ("picture_overexposed", look.bright, "white"),
    ):
        where = [number for number, share in zip(look.episodes, shares, strict=True) if share > 0]
        if where:
            message = f"pictures are {word} in {count_of(where, len(look.episodes))}"
            findings.append(found(check, "error", message, episodes=where, camera=camera))
    return findings


def _frozen(camera: str, look: Looks) -> list[Finding]:
    shown = (look.dark == 0) & (look.bright == 0)
    where = [number for number, one in zip(look.episodes, look.frozen & shown, strict=True) if one]
    if not where:
        return []
    message = f"the picture stays the same while the robot moves in {count_of(where, len(look.episodes))}"
    return [found("camera_frozen", "error", message, episodes=where, camera=camera)]


def _bars(camera: str, look: Looks) -> list[Finding]:
    barred = np.any(look.bars > BARS, axis=1)
    where = [number for number, one in zip(look.episodes, barred.tolist(), strict=True) if one]
    if not where:
        return []
    share = look.bars.max()
    message = f"black bars of up to {share:.0%} of the picture in {count_of(where, len(look.episodes))}"
    some = len(where) < len(look.episodes)
    return [found("letterbox", "warning" if some else "note", message, episodes=where, camera=camera)]


def _changed(camera: str, look: Looks, elsewhere: set[int]) -> list[Finding]:
    """Find episodes whose colors or sides are exchanged; those in `elsewhere` show another camera."""
    findings = []
    if len(look.episodes) < FEWEST_EPISODES:
        return []
    shown = (look.dark == 0) & (look.bright == 0) & ~np.isin(look.episodes, list(elsewhere))
    color = (
        look.thumbs[..., 0] - look.thumbs[..., 2]
    )  # red less blue: changes its sign with the order of colors
    usual = np.median(color[shown], axis=0) if shown.any() else np.zeros((SIDE, SIDE))
    if np.sqrt((usual**2).mean()) > 3:
        likeness = (color * usual).sum(axis=(1, 2)) / (
            np.linalg.norm(color, axis=(1, 2)) * np.linalg.norm(usual) + 1e-6
        )
        odd = shown & (likeness < -0.5)
        consistent = bool(np.median(likeness[shown]) > 0.7 and (likeness[shown & ~odd] > 0.2).all())
        findings += _odd("color_order", "red and blue are exchanged", odd, consistent, camera, look)
    gray = look.thumbs.mean(axis=-1)
    usual_gray = np.median(gray[shown], axis=0) if shown.any() else np.zeros((SIDE, SIDE))
    own = _likeness(gray, usual_gray)
    turned = np.max([_likeness(turn(gray), usual_gray) for turn in _TURNS], axis=0)
    odd = shown & (turned > own + 0.5) & (turned > 0.7)
    consistent = bool(shown.any() and np.median(own[shown]) > 0.8 and (own[shown & ~odd] > 0.6).all())
    return findings + _odd("picture_turned", "pictures are mirrored or turned", odd, consistent, camera, look)


_TURNS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda thumbs: thumbs[:, ::-1],
    lambda thumbs: thumbs[:, :, ::-1],
    lambda thumbs: thumbs[:, ::-1, ::-1],
)


def _odd(
    check: str, words: str, odd: np.ndarray, consistent: bool, camera: str, look: Looks
) -> list[Finding]:
    where = [number for number, one in zip(look.episodes, odd, strict=True) if one]
    if not (consistent and 0 < len(where) <= MOST_SHARE * len(look.episodes)):
        return []
    message = f"{words} in {count_of(where, len(look.episodes))}, by comparison with the others"
    return [found(check, "error", message, episodes=where, camera=camera)]


def _likeness(thumbs: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Return the correlation of each gray thumbnail with a usual one."""
    thumbs = thumbs - thumbs.mean(axis=(1, 2), keepdims=True)
    usual = usual - usual.mean()
    scale = np.linalg.norm(thumbs, axis=(1, 2)) * np.linalg.norm(usual)
    return (thumbs * usual).sum(axis=(1, 2)) / np.maximum(scale, 1e-6)


def _same(looks: dict[str, Looks]) -> list[Finding]:
    findings = []
    names = list(looks)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = looks[first].prints, looks[second].prints
            where = [n for n in a if n in b and a[n] == b[n] and len(set(a[n])) > 1]
            if where:
                message = f"{first} and {second} show equal pictures in {count_of(where, len(a))}"
                findings.append(
                    found("camera_same", "error", message, episodes=where, camera=f"{first}, {second}")
                )
    return findings


def _exchanged(looks: dict[str, Looks]) -> list[Finding]:
    """Find episodes in which each of two cameras looks like the other usually does."""
    findings = []
    names = list(looks)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = looks[first], looks[second]
            both = [n for n in a.episodes if n in b.episodes]
            if len(both) < FEWEST_EPISODES:
                continue
            x = a.thumbs[[a.episodes.index(n) for n in both]]
            y = b.thumbs[[b.episodes.index(n) for n in both]]
            usual_x, usual_y = np.median(x, axis=0), np.median(y, axis=0)
            own = np.abs(x - usual_x).mean(axis=(1, 2, 3)) + np.abs(y - usual_y).mean(axis=(1, 2, 3))
            cross = np.abs(x - usual_y).mean(axis=(1, 2, 3)) + np.abs(y - usual_x).mean(axis=(1, 2, 3))
            odd = cross < 0.6 * own
            where = [n for n, one in zip(both, odd, strict=True) if one]
            consistent = (own[~odd] < 0.8 * cross[~odd]).all()
            if where and consistent and len(where) <= MOST_SHARE * len(both):
                message = f"{first} and {second} seem to be exchanged in {count_of(where, len(both))}"
                findings.append(
                    found("cameras_exchanged", "error", message, episodes=where, camera=f"{first}, {second}")
                )
    return findings


def _late(recording: Recording, looks: dict[str, Looks]) -> list[Finding]:
    """Find cameras whose pictures change some frames after the state does."""
    findings = []
    lengths = recording.dataset.episode_lengths
    for camera, look in looks.items():
        usable = [
            n
            for n, frozen in zip(look.episodes, look.frozen, strict=True)
            if not frozen and lengths[n] >= FEWEST_LAG_FRAMES
        ]
        picked = usable[:: max(1, len(usable) // MOST_LAG_EPISODES)][:MOST_LAG_EPISODES]
        fits = np.array([fit for n in picked if (fit := _fits(recording, camera, n)) is not None])
        if len(fits) < 4:
            continue
        mean = fits.mean(axis=0)
        best = int(mean.argmax())
        agree = (np.abs(fits.argmax(axis=1) - best) <= 1).mean()
        if best >= 2 and mean[best] > 0.6 and mean[best] > max(mean[:2]) + 0.15 and agree >= 0.6:
            message = (
                f"pictures change {best} frames after the state does (agreement {mean[best]:.2f}, "
                f"{mean[0]:.2f} without delay)"
            )
            findings.append(found("picture_late", "warning", message, camera=camera))
    return findings


def _fits(recording: Recording, camera: str, number: int) -> Float64[np.ndarray, " lags"] | None:
    """Return how well the changes of pictures fit those of the state 0 to 8 frames before, in one episode."""
    episode = recording.episodes[number]
    stop = min(episode.stop, episode.start + 4 * FRAMES_AT_ONCE)
    try:
        images = recording.dataset.frames(camera, episode.start, stop)
    except DatasetError:
        return None
    small = np.stack([thumbnail(image, side=32) for image in images]).astype(np.float32)
    seen = _smooth(np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3)))
    arm = [i for i in recording.moving_states if not is_gripper(recording.dataset.robot_spec.state_names[i])]
    states = recording.states[episode.start : stop][:, arm] / recording.state_span[arm]
    moved = _smooth(np.abs(np.diff(states, axis=0)).sum(axis=1))
    if len(seen) < FEWEST_LAG_FRAMES - 5 or np.ptp(seen) == 0 or np.ptp(moved) == 0:
        return None
    return np.array([np.corrcoef(seen[lag:], moved[: len(moved) - lag])[0, 1] for lag in range(MOST_LAG + 1)])


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return means over five frames: a small thing moves by whole pixels, now and then."""
    return np.convolve(values, np.full(5, 0.2), mode="valid")
