"""What the machine can do at most: matrix products and memory traffic, measured now."""

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from experiments.benchmarks.measure import Row, best_wall_s
from policies.export_graph import OPSET

_SHAPES = ((2048, 1024, 1024), (4096, 256, 1024), (4096, 1024, 256))  # m, k, n; the best one counts
_COPY_BYTES = 1 << 28
_ROW = 1024  # numbers


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


def onnx_gemm_flops(*, repeats: int) -> float:
    """Return the best rate of an fp32 matrix product by onnxruntime [FLOP/s], on one thread.

    Which library multiplies faster depends on the processor, so that a limit for both asks both.
    """
    best = 0.0
    for m, k, n in _SHAPES:
        weights = numpy_helper.from_array(np.ones((k, n), np.float32), "weights")
        x, y = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [m, size])
            for name, size in (("x", k), ("y", n))
        )
        product = helper.make_node("MatMul", ["x", "weights"], ["y"])
        graph = helper.make_graph([product], "product", [x], [y], [weights])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feed = {"x": np.ones((m, k), np.float32)}
        session.run(None, feed)
        seconds = best_wall_s(lambda session=session, feed=feed: session.run(None, feed), repeats=repeats)
        best = max(best, 2.0 * m * k * n / seconds)
    return best


def read_bandwidth(num_bytes: int, *, repeats: int) -> float:
    """Return how much torch reads of a buffer that it reads again and again [bytes/s].

    A buffer that fits a cache is read faster than memory: what bounds a model is a buffer of its size. The
    faster of a sum and a one-row matrix product counts.
    """
    rows = max(1, num_bytes // (4 * _ROW))
    buffer, row, out = torch.ones(rows, _ROW), torch.ones(_ROW), torch.empty(rows)
    reads = (lambda: buffer.sum(), lambda: torch.mv(buffer, row, out=out))
    return buffer.nbytes / min(best_wall_s(read, repeats=repeats + 1) for read in reads)


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
