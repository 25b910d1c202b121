"""Training windows: for a moment of a demonstration, the frames and state then and the actions that follow.

Gathering is vectorized numpy over arrays in memory and memory-mapped frames; nothing is decoded here, and
torch is not needed. Several datasets of one robot count as one.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8, UInt16

from vla.data.frame_cache import open_frame_cache, prefetch
from vla.data.geometry import JoinedViews
from vla.data.layout import DatasetError
from vla.data.origin import read_origin
from vla.data.reader import Dataset
from vla.data.sampler import EpochSampler as EpochSampler
from vla.data.split import episode_digests, held_out_episodes
from vla.errors import did_you_mean
from vla.processing.ranges import typical_range
from vla.resize import Resizing
from vla.spec import RobotSpec


def open_windows(
    roots: Sequence[Path | str],
    *,
    cache_dir: Path | str,
    action_horizon: int,
    frame_offsets: Sequence[int] = (0,),
    robot_spec: RobotSpec | None = None,
    cameras: Sequence[str] | None = None,
    resizing: Resizing | None = None,
    progress: bool = True,
    decode: bool = True,
) -> "Windows":
    """Open datasets and their frame caches as one set of windows, one for every frame.

    Args:
        roots: dataset directories, all of one robot (for example one a task).
        cache_dir: where decoded frames are kept, see `open_frame_cache`.
        action_horizon: number of control periods in a chunk.
        frame_offsets: which frames a policy looks at, in control periods before now, oldest first.
        robot_spec: needed when LeRobot wrote the datasets; taken in place of the one that ours store.
        cameras: those to use, in this order; None for all.
        resizing: what is done to frames when they are decoded; None for nothing.
        progress: show a bar while frames are decoded for the first time.
        decode: whether frames are needed; without, all are black, for a look at what is there.

    Raises:
        DatasetError: a dataset is damaged or empty, or there is none, or frames have several sizes.
        SpecMismatch: two of them describe different robots.
        ValueError: a camera was not recorded.
    """
    datasets = [Dataset(root, robot_spec=robot_spec, cameras=cameras) for root in roots]
    _require_one_robot(datasets)
    _require_one_size(datasets, resizing)
    frames = [
        open_frame_cache(dataset, cache_dir, resizing=resizing, progress=progress)
        if decode
        else _black(dataset, resizing)
        for dataset in datasets
    ]
    return Windows(
        datasets,
        frames,
        action_horizon=action_horizon,
        frame_offsets=frame_offsets,
        resizing=resizing,
    )


class Windows:
    """A window for each of some moments of some datasets, all of one robot.

    Frames, states and actions are counted over all datasets, in their order; `moments` are such frame
    numbers, and window i is at `moments[i]`. At an episode's end a chunk repeats the last action and is
    marked invalid there; at its start the first frame is repeated:

        episode of 5 frames, action_horizon 4, frame_offsets (2, 0), window at frame 3 and at frame 1
            action 3 4 4 4   valid 1 1 0 0   frames 1 3          action 1 2 3 4   valid 1 1 1 1   frames 0 1

    It is a map-style dataset too, `len(windows)` and `windows[i]`, such as torch's `DataLoader` takes.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        frames: Sequence[Mapping[str, UInt8[np.ndarray, "_ _ _ 3"]]],
        *,
        action_horizon: int,
        frame_offsets: Sequence[int] = (0,),
        resizing: Resizing | None = None,
    ) -> None:
        _require_one_robot(datasets)
        _require_one_size(datasets, resizing)
        _check_request(action_horizon, frame_offsets)
        self.robot_spec, self.resizing = datasets[0].robot_spec, resizing
        self.action_horizon, self.frame_offsets = action_horizon, tuple(frame_offsets)
        self._join(datasets)
        self._datasets = tuple(datasets)
        self._views = JoinedViews(datasets)
        self._maps = [[by_camera[name] for name in self.robot_spec.camera_names] for by_camera in frames]
        # The same without the subclass, which takes microseconds to index.
        self._frames = [[np.asarray(one) for one in by_camera] for by_camera in self._maps]
        self._periods_ahead = np.arange(action_horizon)
        self._periods_back = np.array(frame_offsets)
        self.moments: Int64[np.ndarray, " windows"] = np.arange(len(self.states))

    def _join(self, datasets: Sequence[Dataset]) -> None:
        """Concatenate the numbers of all datasets, with one table of instructions."""
        counts = [dataset.num_frames for dataset in datasets]
        self._dataset_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.states: Float32[np.ndarray, "N state"] = np.concatenate([d.states for d in datasets])
        self.actions: Float32[np.ndarray, "N action"] = np.concatenate([d.actions for d in datasets])
        self.instructions: list[str] = list(dict.fromkeys(text for d in datasets for text in d.instructions))
        number = {text: i for i, text in enumerate(self.instructions)}
        self._instruction_index = np.concatenate(
            [np.array([number[text] for text in d.instructions])[d.task_index] for d in datasets]
        )
        starts = zip(self._dataset_starts[:-1], datasets, strict=True)
        episode_starts = np.concatenate([d.episode_starts + start for start, d in starts])
        episode_ends = np.append(episode_starts[1:], len(self.states))
        self._episode_index = np.repeat(np.arange(len(episode_starts)), episode_ends - episode_starts)
        self._first_frame = episode_starts[self._episode_index]
        self._last_frame = episode_ends[self._episode_index] - 1
        self._episode_dataset = np.repeat(np.arange(len(datasets)), [d.num_episodes for d in datasets])
        self.task_names, self._episode_task, self._is_named = _name_tasks(datasets)
        self._digests = np.array(episode_digests(self.states, self.actions, starts=episode_starts))
        self._episode_scene = [scene for dataset in datasets for scene in _scenes(dataset)]

    def __len__(self) -> int:
        return self.num_windows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a window as arrays; a negative index counts from the end.

        Returns:
            ``images`` by camera, uint8 [frames h w 3], oldest first; ``state``, float32 [state]; ``actions``,
            float32 [time action], and ``valid``, bool [time], False behind the end of the episode;
            ``instruction``. Units are those of `robot_spec`.

        Raises:
            IndexError: there is no such window.
        """
        if not -self.num_windows <= index < self.num_windows:
            raise IndexError(f"there is no window {index}; there are {self.num_windows}")
        one = np.array([index % self.num_windows])
        actions, valid = self.chunks(one)
        return {
            "images": {name: frames[0] for name, frames in self.images(one).items()},
            "state": self.state(one)[0],
            "actions": actions[0],
            "valid": valid[0],
            "instruction": self.instruction_texts(one)[0],
        }

    @property
    def num_windows(self) -> int:
        """How many windows there are."""
        return len(self.moments)

    @property
    def num_episodes(self) -> int:
        """Number of episodes that the windows come from."""
        return len(np.unique(self._episode_index[self.moments]))

    def episodes(self) -> dict[str, Int64[np.ndarray, " windows"]]:
        """Return the windows of each episode, in order, by a hash of its states and actions.

        Of copies of an episode only the first counts.
        """
        owner = self._episode_index[self.moments]
        numbers = np.unique(owner)
        first = {str(self._digests[number]): number for number in reversed(numbers)}
        return {digest: np.flatnonzero(owner == first[digest]) for digest in reversed(first)}

    @property
    def task_index(self) -> Int64[np.ndarray, " windows"]:
        """For each window the number of its task in `task_names`."""
        return self._episode_task[self._episode_index[self.moments]]

    @property
    def dataset_index(self) -> Int64[np.ndarray, " windows"]:
        """For each window the number of its recording, in the order in which they were given."""
        return self._episode_dataset[self._episode_index[self.moments]]

    def state(self, indices: Int64[np.ndarray, " batch"]) -> Float32[np.ndarray, "batch state"]:
        """Return the states of now, in the units of the spec."""
        return self.states[self._now(indices)]

    def images(
        self, indices: Int64[np.ndarray, " batch"]
    ) -> dict[str, UInt8[np.ndarray, "batch frames h w 3"]]:
        """Return by camera the frames at `frame_offsets`, oldest first, as the policy sees them."""
        images = self._gather_frames(self._back(indices))
        return {name: images[:, :, i] for i, name in enumerate(self.robot_spec.camera_names)}

    def recorded_images(
        self, indices: Int64[np.ndarray, " batch"]
    ) -> dict[str, UInt8[np.ndarray, "batch frames h w 3"]]:
        """Return the same frames as they were recorded: decoded anew where the policy's are resized.

        Raises:
            DatasetError: a video or image is damaged.
        """
        if self.resizing is None:
            return self.images(indices)
        numbers = self._back(indices)
        owners = np.searchsorted(self._dataset_starts, numbers[:, 0], side="right") - 1
        return {
            name: np.stack(
                [
                    np.concatenate([self._datasets[owner].frames(name, at, at + 1) for at in row])
                    for owner, row in zip(
                        owners.tolist(), (numbers - self._dataset_starts[owners, None]).tolist(), strict=True
                    )
                ]
            )
            for name in self.robot_spec.camera_names
        }

    def chunks(
        self, indices: Int64[np.ndarray, " batch"]
    ) -> tuple[Float32[np.ndarray, "batch time action"], Bool[np.ndarray, "batch time"]]:
        """Return the actions from now on, and which of them exist: False behind the end of the episode."""
        now = self._now(indices)
        last = self._last_frame[now][:, None]
        ahead = now[:, None] + self._periods_ahead
        return self.actions[np.minimum(ahead, last)], ahead <= last

    def later_states(
        self, indices: Int64[np.ndarray, " batch"], offsets: Sequence[int]
    ) -> Float32[np.ndarray, "batch future state"]:
        """Return the states at `offsets`, control periods after now, at the latest the episode's last."""
        now = self._now(indices)
        ahead = now[:, None] + np.asarray(offsets, dtype=np.int64)
        return self.states[np.minimum(ahead, self._last_frame[now][:, None])]

    def past_actions(
        self, indices: Int64[np.ndarray, " batch"], offsets: Sequence[int]
    ) -> tuple[Float32[np.ndarray, "batch past action"], Bool[np.ndarray, "batch past"]]:
        """Return the actions at `offsets`, control periods before now, and which of them exist."""
        now = self._now(indices)
        back = now[:, None] - np.asarray(offsets, dtype=np.int64)
        first = self._first_frame[now][:, None]
        return self.actions[np.maximum(back, first)], back >= first

    @functools.cached_property
    def action_range(self) -> tuple[Float64[np.ndarray, " action"], Float64[np.ndarray, " action"]]:
        """The typical range of each action channel in all recordings, in the units of the spec."""
        spec = self.robot_spec
        return typical_range(
            self.actions.astype(np.float64),
            low=spec.action_low.astype(np.float64),
            high=spec.action_high.astype(np.float64),
        )

    def depth(self, indices: Int64[np.ndarray, " batch"]) -> UInt16[np.ndarray, "batch images cells cells"]:
        """Return the depth in the frames at `frame_offsets` [mm], in each of them the cameras in order.

        Raises:
            DatasetError: a dataset has no geometry, or they have different numbers of cells.
            ValueError: the frames are padded.
        """
        self._require_whole_frames()
        depth = self._views.depth[self._back(indices)]
        return depth.reshape(len(indices), -1, *depth.shape[3:])

    def traces(
        self, indices: Int64[np.ndarray, " batch"], *, points: Sequence[str], offsets: Sequence[int]
    ) -> Float32[np.ndarray, "batch images future point 3"]:
        """Return where points are in the picture at `offsets`, control periods after each frame.

        At the latest that is the episode's last picture; a camera that moves sees them as it stands then.

        Args:
            indices: of windows.
            points: names among those that were recorded.
            offsets: 0 is the moment of the frame.

        Returns:
            For each frame at `frame_offsets`, and in it each camera: column, row, visibility, see
            `ViewGeometry`.

        Raises:
            DatasetError: a dataset has no geometry.
            ValueError: a point was not recorded, or the frames are padded.
        """
        self._require_whole_frames()
        last = self._last_frame[self._now(indices)][:, None, None]
        times = np.minimum(self._back(indices)[..., None] + np.asarray(offsets, dtype=np.int64), last)
        found = self._views.points(points)[times]  # [batch frame future camera point 3]
        found = np.moveaxis(found, 3, 2)
        return found.reshape(len(indices), -1, *found.shape[3:])

    def _require_whole_frames(self) -> None:
        """Refuse black bars: positions in recorded pictures would be others in what the policy sees."""
        if self.resizing is None or self.resizing.mode != "pad":
            return
        wanted = self.resizing.width / self.resizing.height
        for camera in self.robot_spec.cameras:
            if abs(camera.width / camera.height - wanted) > 1e-6:
                raise ValueError(
                    f"frames of camera {camera.name!r} ({camera.height} x {camera.width}) are padded, and "
                    "recorded depth and points are of whole frames; give data.resize=stretch"
                )

    def instruction_texts(self, indices: Int64[np.ndarray, " batch"]) -> list[str]:
        """Return the instructions."""
        return [self.instructions[number] for number in self._instruction_index[self._now(indices)]]

    def _now(self, indices: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, " batch"]:
        """Return the frame numbers of windows.

        Raises:
            IndexError: an index is not in [0, num_windows).
        """
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.num_windows:
            raise IndexError(f"window indices must lie in [0, {self.num_windows}); got {indices}")
        return self.moments[indices]

    def split_by_episode(self, *, validation_share: float, seed: int) -> tuple["Windows", "Windows"]:
        """Return training and validation windows that share no episode.

        See `held_out_episodes` for the choice. Copies of an episode, of a dataset that is listed twice, are
        all on one side. With a share of 0, or where each task has one episode, nothing is held out.

        Raises:
            ValueError: the share is not in [0, 1).
        """
        if not 0.0 <= validation_share < 1.0:
            raise ValueError(f"validation_share is {validation_share}; it must lie in [0, 1)")
        present = np.unique(self._episode_index[self.moments])
        _, content = np.unique(self._digests, return_inverse=True)
        held_out = held_out_episodes(
            present,
            dataset=self._episode_dataset[present],
            task=self._episode_task[present],
            is_named=self._is_named[present],
            content=content[present],
            share=validation_share,
            seed=seed,
        )
        in_validation = np.isin(self._episode_index[self.moments], held_out)
        return self.subset(np.flatnonzero(~in_validation)), self.subset(np.flatnonzero(in_validation))

    def recorded_scenes(self) -> set[tuple[str, str, int]]:
        """Return environment family, task and seed of the episodes that were recorded in simulation."""
        episodes = np.unique(self._episode_index[self.moments]).tolist()
        return {
            (scene[0], self.task_names[self._episode_task[episode]], scene[1])
            for episode in episodes
            if (scene := self._episode_scene[episode]) is not None
        }

    def of_tasks(self, tasks: Sequence[str]) -> "Windows":
        """Return the windows of these tasks of `task_names`, and only their instructions.

        Raises:
            ValueError: none is named, or one was not recorded; the message names the nearest.
        """
        if not tasks:
            raise ValueError("data.tasks names no task; give some of those recorded, or null for all")
        for name in tasks:
            if name not in self.task_names:
                raise ValueError(
                    f"data.tasks: the recordings have no task {name!r}; {did_you_mean(name, self.task_names)}"
                )
        numbers = [self.task_names.index(name) for name in tasks]
        chosen = self.subset(np.flatnonzero(np.isin(self.task_index, numbers)))
        used = np.unique(self._instruction_index[chosen.moments])
        chosen.instructions = [self.instructions[number] for number in used]
        chosen._instruction_index = np.searchsorted(used, self._instruction_index)
        return chosen

    def subset(self, indices: Int64[np.ndarray, " chosen"]) -> "Windows":
        """Return the windows `indices` of this one, in that order; arrays are shared."""
        chosen = object.__new__(type(self))
        chosen.__dict__.update(self.__dict__)
        chosen.moments = self.moments[indices]
        return chosen

    def _back(self, indices: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, "batch frames"]:
        """Return the numbers of the frames that a policy looks at."""
        now = self._now(indices)
        return np.maximum(now[:, None] - self._periods_back, self._first_frame[now][:, None])

    def _gather_frames(
        self, numbers: Int64[np.ndarray, "batch frames"]
    ) -> UInt8[np.ndarray, "batch frames cameras h w 3"]:
        size = self.resizing or self.robot_spec.cameras[0]
        shape = (*numbers.shape, len(self.robot_spec.cameras), size.height, size.width, 3)
        images = np.empty(shape, dtype=np.uint8)
        owners = np.searchsorted(self._dataset_starts, numbers[:, 0], side="right") - 1
        for owner in np.unique(owners):
            rows = np.flatnonzero(owners == owner)
            local = numbers[rows] - self._dataset_starts[owner]
            for frames in self._maps[owner]:
                prefetch(frames, local.ravel().tolist())
            for row, frame_numbers in zip(rows, local, strict=True):
                for k, frame in enumerate(frame_numbers):
                    for c, frames in enumerate(self._frames[owner]):
                        images[row, k, c] = frames[frame]
        return images


def _black(dataset: Dataset, resizing: Resizing | None) -> dict[str, UInt8[np.ndarray, "_ _ _ 3"]]:
    """Return black frames, which take no memory, in the place of those of a dataset."""
    return {
        camera.name: np.broadcast_to(
            np.uint8(0), (dataset.num_frames, (resizing or camera).height, (resizing or camera).width, 3)
        )
        for camera in dataset.robot_spec.cameras
    }


def _require_one_robot(datasets: Sequence[Dataset]) -> None:
    if not datasets:
        raise DatasetError("no dataset was given; record one with `python -m experiments.collect`")
    for dataset in datasets[1:]:
        datasets[0].robot_spec.require_same(
            dataset.robot_spec, mine=f"dataset {datasets[0].root}", theirs=f"dataset {dataset.root}"
        )


def _require_one_size(datasets: Sequence[Dataset], resizing: Resizing | None) -> None:
    spec = datasets[0].robot_spec
    sizes = {camera.name: (camera.height, camera.width) for camera in spec.cameras}
    if resizing is None and len(set(sizes.values())) > 1:
        raise DatasetError(
            f"the cameras of {spec.name!r} have frames of several sizes {sizes} (height, width); give "
            "data.image_size=96, say, to have all resized, or choose cameras of one size with data.cameras"
        )


def _check_request(action_horizon: int, frame_offsets: Sequence[int]) -> None:
    if action_horizon < 1:
        raise ValueError(f"action_horizon is {action_horizon}; a chunk has at least one action")
    offsets = list(frame_offsets)
    if not offsets or offsets != sorted(set(offsets), reverse=True) or offsets[-1] < 0:
        raise ValueError(
            f"frame_offsets {offsets} must be control periods before now, oldest first, such as (4, 0)"
        )


def _scenes(dataset: Dataset) -> list[tuple[str, int] | None]:
    """Return environment family and seed of each episode; None where no simulator recorded it."""
    origin = read_origin(dataset.root, dataset.info) or {"extra_info": {}}
    env = origin["extra_info"].get("env")
    family = env.get("family") if isinstance(env, dict) else None
    seeds = dataset.episode_extra.get("seed")
    if family is None or seeds is None:
        return [None] * dataset.num_episodes
    if not all(isinstance(seed, int) for seed in seeds):
        raise DatasetError(f"the column 'seed' in meta/episodes of {dataset.root} holds more than integers")
    return [(str(family), int(seed)) for seed in seeds]


def _name_tasks(
    datasets: Sequence[Dataset],
) -> tuple[list[str], Int64[np.ndarray, " episodes"], Bool[np.ndarray, " episodes"]]:
    """Return the task names, each episode's, and whether it was recorded.

    That is the extra column task_name; where a dataset has none, the instruction at the episode's beginning
    stands in for it.
    """
    names: list[str] = []
    is_named: list[bool] = []
    for dataset in datasets:
        first = dataset.task_index[dataset.episode_starts]
        names += dataset.episode_extra.get("task_name", [dataset.instructions[number] for number in first])
        is_named += ["task_name" in dataset.episode_extra] * dataset.num_episodes
    unique = list(dict.fromkeys(names))
    number = {name: i for i, name in enumerate(unique)}
    return unique, np.array([number[name] for name in names], dtype=np.int64), np.array(is_named)
