"""From a training source to the tensors of a step, prepared one batch ahead in a thread."""

import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from vla.data.sampler import EpochSampler
from vla.data.source import Source
from vla.interface import NOTHING, PAD_ID, Arrays, ArraySpec
from vla.processing.processor import Processor

Batch = dict[str, Tensor]  # inputs, targets, `valid` and noise by name

_TEXT_STEP = 4  # few lengths, so that what compiles by shape seldom compiles
_NOISE_STREAM = 0xF1  # keeps this randomness apart from the augmentation's


class BatchMaker:
    """Makes batches of a source; all randomness comes from `(seed, batch number)`.

    Args:
        source: of the samples.
        processor: encodes them.
        requests: what the auxiliary targets of the model ask for.
        noise: arrays of standard normal noise that the model trains with, by name.
        seed: None for batches without augmentation and committed actions, as in validation.
    """

    def __init__(
        self,
        source: Source,
        *,
        processor: Processor,
        requests: Mapping[str, Any],
        noise: Mapping[str, ArraySpec],
        seed: int | None,
    ) -> None:
        self._source, self._processor, self._requests = source, processor, requests
        self._noise, self._seed = noise, seed

    def make(self, indices: Int64[np.ndarray, " batch"], *, number: int) -> Batch:
        """Return the batch of these samples; `number` seeds what is random."""
        arrays = self._source.batch(
            indices,
            processor=self._processor,
            requests=self._requests,
            seed=None if self._seed is None else (self._seed, number),
        )
        rng = np.random.default_rng((self._seed or 0, number, _NOISE_STREAM))
        noise = {
            name: rng.standard_normal((len(indices), *spec.shape), dtype=np.float32)
            for name, spec in self._noise.items()
        }
        return {name: torch.from_numpy(array) for name, array in {**without_padding(arrays), **noise}.items()}


def without_padding(arrays: Arrays) -> Arrays:
    """Cut off the end of `text_ids` and of sequences of ids in which all samples are padding.

    Texts keep a multiple of `_TEXT_STEP`. The model gives the same answers, and is trained faster.
    """
    shorter = dict(arrays)
    if "text_ids" in arrays:
        longest = int((arrays["text_ids"] != PAD_ID).sum(axis=1).max(initial=1))
        shorter["text_ids"] = arrays["text_ids"][:, : -(-longest // _TEXT_STEP) * _TEXT_STEP]
    for name, array in arrays.items():
        if name.endswith("_ids") and name != "text_ids":
            longest = int((array != NOTHING).sum(axis=1).max(initial=1))
            shorter[name] = array[:, :longest]
    return shorter


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


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
