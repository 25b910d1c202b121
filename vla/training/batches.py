"""From windows of demonstrations to the tensors of a training step, prepared one batch ahead in a thread.

Everything between data and model goes through the `Processor`, the same object that serves the policy later.
Knows nothing of models or optimisation.
"""

import dataclasses
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor

from vla.data.augment import ImageAugmentation
from vla.data.windows import EpochSampler, Windows
from vla.model.vla import PAD_ID
from vla.processing.processor import Processor

_TEXT_STEP = 4  # few lengths, so that what compiles by shape seldom compiles
_COMMITTED_STREAM = 0xC0  # keeps this randomness apart from the augmentation's


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step trains on. `images` are frames x cameras, in the processor's order."""

    images: UInt8[Tensor, "batch images h w 3"]
    text_ids: Int[Tensor, "batch text"]
    state: Float[Tensor, "batch state"]
    bins: Int[Tensor, "batch time action"]
    valid: Bool[Tensor, "batch time"]
    future: Float[Tensor, "batch future state"]  # normalised later states, possibly none
    num_committed: Int[Tensor, " batch"]  # first steps of the chunk that are given, not to be chosen

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in dataclasses.fields(self)
        }
        return Batch(**moved)

    def arguments(self) -> tuple[Tensor, ...]:
        """Return the arrays in the order in which `TrainStep` takes them."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


class BatchMaker:
    """Makes batches of given windows; all randomness comes from `(seed, batch number)`."""

    def __init__(
        self, *, windows: Windows, processor: Processor, augmentation: ImageAugmentation | None, seed: int
    ) -> None:
        self.windows, self.processor = windows, processor
        self.augmentation, self.seed = augmentation, seed
        self._text_ids = processor.encode_text(windows.instructions)

    def make(self, indices: Int64[np.ndarray, " batch"], *, number: int) -> Batch:
        """Return the batch of these windows; `number` seeds its augmentation."""
        raw = self.windows.batch(indices)
        future = raw["future_state"]
        flat_future = self.processor.encode_state(future.reshape(-1, future.shape[-1]))
        images = raw["images"].reshape(len(indices), -1, *raw["images"].shape[3:])
        if self.augmentation is not None:
            images = self.augmentation(images, np.random.default_rng((self.seed, number)))
        return Batch(
            images=torch.from_numpy(images),
            text_ids=torch.from_numpy(without_padding(self._text_ids[raw["instruction_index"]])),
            state=torch.from_numpy(self.processor.encode_state(raw["state"])),
            bins=torch.from_numpy(self.processor.encode_actions(raw["action"])),
            valid=torch.from_numpy(raw["valid"]),
            future=torch.from_numpy(flat_future.reshape(future.shape)),
            num_committed=torch.from_numpy(self._draw_committed(len(indices), number)),
        )

    def _draw_committed(self, batch: int, number: int) -> Int64[np.ndarray, " batch"]:
        """Draw how many actions of each chunk are committed: none in half of them, else any number."""
        rng = np.random.default_rng((self.seed, number, _COMMITTED_STREAM))
        drawn = rng.integers(0, self.processor.max_committed + 1, size=batch)
        return np.where(rng.random(batch) < 0.5, 0, drawn)


def without_padding(text_ids: Int64[np.ndarray, "batch text"]) -> Int64[np.ndarray, "batch shorter"]:
    """Cut off the columns in which no instruction has a word, up to a multiple of `_TEXT_STEP`.

    The model gives the same answers (vla/model/vla.py), and is trained faster.
    """
    longest = int((text_ids != PAD_ID).sum(axis=1).max(initial=1))
    return text_ids[:, : -(-longest // _TEXT_STEP) * _TEXT_STEP]


class Prefetcher:
    """Yields (batch, sampler state after it) while a thread prepares the next; its errors are raised here."""

    def __init__(
        self, *, maker: BatchMaker, sampler: EpochSampler, first_number: int, ahead: int = 2
    ) -> None:
        self._maker, self._sampler, self._number = maker, sampler, first_number
        self._queue: queue.Queue[tuple[Batch, dict[str, Any]] | BaseException] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[Batch, dict[str, Any]]]:
        while True:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                indices = self._sampler.next_batch()
                batch = self._maker.make(indices, number=self._number)
                self._number += 1
                self._put((batch, self._sampler.state()))
        except BaseException as error:  # noqa: BLE001 (raised again in `__iter__`)
            self._put(error)

    def _put(self, item: tuple[Batch, dict[str, Any]] | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return
