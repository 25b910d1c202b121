"""FAST: action chunks as a few ids, made by a cosine transform over time and byte-pair merges.

The method of arXiv:2501.09747, with the merges fitted here. A chunk becomes ids in five steps:

1. Normalize each dimension to about [-1, 1] and clip it to [-CLIP, CLIP].
2. Orthonormal DCT-II over time, dimension by dimension: a smooth motion has few large coefficients.
3. Multiply by `scale` and round: most coefficients of high frequency become 0.
4. Flatten, low frequencies first, the dimensions of a frequency side by side: one symbol per coefficient,
   `action_horizon` times `action_dim` in every chunk.
5. Replace runs of symbols by ids. Every single symbol is an id, the other ids are byte-pair merges.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64

from vla.interface import Arrays, ArraySpec, DecodeError
from vla.processing.checks import first_true, require_keys
from vla.processing.continuous import (
    SHARED_KEYS,
    NormalizedActions,
    quantile_range,
    require_demonstrations,
    require_output,
    shared_arguments,
)
from vla.registry import Range

# Times the half width of the 1 % to 99 % quantile range. An axis that mostly rests moves far outside that
# range when it moves at all; less than this slows it down, more only adds symbols that are hardly used.
CLIP = 2.5
PADDING = -1  # behind the last id of a chunk
MARGIN = 0.1  # share of the coefficients' range that is added at both ends for chunks not seen in `fit`
LEAST_SCALE, GREATEST_SCALE = 0.01, 10_000.0
GREATEST_VOCAB_SIZE = 8192  # `fit` counts pairs in a table of the square of this


class FastCodec(NormalizedActions):
    """Gives a head one to action_horizon * action_dim ids per chunk.

    Rounding moves a coefficient by at most 1 / (2 * scale). The transform is orthonormal, so the normalized
    error of a dimension, squared and summed over the chunk, is at most action_horizon / (4 * scale**2), and
    a single action is off by at most half_width * sqrt(action_horizon) / (2 * scale). Both hold for chunks
    within CLIP whose coefficients lie in the alphabet; beyond, actions are pulled inward.

    Attributes:
        scale: levels per unit of a coefficient.
        lowest: the least rounded coefficient; symbol s stands for the coefficient (lowest + s) / scale.
        num_base: number of symbols; coefficients outside get the first or last one. Id s < num_base is
            symbol s.
        merges: pairs of ids; id num_base + i stands for the symbols of both ids of pair i.
    """

    def __init__(
        self,
        *,
        action_horizon: int,
        low: Float[np.ndarray, " action"],
        high: Float[np.ndarray, " action"],
        offset: Float[np.ndarray, " action"],
        half_width: Float[np.ndarray, " action"],
        scale: float,
        lowest: int,
        num_base: int,
        merges: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__(
            action_horizon=action_horizon, low=low, high=high, offset=offset, half_width=half_width
        )
        _require_scale(scale)
        if num_base < 1:
            raise ValueError(f"num_base is {num_base}; at least one symbol is needed")
        self.scale, self.lowest, self.num_base, self.merges = scale, lowest, num_base, tuple(merges)
        self._transform = dct_matrix(action_horizon)
        runs = _runs(num_base=num_base, merges=self.merges, longest=self.symbols_per_chunk)
        self._runs = [np.asarray(run, dtype=np.int64) for run in runs]
        self._num_symbols = np.asarray([len(run) for run in runs], dtype=np.int64)
        self._children, self._id_at = _prefix_tree(runs)

    @classmethod
    def fit(
        cls,
        actions: Float32[np.ndarray, "demonstration action"],
        chunks: Float32[np.ndarray, "sample time action"],
        *,
        low: Float[np.ndarray, " action"],
        high: Float[np.ndarray, " action"],
        scale: Annotated[
            float, Range(LEAST_SCALE, GREATEST_SCALE), "levels per unit of a DCT coefficient; more is finer"
        ] = 10.0,
        vocab_size: Annotated[
            int, Range(2, GREATEST_VOCAB_SIZE), "ids at most, single symbols included"
        ] = 1024,
    ) -> "FastCodec":
        """Take the constants from all demonstrated actions, symbols and merges from a sample of chunks.

        Args:
            actions: in the units of the robot.
            chunks: whole chunks, in the units of the robot; 20,000 are plenty.
            low: limits of the robot, in its units.
            high: limits of the robot, in its units.
            scale: levels per unit of a coefficient; more is finer and takes more ids.
            vocab_size: number of ids at most; there are fewer when no pair is left that occurs twice.

        Raises:
            ValueError: no data, NaN or infinity, shapes that do not agree, or a `vocab_size` that is smaller
                than the number of symbols; the message names the least that works.
        """
        require_demonstrations(actions, chunks, action_dim=low.size)
        _require_scale(scale)
        offset, half_width = quantile_range(actions, low=low, high=high)
        ranged = NormalizedActions(
            action_horizon=chunks.shape[1], low=low, high=high, offset=offset, half_width=half_width
        )
        transform = dct_matrix(ranged.action_horizon)
        coefficients = _coefficients(ranged.normalize(chunks), transform=transform, scale=scale)
        lowest, highest = _alphabet(coefficients, bound=CLIP * scale * ranged.action_horizon**0.5)
        num_base = highest - lowest + 1
        if num_base > GREATEST_VOCAB_SIZE:
            raise ValueError(
                f"scale is {scale:g}; with it these chunks have {num_base} symbols, more than the "
                f"{GREATEST_VOCAB_SIZE} that there may be. A smaller scale needs fewer"
            )
        if not num_base <= vocab_size <= GREATEST_VOCAB_SIZE:
            raise ValueError(
                f"vocab_size is {vocab_size}; with scale {scale:g} these chunks have {num_base} symbols, so "
                f"it must lie in [{num_base}, {GREATEST_VOCAB_SIZE}]. A smaller scale needs fewer"
            )
        return cls(
            action_horizon=ranged.action_horizon,
            low=low,
            high=high,
            offset=offset,
            half_width=half_width,
            scale=float(scale),
            lowest=lowest,
            num_base=num_base,
            merges=_fit_merges(coefficients - lowest, num_base=num_base, vocab_size=vocab_size),
        )

    @property
    def symbols_per_chunk(self) -> int:
        """Number of symbols that the ids of every chunk stand for together."""
        return self.action_horizon * self.action_dim

    @property
    def num_ids(self) -> int:
        """Number of ids: symbols and merges."""
        return self.num_base + len(self.merges)

    def coefficients_of_ids(self) -> list[tuple[int, ...]]:
        """Return the rounded coefficients that each id stands for, in units of 1 / `scale`."""
        return [tuple((run + self.lowest).tolist()) for run in self._runs]

    def specs(self) -> Mapping[str, ArraySpec]:
        """Return the ids of a chunk, PADDING behind the last one."""
        return {"action_ids": ArraySpec(dtype="int64", shape=(self.symbols_per_chunk,), num_ids=self.num_ids)}

    def constants(self) -> Arrays:
        """Return ``num_symbols`` int64 [num_ids], how many symbols each id stands for.

        A decoder that only allows ids of at most as many symbols as the chunk still lacks always ends in a
        whole chunk, since every symbol is an id by itself.
        """
        return {"num_symbols": self._num_symbols.copy()}

    def encode(
        self,
        actions: Float32[np.ndarray, "batch time action"],
        valid: Bool[np.ndarray, "batch time"],
    ) -> Arrays:
        """Return the ids of each chunk; the last valid action is held to the end of the chunk.

        At each place the id that stands for the most symbols is taken. That takes about as few ids as
        merging in the order of `merges`, and is ten times as fast.

        Args:
            actions: [batch action_horizon action], in the units of the robot; clipped to its limits.
            valid: False behind the end of an episode.

        Raises:
            ValueError: a wrong shape, NaN or infinity, or a chunk whose first step is not valid.
        """
        self._require_finite_chunks(actions, valid)
        if not valid[:, 0].all():
            raise ValueError(
                f"chunk {first_true(~valid[:, 0])[0]} begins with a step that is not valid; FAST encodes "
                f"whole chunks and needs a first action"
            )
        last = np.maximum.accumulate(np.where(valid, np.arange(self.action_horizon), 0), axis=1)
        held = np.take_along_axis(actions, last[:, :, None], axis=1)
        coefficients = _coefficients(self.normalize(held), transform=self._transform, scale=self.scale)
        symbols = np.clip(coefficients - self.lowest, 0, self.num_base - 1)
        ids = np.full(symbols.shape, PADDING, dtype=np.int64)
        for row, chunk in zip(ids, symbols.tolist(), strict=True):
            found = self._longest_ids(chunk)
            row[: len(found)] = found
        return {"action_ids": ids}

    def _longest_ids(self, symbols: list[int]) -> list[int]:
        ids, start = [], 0
        while start < len(symbols):
            node, best, end = 0, -1, start
            for i in range(start, len(symbols)):
                node = self._children.get((node, symbols[i]), -1)
                if node == -1:
                    break
                if node in self._id_at:
                    best, end = self._id_at[node], i + 1
            ids.append(best)
            start = end
        return ids

    def decode(self, outputs: Arrays) -> Float32[np.ndarray, "batch time action"]:
        """Return actions in the units of the robot, clipped to its limits.

        Raises:
            DecodeError: ``action_ids`` is missing, of a wrong shape or type, holds what is no id, has an id
                behind the padding, or a row stands for more or fewer symbols than a chunk has.
        """
        ids = require_output(outputs, "action_ids", shape=(self.symbols_per_chunk,), kind=np.integer)
        self._require_whole_chunks(ids)
        runs = [self._runs[i] for i in ids[ids != PADDING].tolist()]
        symbols = np.concatenate(runs) if runs else np.empty(0, dtype=np.int64)
        coefficients = (symbols + self.lowest).reshape(len(ids), self.action_horizon, self.action_dim)
        return self.denormalize(self._transform.T @ (coefficients / self.scale))

    def _require_whole_chunks(self, ids: np.ndarray) -> None:
        unknown = (ids < PADDING) | (ids >= self.num_ids)
        if unknown.any():
            chunk, position = first_true(unknown)
            raise DecodeError(
                f"action id {ids[chunk, position]} at position {position} of chunk {chunk} is outside "
                f"[0, {self.num_ids}) and not the padding {PADDING}; hold the last command"
            )
        resumed = (ids[:, 1:] != PADDING) & (ids[:, :-1] == PADDING)
        if resumed.any():
            chunk, position = first_true(resumed)
            raise DecodeError(
                f"action id {ids[chunk, position + 1]} at position {position + 1} of chunk {chunk} follows "
                f"padding; hold the last command"
            )
        is_id = ids != PADDING
        totals = np.where(is_id, self._num_symbols[np.where(is_id, ids, 0)], 0).sum(axis=1)
        if (totals != self.symbols_per_chunk).any():
            chunk = first_true(totals != self.symbols_per_chunk)[0]
            raise DecodeError(
                f"the {is_id[chunk].sum()} action ids of chunk {chunk} stand for {totals[chunk]} symbols; a "
                f"chunk has {self.symbols_per_chunk}; hold the last command"
            )

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data: all constants and all merges."""
        return {
            **self._shared_json(kind="fast"),
            "scale": self.scale,
            "lowest": self.lowest,
            "num_base": self.num_base,
            "merges": [list(pair) for pair in self.merges],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FastCodec":
        """Rebuild from `to_json`, exactly.

        Raises:
            ValueError: missing or unknown keys, or numbers that are no constants of a codec.
        """
        require_keys(data, (*SHARED_KEYS, "scale", "lowest", "num_base", "merges"), what="FAST action codec")
        return cls(
            **shared_arguments(data),
            scale=data["scale"],
            lowest=data["lowest"],
            num_base=data["num_base"],
            merges=[(left, right) for left, right in data["merges"]],
        )


def dct_matrix(length: int) -> Float64[np.ndarray, "frequency time"]:
    """Return the orthonormal DCT-II of signals of that length; its transpose is its inverse."""
    frequency, time = np.arange(length)[:, None], np.arange(length)
    matrix = np.sqrt(2 / length) * np.cos(np.pi * (2 * time + 1) * frequency / (2 * length))
    matrix[0] /= np.sqrt(2)
    return matrix


def _coefficients(
    unit: Float32[np.ndarray, "batch time action"],
    *,
    transform: Float64[np.ndarray, "time time"],
    scale: float,
) -> Int64[np.ndarray, "batch symbol"]:
    clipped = np.clip(unit.astype(np.float64), -CLIP, CLIP)
    coefficients = np.rint(scale * (transform @ clipped)).astype(np.int64)
    return coefficients.reshape(len(unit), unit.shape[1] * unit.shape[2])


def _alphabet(coefficients: Int64[np.ndarray, "batch symbol"], *, bound: float) -> tuple[int, int]:
    """Return the least and greatest coefficient seen, with a margin as far as CLIP admits."""
    least, greatest, limit = int(coefficients.min()), int(coefficients.max()), int(np.ceil(bound))
    margin = max(1, round(MARGIN * (greatest - least)))
    return max(least - margin, -limit), min(greatest + margin, limit)


def _require_scale(scale: float) -> None:
    if not LEAST_SCALE <= scale <= GREATEST_SCALE:
        raise ValueError(f"scale is {scale}; it must lie in [{LEAST_SCALE:g}, {GREATEST_SCALE:g}]")


def _runs(*, num_base: int, merges: Iterable[tuple[int, int]], longest: int) -> list[tuple[int, ...]]:
    """Return the symbols that each id stands for."""
    runs: list[tuple[int, ...]] = [(symbol,) for symbol in range(num_base)]
    for left, right in merges:
        if not (0 <= left < len(runs) and 0 <= right < len(runs)):
            raise ValueError(
                f"id {len(runs)} merges the ids {left} and {right}; both must lie in [0, {len(runs)})"
            )
        if len(runs[left]) + len(runs[right]) > longest:
            raise ValueError(f"id {len(runs)} stands for more than the {longest} symbols of a chunk")
        runs.append(runs[left] + runs[right])
    return runs


def _prefix_tree(
    runs: Iterable[tuple[int, ...]],
) -> tuple[dict[tuple[int, int], int], dict[int, int]]:
    """Return the child of each (node, symbol) and the id that ends at each node; 0 is the root."""
    children: dict[tuple[int, int], int] = {}
    id_at: dict[int, int] = {}
    for i, run in enumerate(runs):
        node = 0
        for symbol in run:
            node = children.setdefault((node, symbol), len(children) + 1)
        id_at[node] = i
    return children, id_at


def _fit_merges(
    symbols: Int64[np.ndarray, "batch symbol"], *, num_base: int, vocab_size: int
) -> list[tuple[int, int]]:
    """Merge the most frequent pair, again and again; of equally frequent ones that of the lowest ids.

    All chunks are one line of ids with an end mark behind each. A table counts the pairs and is corrected
    around each merge only.
    """
    end = vocab_size
    marks = np.full((len(symbols), 1), end)
    line = np.concatenate([symbols, marks], axis=1).astype(np.int32).ravel()
    counts = np.zeros((end + 1) ** 2, dtype=np.int32)
    _count_pairs(counts, line, np.arange(line.size), end=end, step=1)
    merges: list[tuple[int, int]] = []
    for new in range(num_base, vocab_size):
        most_frequent = int(counts.argmax())
        if counts[most_frequent] < 2:
            break
        left, right = divmod(most_frequent, end + 1)
        at = _pair_positions(line, left, right)
        _count_pairs(counts, line, np.concatenate([at - 1, at, at + 1]), end=end, step=-1)
        line[at] = new
        kept = np.ones(line.size, dtype=np.bool_)
        kept[at + 1] = False
        line, at = line[kept], at - np.arange(at.size)
        _count_pairs(counts, line, np.concatenate([at - 1, at]), end=end, step=1)
        merges.append((left, right))
    return merges


def _pair_positions(line: Int32[np.ndarray, " place"], left: int, right: int) -> Int64[np.ndarray, " pair"]:
    """Return where the pair begins; of overlapping ones (a a a) the first, third, ... of a run."""
    at = np.flatnonzero((line[:-1] == left) & (line[1:] == right))
    if left != right:
        return at
    order = np.arange(at.size)
    run_start = np.maximum.accumulate(np.where(np.diff(at, prepend=-2) != 1, order, 0))
    return at[(order - run_start) % 2 == 0]


def _count_pairs(
    counts: Int32[np.ndarray, " code"],
    line: Int32[np.ndarray, " place"],
    at: Int64[np.ndarray, " pair"],
    *,
    end: int,
    step: int,
) -> None:
    """Add `step` to the counts of the pairs that begin at the distinct places `at`; none spans two chunks."""
    places = np.unique(at)
    places = places[(places >= 0) & (places < line.size - 1)]
    left, right = line[places].astype(np.int64), line[places + 1].astype(np.int64)
    inside = (left != end) & (right != end)
    codes, occurrences = np.unique(left[inside] * (end + 1) + right[inside], return_counts=True)
    counts[codes] += step * occurrences.astype(np.int32)
