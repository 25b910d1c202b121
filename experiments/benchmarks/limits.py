"""What the machine can do at most: matrix products and memory traffic, measured now. Knows no models."""

import numpy as np
import torch

from experiments.benchmarks.measure import Row, best_wall_s

_SHAPES = ((2048, 1024, 1024), (4096, 256, 1024), (4096, 1024, 256))  # m, k, n; the best one counts
_COPY_BYTES = 1 << 28


def gemm_flops(dtype: torch.dtype, *, repeats: int) -> float:
    """Return the best rate of a matrix product [FLOP/s], with as many threads as torch is set to use."""
    best = 0.0
    for m, k, n in _SHAPES:
        a, b = torch.ones(m, k, dtype=dtype), torch.ones(k, n, dtype=dtype)
        out = torch.empty(m, n, dtype=dtype)
        torch.mm(a, b, out=out)
        seconds = best_wall_s(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), repeats=repeats)
        best = max(best, 2.0 * m * k * n / seconds)
    return best


def memory_bandwidth(*, repeats: int) -> float:
    """Return how much one thread reads and writes while it copies memory [bytes/s]."""
    source = np.ones(_COPY_BYTES // 2, np.uint8)
    target = np.zeros_like(source)
    seconds = best_wall_s(lambda: np.copyto(target, source), repeats=repeats)
    return _COPY_BYTES / seconds


def limit_rows(*, bandwidth: float, fp32: float | None = None, bf16: float | None = None) -> list[Row]:
    """Return the limits that were measured [bytes/s, FLOP/s] as rows of a table."""
    threads = f"{torch.get_num_threads()} threads"
    rows = [
        Row(name=f"matrix product, {name}", value=rate / 1e9, unit="GFLOP/s", note=threads)
        for name, rate in (("fp32", fp32), ("bf16", bf16))
        if rate is not None
    ]
    return [*rows, Row(name="memory, one thread", value=bandwidth / 1e9, unit="GB/s", note="read and write")]
