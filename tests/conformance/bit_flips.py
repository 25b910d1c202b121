"""Flips single bits in datasets, bundles and checkpoints of this project, and counts what comes of it.

    python tests/conformance/bit_flips.py            # 200 flips of each kind, some minutes
    python tests/conformance/bit_flips.py 20 video   # as many flips of the kinds that are named

Half of the flips fall on any byte, half on any file, so that small files get their share. A flip is *silent*
if something else is learned, run or resumed than what was written, without a word. The tests do the same with
fewer flips (tests/test_bit_flips.py); the counts stand in experiments/results/faults.md.
"""

import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "data"), str(TESTS / "training")]

from data_fixtures import make_episodes, make_spec, write_episodes  # noqa: E402
from training_fixtures import train_for  # noqa: E402

from policies.exported import BundlePolicy  # noqa: E402
from policies.vla_policy import load_policy_checkpoint  # noqa: E402
from vla.data.windows import open_windows  # noqa: E402
from vla.data.writer import DatasetWriter  # noqa: E402
from vla.files import read_manifest, write_manifest  # noqa: E402
from vla.model.checkpoint import list_checkpoints  # noqa: E402
from vla.training.checkpoint import load_training  # noqa: E402

NAMED, UNNAMED, RAW, SAID, SILENT, SAME = (
    "refused, file named",
    "refused",
    "raw error",
    "changed, said",
    "changed in silence",
    "changed nothing",
)
OUTCOMES = (NAMED, UNNAMED, RAW, SAID, SILENT, SAME)
Content = dict[str, Any]  # what is believed, by name; compared with `==` or as arrays


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A directory to flip bits in, and what reads it.

    Attributes:
        root: of it.
        read: returns all that is believed of a directory.
        spans: first byte and one past the last where flips may fall, by file name.
    """

    root: Path
    read: Callable[[Path], Content]
    spans: dict[str, list[tuple[int, int]]]


def everywhere(root: Path) -> dict[str, list[tuple[int, int]]]:
    """Return the whole of every file."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): [(0, path.stat().st_size)] for path in files}


def number_columns(root: Path) -> dict[str, list[tuple[int, int]]]:
    """Return where states and actions lie in the data files."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for path in sorted((root / "data").rglob("*.parquet")):
        metadata = pq.ParquetFile(path).metadata
        for group in range(metadata.num_row_groups):
            for number in range(metadata.num_columns):
                column = metadata.row_group(group).column(number)
                if column.path_in_schema.startswith(("observation.state", "action")):
                    first = column.dictionary_page_offset or column.data_page_offset
                    span = (first, first + column.total_compressed_size)
                    spans.setdefault(path.relative_to(root).as_posix(), []).append(span)
    return spans


def dataset(folder: Path, *, storage: str, numbers_only: bool = False) -> Subject:
    """Record a small dataset; what is believed is all that training takes from it."""
    root, spec = folder / "dataset", make_spec()
    with DatasetWriter(root, robot_spec=spec, storage=storage) as writer:
        write_episodes(writer, make_episodes(spec, [6, 5, 7]))
    spans = number_columns(root) if numbers_only else everywhere(root)

    def read(root: Path) -> Content:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            windows = open_windows([root], cache_dir=cache, action_horizon=2, progress=False)
            everything = np.arange(windows.num_windows)
            return {
                "states": windows.states.copy(),
                "actions": windows.actions.copy(),
                "words": windows.instruction_texts(everything),
                "tasks": windows.task_names,
                "episodes": sorted(windows.episodes()),
                "spec": windows.robot_spec.to_json(),
                **{name: images.copy() for name, images in windows.images(everything).items()},
            }

    return Subject(root=root, read=read, spans=spans)


def bundle(folder: Path) -> Subject:
    """Copy the golden bundle, its manifest written anew; what is believed is what it answers and says."""
    root = folder / "bundle"
    shutil.copytree(TESTS / "golden" / "bundle_v1", root)
    provenance = read_manifest(root)["provenance"]
    (root / "manifest.json").unlink()
    write_manifest(root, provenance)

    def read(root: Path) -> Content:
        policy = BundlePolicy.load(root)
        return {"provenance": dict(policy.provenance), "processor": policy.processor.to_json()}

    return Subject(root=root, read=read, spans=everywhere(root))


def checkpoint(folder: Path) -> Subject:
    """Train two steps; what is believed is what is evaluated and what is resumed from."""
    train_for(folder / "run", folder, steps=2)
    (root,) = list_checkpoints(folder / "run")

    def read(root: Path) -> Content:
        found = load_policy_checkpoint(root)
        tensors, state = load_training(root)
        weights = {name: value.detach().numpy() for name, value in found.model.named_parameters()}
        return {
            "provenance": found.provenance,
            "processor": found.processor.to_json(),
            "state": state,
            **weights,
            **{f"training {name}": value.numpy() for name, value in tensors.items()},
        }

    return Subject(root=root, read=read, spans=everywhere(root))


KINDS: dict[str, Callable[[Path], Subject]] = {
    "images": lambda folder: dataset(folder, storage="image"),
    "video": lambda folder: dataset(folder, storage="video"),
    "numbers": lambda folder: dataset(folder, storage="image", numbers_only=True),
    "bundle": bundle,
    "checkpoint": checkpoint,
}


class _Lines(logging.Handler):
    """Keeps what is logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def listening() -> Iterator[list[str]]:
    """Yield the list that warnings are added to while the block runs."""
    handler, logger = _Lines(), logging.getLogger()
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)


def is_same(one: Content, other: Content) -> bool:
    """Tell whether two contents are equal."""
    return set(one) == set(other) and all(
        np.array_equal(one[name], other[name])
        if isinstance(one[name], np.ndarray)
        else one[name] == other[name]
        for name in one
    )


def outcome_of(subject: Subject, name: str, expected: Content) -> str:
    """Read a directory in which `name` was damaged, and return which of `OUTCOMES` came of it."""
    with listening() as lines:
        try:
            found = subject.read(subject.root)
        except Exception as error:  # noqa: BLE001
            if not isinstance(error, ValueError) or type(error).__module__.split(".")[0] not in (
                "vla",
                "policies",
            ):
                return RAW
            return NAMED if Path(name).name in str(error) else UNNAMED
    if is_same(found, expected):
        return SAME
    return SAID if lines else SILENT


def flip_bits(subject: Subject, *, count: int, seed: int = 0, most_s: float = 600.0) -> Counter[str]:
    """Flip one bit after the other, each put back before the next, and count the outcomes.

    Args:
        subject: what to damage.
        count: number of flips.
        seed: of their places.
        most_s: no flip begins after so many seconds.
    """
    expected, rng = subject.read(subject.root), np.random.default_rng(seed)
    names = list(subject.spans)
    sizes = np.array([sum(end - start for start, end in subject.spans[name]) for name in names])
    counts: Counter[str] = Counter()
    end = time.monotonic() + most_s
    for number in range(count):
        if time.monotonic() > end:
            break
        share = sizes / sizes.sum() if number % 2 else (sizes > 0) / (sizes > 0).sum()
        name = names[rng.choice(len(names), p=share)]
        offset = int(rng.integers(sizes[names.index(name)]))
        for start, stop in subject.spans[name]:
            if offset < stop - start:
                break
            offset -= stop - start
        path, position = subject.root / name, start + offset
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        result = outcome_of(subject, name, expected)
        counts[result] += 1
        if result in (RAW, SILENT, SAID):
            print(f"{result}: {name}, byte {position}", file=sys.stderr)
        path.write_bytes(content)
    return counts


def main(count: int, kinds: list[str]) -> None:
    """Run the trial and print a table."""
    logging.getLogger().addHandler(logging.NullHandler())  # nothing of it on the screen
    print("| bit flips in | tried | " + " | ".join(OUTCOMES) + " |")
    print("| --- |" + " --- |" * (1 + len(OUTCOMES)))
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            counts = flip_bits(KINDS[kind](Path(folder)), count=count)
        print(f"| {kind} | {counts.total()} | " + " | ".join(str(counts[name]) for name in OUTCOMES) + " |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200, sys.argv[2:] or list(KINDS))
