"""Recordings in HDF5, such as those of robomimic and ALOHA, read by a mapping of their keys.

An episode is a group of a file, or a whole file. Numbers are datasets of [time] or [time, numbers]; a camera
is a dataset of pictures [time h w 3], or of JPEG or PNG files, one per row and padded with zeros or of
variable length. h5py is imported when a file is opened.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32, UInt8

from vla.data.layout import DatasetError
from vla.data.picture_files import decode_picture
from vla.registry import Choices, Range, SettingError, check_attributes
from vla.spec import ACTION_CONVENTIONS, GRIPPER_SIGNS, CameraSpec, Channel, RobotSpec

SUFFIXES = (".hdf5", ".h5")
_BLOCK_FRAMES = 32


@dataclass(frozen=True, kw_only=True)
class NumbersKey:
    """Channels of the state or the action that one dataset holds."""

    key: Annotated[str, "of the dataset, within an episode"]
    names: Annotated[list[str], "of its numbers, in order"]
    units: Annotated[list[str], "of its numbers; one stands for all"]

    def __post_init__(self) -> None:
        if not self.names or len(self.units) not in (1, len(self.names)):
            raise SettingError(
                f"{self.key!r} has {len(self.names)} names and {len(self.units)} units; give a name for each "
                "number, and one unit or as many"
            )


@dataclass(frozen=True, kw_only=True)
class CameraKey:
    """Where the pictures of a camera are, and how they lie there."""

    key: Annotated[str, "of the dataset, within an episode"]
    is_upside_down: Annotated[bool, "as OpenGL draws"] = False
    color_order: Annotated[str, Choices("rgb", "bgr"), "of the pictures, or of what a decoder gives"] = "rgb"


@dataclass(frozen=True, kw_only=True)
class Hdf5Mapping:
    """Which key of a recording is what."""

    robot: Annotated[str, "name of the robot"]
    episodes: Annotated[str, "pattern of the groups that are episodes; empty: a file is one episode"]
    cameras: Annotated[dict[str, CameraKey], "by the names that they get"]
    state: Annotated[list[NumbersKey], "joined in this order"]
    action: Annotated[list[NumbersKey], "joined in this order"]
    control_hz: Annotated[float, Range(0.1, 1000), "frames per second"]
    action_convention: Annotated[str, Choices(*ACTION_CONVENTIONS), "what an action is"]
    gripper_sign: Annotated[str, Choices(*GRIPPER_SIGNS), "what a larger gripper action does"]
    instruction: Annotated[str | None, "of every episode; null: see instruction_attribute"] = None
    instruction_attribute: Annotated[
        str | None, "group@attribute of a file that holds it, or group@attribute:key if that is JSON"
    ] = None

    def __post_init__(self) -> None:
        check_attributes(self)
        if not (self.cameras and self.state and self.action):
            raise SettingError("a mapping needs at least one key for each of cameras, state and action")


@dataclass(frozen=True, kw_only=True)
class Hdf5Episode:
    """One episode: T frames, whose pictures stay in the file.

    Attributes:
        path: of the file.
        group: of the episode in the file; "/" if the file is the episode.
        instruction: the sentence.
        states: in the units of the mapping.
        actions: in the units of the mapping.
        image_sizes: height and width [pixels] by camera.
    """

    path: Path
    group: str
    instruction: str
    states: Float32[np.ndarray, "time state"]
    actions: Float32[np.ndarray, "time action"]
    image_sizes: dict[str, tuple[int, int]]


def find_files(source: Path) -> list[Path]:
    """Return the HDF5 files of a directory, by name, or the one file that is given.

    Raises:
        DatasetError: there is none.
    """
    if source.is_file():
        return [source]
    files = [path for path in source.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    if not files:
        raise DatasetError(f"{source} is no file, and no directory with files that end in {SUFFIXES}")
    return sorted(files, key=lambda path: _in_order(path.as_posix()))


def read_episodes(path: Path, mapping: Hdf5Mapping) -> list[Hdf5Episode]:
    """Read all of a file but its pictures, and check it.

    Raises:
        DatasetError: a key is missing, numbers are not finite, lengths differ, or there is no instruction;
            the message says what the file has.
    """
    with _open(path) as file:
        groups, there = ["/"], []
        if mapping.episodes:
            there = _names(file, _h5py().Group)
            pattern = re.compile(re.escape(mapping.episodes).replace(r"\*", "[^/]*"))
            groups = sorted(filter(pattern.fullmatch, there), key=_in_order)
        if not groups:
            raise DatasetError(
                f"{path} has no group {mapping.episodes!r}; it has {there[:10]}: change `episodes` of "
                "the mapping"
            )
        return [_read_episode(path, file, group, mapping) for group in groups]


def read_pictures(
    episode: Hdf5Episode, mapping: Hdf5Mapping
) -> Iterator[dict[str, UInt8[np.ndarray, "h w 3"]]]:
    """Yield the pictures of each frame by camera, RGB and upright.

    Raises:
        DatasetError: one is damaged or has another size than the first.
    """
    with _open(episode.path) as file:
        group = file[episode.group]
        for start in range(0, len(episode.states), _BLOCK_FRAMES):
            stop = min(start + _BLOCK_FRAMES, len(episode.states))
            blocks = {name: group[camera.key][start:stop] for name, camera in mapping.cameras.items()}
            for i in range(stop - start):
                images = {}
                for name, camera in mapping.cameras.items():
                    where = f"frame {start + i} of {camera.key!r} in {episode.path}:{episode.group}"
                    images[name] = _picture(blocks[name][i], camera, where)
                    if images[name].shape[:2] != episode.image_sizes[name]:
                        raise DatasetError(
                            f"{where} has {images[name].shape[:2]} pixels (h, w), the first of the episode "
                            f"{episode.image_sizes[name]}"
                        )
                yield images


def robot_spec_of(mapping: Hdf5Mapping, episodes: Sequence[Hdf5Episode]) -> RobotSpec:
    """Return the robot spec of a recording; the ranges of channels are those that occur in it.

    Raises:
        DatasetError: a camera has pictures of several sizes.
    """
    for episode in episodes:
        if episode.image_sizes != episodes[0].image_sizes:
            raise DatasetError(
                f"{episode.path}:{episode.group} has pictures of {episode.image_sizes} (h, w), the first "
                f"episode {episodes[0].image_sizes}; convert them into datasets of their own"
            )
    sizes = episodes[0].image_sizes
    return RobotSpec(
        name=mapping.robot,
        cameras=tuple(CameraSpec(name=name, height=h, width=w) for name, (h, w) in sizes.items()),
        state=_channels(mapping.state, [episode.states for episode in episodes]),
        action=_channels(mapping.action, [episode.actions for episode in episodes]),
        control_hz=mapping.control_hz,
        action_convention=mapping.action_convention,
        gripper_sign=mapping.gripper_sign,
    )


def _channels(keys: Sequence[NumbersKey], arrays: Sequence[np.ndarray]) -> tuple[Channel, ...]:
    lows = np.min([array.min(axis=0) for array in arrays], axis=0).astype(float)
    highs = np.max([array.max(axis=0) for array in arrays], axis=0).astype(float)
    margin = np.where(lows >= highs, 0.5, 0.0)  # a channel that never moves
    named = [
        (name, unit)
        for key in keys
        for name, unit in zip(key.names, key.units * (len(key.names) // len(key.units)), strict=True)
    ]
    return tuple(
        Channel(name=name, unit=unit, low=float(low), high=float(high))
        for (name, unit), low, high in zip(named, lows - margin, highs + margin, strict=True)
    )


def _h5py() -> Any:
    try:
        import h5py  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise DatasetError("reading HDF5 needs h5py: pip install -e '.[hdf5]'") from error
    return h5py


def _open(path: Path) -> Any:
    try:
        return _h5py().File(path, "r")
    except OSError as error:
        raise DatasetError(f"{path} cannot be opened as HDF5 ({error}); restore it from a copy") from error


def _in_order(name: str) -> list[Any]:
    """Return a key that sorts demo_2 before demo_10."""
    digits, parts = "", []
    for character in name + " ":
        if character.isdigit():
            digits += character
        else:
            parts += [(0, int(digits), "")] if digits else []
            parts.append((1, 0, character))
            digits = ""
    return parts


def _names(group: Any, kind: Any) -> list[str]:
    """Return the names of all that is of a kind (`h5py.Group`, `h5py.Dataset`), at any depth."""
    names: list[str] = []
    group.visititems(lambda name, item: names.append(name) if isinstance(item, kind) else None)
    return names


def _read_episode(path: Path, file: Any, group: str, mapping: Hdf5Mapping) -> Hdf5Episode:
    where = f"{path}:{group}"
    states = _numbers(file[group], mapping.state, where)
    actions = _numbers(file[group], mapping.action, where)
    lengths = {"state": len(states), "action": len(actions)}
    sizes = {}
    for name, camera in mapping.cameras.items():
        pictures = _dataset(file[group], camera.key, where)
        lengths[camera.key] = len(pictures)
        if len(pictures):
            sizes[name] = _picture(pictures[0], camera, f"frame 0 of {camera.key!r} in {where}").shape[:2]
    if len(set(lengths.values())) > 1 or not len(states):
        raise DatasetError(f"{where} has {lengths} frames; they must be as many, and at least one")
    return Hdf5Episode(
        path=path,
        group=group,
        instruction=_instruction(file, mapping, where),
        states=states,
        actions=actions,
        image_sizes=sizes,
    )


def _dataset(group: Any, key: str, where: str) -> Any:
    """Return a dataset of an episode, or say which there are."""
    found = group.get(key)
    if not isinstance(found, _h5py().Dataset) or not found.shape:
        there = _names(group, _h5py().Dataset)
        raise DatasetError(f"{where} has no dataset {key!r}; it has {there[:30]}: change the mapping")
    return found


def _numbers(group: Any, keys: Sequence[NumbersKey], where: str) -> Float32[np.ndarray, "time dims"]:
    parts = []
    for source in keys:
        values = np.asarray(_dataset(group, source.key, where))
        matrix = values[:, None] if values.ndim == 1 else values
        if matrix.dtype.kind not in "fiu" or matrix.ndim != 2 or matrix.shape[1] != len(source.names):
            raise DatasetError(
                f"{source.key!r} of {where} is {values.dtype}{list(values.shape)}; the mapping names "
                f"{len(source.names)} numbers a frame: {source.names}"
            )
        parts.append(matrix.astype(np.float32))
    if len({len(part) for part in parts}) > 1:
        lengths = {source.key: len(part) for source, part in zip(keys, parts, strict=True)}
        raise DatasetError(f"{where} has {lengths} frames; they must be as many")
    joined = np.concatenate(parts, axis=1)
    bad = np.argwhere(~np.isfinite(joined))
    if bad.size:
        names = [name for source in keys for name in source.names]
        frame, channel = bad[0]
        raise DatasetError(f"{names[channel]!r} of {where} is {joined[frame, channel]} in frame {frame}")
    return joined


def _picture(cell: Any, camera: CameraKey, where: str) -> UInt8[np.ndarray, "h w 3"]:
    """Return one picture, decoded if it is a JPEG or PNG file."""
    image = np.asarray(cell)
    if image.dtype == np.uint8 and image.ndim == 1:
        image = decode_picture(image.tobytes(), where=where)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DatasetError(f"{where} is {image.dtype}{list(image.shape)}; want uint8[h, w, 3] or a JPEG")
    if camera.color_order == "bgr":
        image = image[..., ::-1]
    if camera.is_upside_down:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _instruction(file: Any, mapping: Hdf5Mapping, where: str) -> str:
    if mapping.instruction is not None:
        return mapping.instruction
    if mapping.instruction_attribute is None:
        raise DatasetError(f"{where} has no instruction; give instruction=<sentence>, or see the mapping")
    place, _, attribute = mapping.instruction_attribute.partition("@")
    attribute, _, key = attribute.partition(":")
    holder = file.get(place or "/")
    attributes = {} if holder is None else holder.attrs
    if attribute not in attributes:
        raise DatasetError(
            f"{where}: {mapping.instruction_attribute!r} is not there; {place or '/'} has the attributes "
            f"{list(attributes)}"
        )
    text = attributes[attribute]
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    if not key:
        return text
    try:
        return str(json.loads(text)[key])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{where}: attribute {attribute!r} is no JSON table with {key!r}") from error
