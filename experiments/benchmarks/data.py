"""How fast demonstrations become training batches, next to the memory that has to be moved for them.

Knows datasets and the batch maker of the trainer; no models.
"""

import tempfile
import time

import numpy as np

from experiments.benchmarks.limits import limit_rows, memory_bandwidth
from experiments.benchmarks.measure import Row, best_cpu_s
from experiments.config.schema import TrainRun
from experiments.training_parts import build_processor, open_data
from vla.data.demonstrations import DemonstrationSource
from vla.data.frame_cache import open_frame_cache
from vla.data.reader import Dataset
from vla.training.batches import BatchMaker


def measure(run: TrainRun, *, repeats: int) -> list[Row]:
    """Return the table for the dataset of a training run."""
    bandwidth = memory_bandwidth(repeats=repeats)
    train, _ = open_data(run)
    if not isinstance(train, DemonstrationSource):
        raise ValueError("part=data times recordings; give data=demonstrations")
    windows, processor = train.windows, build_processor(run, train)
    plain, augmented = (
        BatchMaker(source, processor=processor, requests={}, noise={}, seed=run.seed)
        for source in (DemonstrationSource(windows), train)
    )
    rng = np.random.default_rng(run.seed)
    chosen = rng.integers(0, windows.num_windows, size=run.trainer.batch_size)
    gather_s = best_cpu_s(lambda: windows.images(chosen), repeats=repeats) / len(chosen)
    plain_s = best_cpu_s(lambda: plain.make(chosen, number=0), repeats=repeats) / len(chosen)
    whole_s = best_cpu_s(lambda: augmented.make(chosen, number=0), repeats=repeats) / len(chosen)
    image_bytes = sum(one.nbytes for one in windows.images(chosen[:1]).values())
    copied = 2 * image_bytes / bandwidth  # read once, written once
    what = f"copying its {image_bytes} bytes of frames"
    return [
        *limit_rows(bandwidth=bandwidth),
        _us("decoding a frame into the cache, once", _decode_s(run), note="all cameras of the dataset count"),
        _us("sample, gathered", gather_s, copied, what, f"batches of {len(chosen)}; few frames stay cached"),
        _us("sample, tokenized", plain_s, copied, what),
        _us("sample, tokenized and augmented", whole_s, copied, what, "what the trainer asks for"),
        Row(name="samples a core", value=1 / whole_s, unit="samples/s", limit=1 / copied, limit_name=what),
    ]


def _us(name: str, seconds: float, limit_s: float | None = None, limit_name: str = "", note: str = "") -> Row:
    limit = None if limit_s is None else 1e6 * limit_s
    return Row(name=name, value=1e6 * seconds, unit="us", limit=limit, limit_name=limit_name, note=note)


def _decode_s(run: TrainRun) -> float:
    """Return CPU time a frame of filling a fresh frame cache [s]."""
    dataset = Dataset(run.dataset)
    with tempfile.TemporaryDirectory() as directory:
        started = time.process_time()
        open_frame_cache(dataset, directory, progress=False)
        seconds = time.process_time() - started
    return seconds / (dataset.num_frames * len(dataset.robot_spec.cameras))
