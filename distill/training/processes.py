"""The processes of one run, as torchrun starts them: ranks, sums over ranks, the common end."""

import gc
import os
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def connect(module: nn.Module, device: torch.device) -> nn.Module:
    """Join the processes and wrap the module so that its gradients are averaged over them."""
    if world() == 1:
        return module
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return DistributedDataParallel(module)


def average_gradients(module: nn.Module, now: bool) -> AbstractContextManager:
    """Let backward average the gradients over the ranks if `now`, else keep them on this rank."""
    if isinstance(module, DistributedDataParallel) and not now:
        return module.no_sync()
    return nullcontext()


def sums_over_ranks(*lists: list[Tensor]) -> list[float]:
    """Sum each list of scalars over all processes in float64: one collective, one wait."""
    sums = []
    for scalars in lists:
        stacked = torch.stack([scalar.detach() for scalar in scalars])
        if stacked.device.type == "mps":  # has no float64
            stacked = stacked.cpu()
        sums.append(stacked.double().sum())
    packed = torch.stack(sums)
    if dist.is_initialized():
        dist.all_reduce(packed)
    return packed.tolist()


def same_on_all_ranks(value):
    """Return rank 0's value on every rank."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def leave_together() -> None:
    """Wait for all ranks, then end the group: when one process exits, torchrun ends the others.

    The caller must have released its DistributedDataParallel module. If the group dies first, the
    module's destructor joins a gloo thread while it holds the interpreter lock that the thread
    needs: about one exit in fifty never ended.
    """
    if dist.is_initialized():
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


def launcher(processes: int) -> str:
    """Return the command that starts a program in so many processes."""
    return "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
