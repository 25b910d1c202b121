"""Training speed on one thread, on all, and on the number that is chosen, next to busy neighbors.

Neighbors are processes that count, at a lower priority (nice 5), as a browser would be. Every number
is of a whole training of `trainer.max_minutes`, comparisons between threads included.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from experiments.benchmarks.limits import gemm_flops, limit_rows, memory_bandwidth
from experiments.benchmarks.measure import Row
from experiments.benchmarks.training import trained_for_a_while
from experiments.config.schema import TrainRun
from experiments.training_parts import build_model, build_processor, open_data

NEIGHBORS = (0, 2, 6)
NICE = 5
_ENDLESS = 10**9  # samples: the cap in minutes ends each training
_COUNT = f"import os\nos.nice({NICE})\nwhile os.getppid() == {{parent}}:\n    sum(range(1000))"


def measure(run: TrainRun, *, repeats: int) -> list[Row]:
    """Return the speeds [samples/s] by number of neighbors, each next to that of the better fixed number.

    Raises:
        ValueError: `trainer.max_minutes` is not given, or the number of threads is fixed.
    """
    if run.trainer.max_minutes is None or run.trainer.num_threads is not None:
        raise ValueError(
            "part=threads trains for trainer.max_minutes with several numbers of threads; give "
            "trainer.max_minutes=1 and trainer.num_threads=null"
        )
    endless = dataclasses.replace(run.trainer, num_samples=_ENDLESS, seed=run.seed)
    train, validation = open_data(run)
    processor = build_processor(run, train)
    available = torch.get_num_threads()
    rows = limit_rows(
        fp32=gemm_flops(torch.float32, repeats=repeats),
        bf16=gemm_flops(torch.bfloat16, repeats=repeats),
        bandwidth=memory_bandwidth(repeats=repeats),
    )

    def rate(num_threads: int | None) -> float:
        torch.set_num_threads(available)
        model = build_model(run.model, processor, seed=run.seed)
        settings = dataclasses.replace(endless, num_threads=num_threads)
        with trained_for_a_while(settings, model, processor, train, validation) as (_, result):
            return result.num_samples / result.elapsed_s

    for count in NEIGHBORS:
        with _neighbors(count):
            fixed = {number: rate(number) for number in sorted({1, available})}
            chosen = rate(None)
        by_hand = ", ".join(f"{number}: {value:.3g}" for number, value in fixed.items())
        rows.append(
            Row(
                name=f"training next to {count} busy neighbors",
                value=chosen,
                unit="samples/s",
                limit=max(fixed.values()),
                limit_name="the better number of threads by hand",
                note=f"samples/s by threads: {by_hand}",
            )
        )
    return rows


@contextmanager
def _neighbors(count: int) -> Iterator[None]:
    """Run processes that keep a core busy each, while the block runs; they do no job and return nothing."""
    code = _COUNT.format(parent=os.getpid())
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
