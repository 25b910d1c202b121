"""Several processes training one model on torch's own engine, started by `torchrun`.

Without torchrun's environment variables a run is one process and nothing here does anything. What ends a run
is decided together, so that no process waits for one that has left.
"""

import os
from contextlib import AbstractContextManager, nullcontext
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

    @property
    def is_alone(self) -> bool:
        """Whether this process trains by itself."""
        return self.world_size == 1


ALONE = Ranks(rank=0, world_size=1)


def join_ranks(device: torch.device) -> Ranks:
    """Join the process group that torchrun's environment describes, or return a group of one.

    On several GPUs the one of this process becomes the current one.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(rank=dist.get_rank(), world_size=dist.get_world_size())


def leave_ranks(ranks: Ranks) -> None:
    """Leave the process group, if there is one."""
    if not ranks.is_alone and dist.is_initialized():
        dist.destroy_process_group()


def local_device(wanted: str, *, key: str = "trainer.device") -> torch.device:
    """Return the device for "auto", "cpu" or "cuda"; on several GPUs the one of this process.

    `key` is the setting that errors name.

    Raises:
        ValueError: "cuda" was requested where there is none. Nothing falls back in silence.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {wanted!r} is none of ('auto', 'cpu', 'cuda'); change {key}")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device 'cuda' was requested, but torch sees no GPU; use {key}=cpu or auto")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def wrap(module: nn.Module, ranks: Ranks) -> nn.Module:
    """Make gradients the mean over all processes."""
    return module if ranks.is_alone else DistributedDataParallel(module)


def adding_up(module: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Return the context of one of several batches of a step: only the last one exchanges gradients."""
    if is_last or not isinstance(module, DistributedDataParallel):
        return nullcontext()
    return module.no_sync()


def sum_over_ranks(value: Tensor, ranks: Ranks) -> Tensor:
    """Return the sum of a tensor over all processes."""
    if ranks.is_alone:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def mean_over_ranks(value: Tensor, ranks: Ranks) -> Tensor:
    """Return the mean of a tensor over all processes."""
    return sum_over_ranks(value, ranks) / ranks.world_size


def largest_over_ranks(value: float, ranks: Ranks, device: torch.device) -> float:
    """Return the largest of the numbers that the processes give, the same to all of them."""
    if ranks.is_alone:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)


def text_of_main(text: str, ranks: Ranks, device: torch.device) -> str:
    """Return the text that the main process gives, to all processes."""
    if ranks.is_alone:
        return text
    given = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(device)
    length = torch.tensor(len(given), device=device)
    dist.broadcast(length, src=0)
    received = given if ranks.is_main else torch.empty(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(received, src=0)
    return bytes(received.cpu().tolist()).decode()


def wait_for_ranks(ranks: Ranks) -> None:
    """Return when all processes have called this."""
    if not ranks.is_alone:
        dist.barrier()
