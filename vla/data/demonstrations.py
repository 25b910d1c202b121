"""Demonstrations as a training source: windows of recorded episodes, augmented and encoded."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float64, Int64

from vla.data.augment import ImageAugmentation
from vla.data.requested import requested_targets
from vla.data.windows import Windows, open_windows
from vla.interface import Arrays, Moments, Observation
from vla.processing.moments import Demonstrations
from vla.processing.processor import Processor
from vla.registry import Choices, FilePath, Range
from vla.resize import RESIZE_MODES, Resizing
from vla.spec import RobotSpec

MOST_CHUNKS = 20_000  # that a codec is fitted to, spread evenly
BALANCES = ("none", "tasks", "datasets", "both")
_COMMITTED_STREAM = 0xC0  # keeps this randomness apart from the augmentation's


class DemonstrationSource:
    """A sample for each window: its inputs, the chunk of actions that follows, and later states."""

    def __init__(
        self,
        windows: Windows,
        *,
        augmentation: ImageAugmentation | None = None,
        tasks: Sequence[str] | None = None,
        split_seed: int = 0,
        balance: str = "none",
    ) -> None:
        self.windows, self.augmentation, self.split_seed = windows, augmentation, split_seed
        self.balance = balance
        self.tasks = None if tasks is None else sorted(tasks)

    @classmethod
    def open(
        cls,
        *,
        dataset: str,
        action_horizon: int,
        frame_offsets: Sequence[int],
        robot_spec: RobotSpec | None,
        decode: bool = True,
        cache_dir: Annotated[str, FilePath(), "where decoded frames are kept"],
        more_datasets: Annotated[Sequence[str], FilePath(), "further recordings of the same robot"] = (),
        cameras: Annotated[
            Sequence[str] | None, "the policy sees these of those recorded; null: all of them"
        ] = None,
        image_size: Annotated[
            int | None, Range(1, 2048), "height and width of what the policy sees; null: as recorded"
        ] = None,
        resize: Annotated[
            str, Choices(*RESIZE_MODES), "to image_size: keeping the aspect ratio, or not"
        ] = "pad",
        tasks: Annotated[
            Sequence[str] | None,
            "train on these of those recorded (task_name, or else the instruction); null: all of them",
        ] = None,
        validation_share: Annotated[
            float, Range(0, 1, open_high=True), "of the episodes; they are never trained on"
        ] = 0.02,
        split_seed: Annotated[int, Range(0, 2**32 - 1), "of the choice of these episodes"] = 0,
        max_windows: Annotated[
            int | None, Range(1, 10**9), "train and validate on these alone: to learn them by heart"
        ] = None,
        balance: Annotated[
            str, Choices(*BALANCES), "what has equal shares of the samples; both: each task of each recording"
        ] = "none",
        augmentation: Annotated[ImageAugmentation | None, "of the images of training"] = None,
    ) -> "tuple[DemonstrationSource, DemonstrationSource]":
        """Open recordings, decode what is not decoded yet, and return a source for training and one held out.

        They share no episode. `dataset` is a directory; what `open_windows` has as well is described there.

        Raises:
            DatasetError: a dataset is missing, empty or damaged.
            ValueError: a camera or a task was not recorded.
        """
        windows = open_windows(
            [dataset, *more_datasets],
            cache_dir=cache_dir,
            action_horizon=action_horizon,
            frame_offsets=frame_offsets,
            robot_spec=robot_spec,
            cameras=cameras,
            resizing=square(image_size, mode=resize),
            decode=decode,
        )
        if tasks is not None:
            windows = windows.of_tasks(tasks)
        train, validation = windows.split_by_episode(validation_share=validation_share, seed=split_seed)
        if max_windows is not None:
            train = validation = train.subset(np.arange(min(max_windows, train.num_windows)))
        mine = cls(train, augmentation=augmentation, tasks=tasks, split_seed=split_seed, balance=balance)
        return mine, cls(validation, tasks=tasks, split_seed=split_seed)

    @property
    def num_samples(self) -> int:
        """How many windows there are."""
        return self.windows.num_windows

    @property
    def groups(self) -> Int64[np.ndarray, " samples"] | None:
        """For each window the number of what is balanced: its task, its recording, or the pair."""
        tasks, datasets = self.windows.task_index, self.windows.dataset_index
        pairs = datasets * len(self.windows.task_names) + tasks
        return {"none": None, "tasks": tasks, "datasets": datasets, "both": pairs}[self.balance]

    @property
    def task_names(self) -> list[str]:
        """The tasks of the windows."""
        return [self.windows.task_names[number] for number in np.unique(self.windows.task_index)]

    def describe(self) -> str:
        """Return the number of windows and episodes."""
        return f"{self.windows.num_windows:,} windows of {self.windows.num_episodes} episodes"

    def to_json(self) -> dict[str, Any]:
        """Return the augmentation, the choice of tasks and of held-out episodes, and what is balanced."""
        augmentation = None if self.augmentation is None else dict(vars(self.augmentation))
        return {
            "augmentation": augmentation,
            "tasks": self.tasks,
            "split_seed": self.split_seed,
            "balance": self.balance,
        }

    def fingerprints(self) -> list[str]:
        """Return a hash of states and actions for each episode."""
        return list(self.windows.episodes())

    def demonstrations(self) -> Demonstrations:
        """Return states, actions, instructions, and a sample of chunks, all of these windows."""
        windows = self.windows
        count = min(MOST_CHUNKS, windows.num_windows)
        sample = np.linspace(0, windows.num_windows - 1, count).astype(np.int64)
        return Demonstrations(
            robot_spec=windows.robot_spec,
            states=windows.states[windows.moments],
            actions=windows.actions[windows.moments],
            chunks=windows.chunks(sample)[0],
            instructions=windows.instructions,
            resizing=windows.resizing,
        )

    def batch(
        self,
        indices: Int64[np.ndarray, " batch"],
        *,
        processor: Processor,
        requests: Mapping[str, Any],
        seed: Sequence[int] | None,
    ) -> Arrays:
        """Return windows as inputs and targets; see `Source.batch`."""
        actions, valid = self.windows.chunks(indices)
        num_committed = np.zeros(len(indices), dtype=np.int64)
        if seed is not None and processor.max_committed:
            num_committed = _draw_committed(len(indices), most=processor.max_committed, seed=seed)
        images, shifts = self._images(indices, seed=seed)
        moments = Moments(
            images=images,
            state=self.windows.state(indices),
            instructions=self.windows.instruction_texts(indices),
            committed=actions,
            num_committed=num_committed,
        )
        return {
            **processor.encode(moments),
            **processor.codec.encode(actions, valid),
            "valid": valid,
            **requested_targets(self.windows, indices, requests, processor=processor, shifts=shifts),
        }

    def observations(self, indices: Int64[np.ndarray, " batch"]) -> list[Observation]:
        """Return windows as a policy would have met them."""
        images, states = self.windows.recorded_images(indices), self.windows.state(indices)
        nothing = np.zeros((0, len(self.windows.robot_spec.action)), dtype=np.float32)
        return [
            Observation(
                images={name: frames[i] for name, frames in images.items()},
                state=states[i],
                instruction=instruction,
                committed=nothing,
                stamp=0.0,
            )
            for i, instruction in enumerate(self.windows.instruction_texts(indices))
        ]

    def _images(
        self, indices: Int64[np.ndarray, " batch"], *, seed: Sequence[int] | None
    ) -> tuple[dict[str, np.ndarray], Float64[np.ndarray, "batch images 2"]]:
        """Return the frames by camera, and by which share of its size each is shifted up and to the left."""
        images = self.windows.images(indices)
        num_images = len(images) * len(self.windows.frame_offsets)
        if self.augmentation is None or seed is None:
            return images, np.zeros((len(indices), num_images, 2))
        stacked = np.stack(list(images.values()), axis=2)  # [batch frames cameras h w 3]
        flat = stacked.reshape(len(indices), num_images, *stacked.shape[3:])
        rng = np.random.default_rng(list(seed))
        drawn = self.augmentation.draw(batch=len(indices), num_images=num_images, rng=rng)
        changed = drawn.apply(flat).reshape(stacked.shape)
        by_camera = {name: changed[:, :, camera] for camera, name in enumerate(images)}
        return by_camera, drawn.shifts / flat.shape[2:4]


def square(size: int | None, *, mode: str) -> Resizing | None:
    """Return what makes frames squares of `size` pixels; None for None."""
    return None if size is None else Resizing(height=size, width=size, mode=mode)


def _draw_committed(batch: int, *, most: int, seed: Sequence[int]) -> Int64[np.ndarray, " batch"]:
    """Draw how many actions of each chunk are committed: none in half of them, else any number."""
    rng = np.random.default_rng([*seed, _COMMITTED_STREAM])
    drawn = rng.integers(0, most + 1, size=batch)
    return np.where(rng.random(batch) < 0.5, 0, drawn)
