"""The processes of one run, as torchrun starts them: ranks, sums over ranks, the common end."""

import gc
import os

import torch
import torch.distributed as dist
from torch import Tensor

from minitransformer.files import UserError, first_line


def world() -> int:
    """Return the number of processes; RANK or WORLD_SIZE alone is a leftover of other work."""
    words = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    return max(1, int(words[1])) if all(word.isdecimal() for word in words) else 1


def rank() -> int:
    return int(os.environ["RANK"]) if world() > 1 else 0


def join(device: torch.device) -> None:
    """Connect this process to the others of the run, if there are any."""
    if world() > 1 and not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{first_line(error)}; use torchrun, or unset RANK") from None


def check_alike(facts: dict) -> None:
    """Refuse to train where a process has other facts than rank 0: settings, models or text."""
    everywhere = [facts]
    if dist.is_initialized():
        everywhere = [None] * world()
        dist.all_gather_object(everywhere, facts)
    for number, theirs in enumerate(everywhere):
        for name in everywhere[0] | theirs:
            ours, other = str(everywhere[0].get(name)), str(theirs.get(name))
            if ours != other:
                values = f"{ours:.40} on rank 0, {other:.40} on rank {number}"
                raise UserError(f"the processes differ in {name}: {values}; start them all alike")


def sums_over_ranks(*lists: list[Tensor]) -> Tensor:
    """Sum each list of scalars over all processes: one tensor, one collective, no wait."""
    device = lists[0][0].device
    precise = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    sums = torch.stack([torch.stack(scalars).detach().to(precise).sum() for scalars in lists])
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums


def leave_together() -> None:
    """Wait for all ranks, then end the group: when one process exits, torchrun ends the others.

    The caller must have released its DistributedDataParallel module: destroyed after the group, it
    deadlocks with a gloo thread in about one exit in fifty.
    """
    if dist.is_initialized():
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


def launcher(processes: int) -> str:
    """Return the command that starts a program in so many processes."""
    return "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
