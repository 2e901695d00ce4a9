"""The processes of one run, as torchrun starts them: ranks, sums over them, leaving together."""

import os

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def all_reduced(*numbers: Tensor) -> list[float]:
    """The sums of the numbers over all processes: one collective, one wait for the device."""
    packed = torch.stack([number.detach().double() for number in numbers])
    if dist.is_initialized():
        dist.all_reduce(packed)
    return packed.tolist()


def leave_together() -> None:
    """Waits for all ranks: when one process ends, torchrun ends the others, also amid a save."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def launcher() -> str:
    """How this program was started: python, or torchrun with as many processes."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return "python"
    return f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}"
