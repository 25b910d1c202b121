"""What the machine is good at: which precision pays, and whether torch can compile.

bf16 on a CPU without AMX or AVX512-BF16 is slower than fp32, so precision is chosen by what the machine has.
"""

import shutil
import sysconfig
from pathlib import Path

import torch

PRECISIONS = ("auto", "fp32", "bf16")


def choose_precision(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the computing type for "auto", "fp32" or "bf16", and a sentence for the log that says why."""
    if wanted not in PRECISIONS:
        raise ValueError(f"precision {wanted!r} is none of {PRECISIONS}; change trainer.precision")
    if wanted == "fp32":
        return torch.float32, "fp32, as asked"
    if wanted == "bf16":
        return torch.bfloat16, "bf16, as asked"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return (
            (torch.bfloat16, "bf16: the GPU has it") if fast else (torch.float32, "fp32: the GPU lacks bf16")
        )
    flags = cpu_flags()
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in flags:
            return torch.bfloat16, f"bf16: the processor has {flag}"
    return torch.float32, "fp32: the processor has neither amx_bf16 nor avx512_bf16"


def choose_compile(wanted: str) -> tuple[bool, str]:
    """Return whether to compile for "auto", "on" or "off", and a sentence for the log that says why."""
    if wanted not in ("auto", "on", "off"):
        raise ValueError(f"compile {wanted!r} is none of ('auto', 'on', 'off'); change trainer.compile")
    if wanted != "auto":
        return wanted == "on", f"torch.compile {wanted}, as asked"
    compiler = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if compiler is None or not header.exists():
        missing = "no C++ compiler" if compiler is None else f"no {header}"
        return False, f"torch.compile off: {missing} (apt-get install g++ python3-dev makes training faster)"
    return True, f"torch.compile on, with {compiler}"


def cpu_flags() -> frozenset[str]:
    """Return the processor's feature flags as Linux names them; empty where there is no /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return frozenset()
    for line in path.read_text().split("\n"):
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()
