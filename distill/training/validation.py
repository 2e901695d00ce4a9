"""The loss on text that training never sees."""

import math
from collections.abc import Callable

import torch

from distill.method import Batch
from distill.training.processes import rank, sums_over_ranks, world


@torch.no_grad()
def held_out_loss(compute: Callable, teacher, batches: list[Batch], autocast) -> float:
    """Return sum / count over all batches, NaN if nothing counts; each rank takes its share.

    compute    (teacher, batch) -> (sum, count), a method's loss with its student inside
    """
    zero = torch.zeros((), device=batches[0].ids.device)  # a rank may have no batch
    totals, counts = [zero], [zero]
    for batch in batches[rank() :: world()]:
        with autocast:
            total, count = compute(teacher, batch)
        totals.append(total)
        counts.append(count)
    total, count = sums_over_ranks(totals, counts).tolist()
    return total / count if count else math.nan
