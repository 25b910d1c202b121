"""Several processes training one model on torch's own engine, started by `torchrun`.

Without torchrun's environment variables a run is one process and nothing here does anything. Knows nothing of
models' insides, data or files.
"""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def join_ranks(device: torch.device) -> Ranks:
    """Join the process group that torchrun's environment describes, or return a group of one."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Ranks(rank=0, world_size=1)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(rank=dist.get_rank(), world_size=dist.get_world_size())


def leave_ranks(ranks: Ranks) -> None:
    """Leave the process group, if there is one."""
    if ranks.world_size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def local_device(wanted: str) -> torch.device:
    """Return the device for "auto", "cpu" or "cuda"; on several GPUs the one of this process.

    Raises:
        ValueError: "cuda" was asked for where there is none. Nothing falls back in silence.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {wanted!r} is none of ('auto', 'cpu', 'cuda'); change trainer.device")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch sees no GPU; use trainer.device=cpu or auto")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def wrap(module: nn.Module, ranks: Ranks) -> nn.Module:
    """Make gradients the mean over all processes."""
    return module if ranks.world_size == 1 else DistributedDataParallel(module)


def mean_over_ranks(value: Tensor, ranks: Ranks) -> Tensor:
    """Return the mean of a tensor over all processes."""
    if ranks.world_size == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / ranks.world_size
