"""Chooses number type, compilation and memory handling by what is fast on this machine.

bf16 products are twice to ten times as fast as fp32 on processors that have them, and up to fifty times as
slow on those that have not. Which it is here is timed, because no file tells it on every system.
"""

import ctypes
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_ROWS = 128  # tokens in a timed product
_REPEATS = 5
_GIVE_UP_S = 0.1
_WORTH_ROUNDING = 1.2  # bf16 must be this much faster, as it rounds to three digits


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of mallopt(3)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step instead of returning it to the system.

    A step frees and allocates the same hundreds of megabytes; asking the system for each tensor anew, page by
    page, took a tenth of a training step. Does nothing on other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    try:
        mallopt = libc.mallopt
    except AttributeError:  # musl
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc accepts
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class ProductRates(NamedTuple):
    """Rates of matrix products of a model's own shapes, by one thread [FLOP/s]."""

    fp32: float
    bf16: float

    def fastest(self) -> str:
        """Return the key of `PRECISIONS` to train in."""
        return "bf16" if self.bf16 > _WORTH_ROUNDING * self.fp32 else "fp32"

    def __str__(self) -> str:
        fp32, bf16 = self.fp32 / 1e9, self.bf16 / 1e9
        return f"fp32 {fp32:.3g}, bf16 {bf16:.3g} GFLOP/s in products of this model's shapes, one thread"


def precision_name(dtype: torch.dtype) -> str:
    """Return the key of `PRECISIONS` for a type.

    Raises:
        ValueError: training does not compute in that type.
    """
    for name, candidate in PRECISIONS.items():
        if candidate is dtype:
            return name
    raise ValueError(f"{dtype} is none of {tuple(PRECISIONS)}")


def choose_precision(
    wanted: str, *, rates: ProductRates, begun_with: str | None = None
) -> tuple[torch.dtype, str]:
    """Return the type of all matrix products of a run, and a sentence for the log.

    Args:
        wanted: "auto" or a key of `PRECISIONS`.
        rates: what `measure_product_rates` returned.
        begun_with: the type in which a resumed run began; "auto" keeps it.

    Raises:
        ValueError: `wanted` is something else.
    """
    if wanted != "auto" and wanted not in PRECISIONS:
        raise ValueError(f"precision {wanted!r} is none of {('auto', *PRECISIONS)}; change trainer.precision")
    fastest = rates.fastest()
    if wanted != "auto":
        name, why = wanted, "as asked"
    elif begun_with is not None:
        name, why = begun_with, "as this run began"
    else:
        name, why = fastest, "measured"
    slow = "" if name == fastest else f"; trainer.precision={fastest} would be faster here"
    return PRECISIONS[name], f"{name}, {why} ({rates}{slow})"


def measure_product_rates(model: nn.Module, device: torch.device) -> ProductRates:
    """Time the model's own matrix products in fp32 and bf16; takes some milliseconds.

    One thread computes, and the best of several repeats counts: on a busy machine several threads wait for
    one another in every product, far longer than they compute. A type that turns out much slower is given up
    after a tenth of a second.
    """
    matrices = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 2}
    in_blocks = {shape for name, shape in matrices.items() if "blocks." in name}
    shapes = sorted(in_blocks or set(matrices.values()))
    if not shapes:
        raise ValueError("the model has no matrix to time; a backbone needs at least one linear layer")
    fp32_s = bf16_s = flops = 0.0
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for rows, columns in shapes:
            products = [_product(rows, columns, dtype, device) for dtype in (torch.float32, torch.bfloat16)]
            fast, slow = _best_seconds(products, device)
            fp32_s, bf16_s = fp32_s + fast, bf16_s + slow
            flops += 2.0 * _ROWS * rows * columns
    finally:
        torch.set_num_threads(num_threads)
    return ProductRates(fp32=flops / fp32_s, bf16=flops / bf16_s)


def _product(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    x = torch.ones(_ROWS, columns, dtype=dtype, device=device)
    weight = torch.ones(rows, columns, dtype=dtype, device=device)
    return lambda: torch.mm(x, weight.mT)


def _best_seconds(products: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Return the least time of each product, measured in turns; the first call of each does not count."""
    best, spent = [float("inf")] * len(products), [0.0] * len(products)
    for repeat in range(_REPEATS + 1):
        for index, product in enumerate(products):
            if spent[index] > _GIVE_UP_S and best[index] > 3 * min(best):
                continue
            started = time.perf_counter()
            product()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took = time.perf_counter() - started
            if repeat:
                best[index], spent[index] = min(best[index], took), spent[index] + took
    return best


def choose_compile(wanted: str, device: torch.device) -> tuple[bool, str]:
    """Return whether to compile for "auto", "on" or "off", and a sentence for the log that says why.

    "auto" compiles on a GPU. On a CPU it costs a minute before the first step and brings little. A small
    function is compiled first: the directory for compiled files may be full, or forbid programs.

    Raises:
        ValueError: `wanted` is something else, or it is "on" and there is no compiler, or it fails.
    """
    if wanted not in ("auto", "on", "off"):
        raise ValueError(f"compile {wanted!r} is none of ('auto', 'on', 'off'); change trainer.compile")
    if wanted == "off" or (wanted == "auto" and device.type == "cpu"):
        return False, "torch.compile off"
    compiler = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if compiler is not None and header.exists():
        failure = _why_compiling_fails(device)
        if failure is None:
            return True, f"torch.compile on, with {compiler}"
        if wanted == "on":
            raise ValueError(f"trainer.compile=on, but {failure}; or give trainer.compile=off")
        return False, f"torch.compile off: {failure}"
    missing = "a C++ compiler" if compiler is None else str(header)
    if wanted == "on":
        raise ValueError(
            f"trainer.compile=on needs {missing}: apt-get install g++ python3-dev, or trainer.compile=off"
        )
    return False, f"torch.compile off: there is no {missing}"


def _why_compiling_fails(device: torch.device) -> str | None:
    """Compile and run a small function; return what went wrong and what may help, or None."""
    try:
        torch.compile(_small_function)(torch.zeros(8, device=device))
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        return (
            f"torch.compile fails here ({reason}); it writes programs to {tempfile.gettempdir()}: set TMPDIR "
            "to a directory on a disk that has space and is not mounted noexec"
        )
    return None


def _small_function(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1.0
