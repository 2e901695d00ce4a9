"""AdamW and the learning-rate schedule, shared by distillation and fine-tuning."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def make_optimizer(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over the parameters that learn; weight decay acts on matrices, not on vectors."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    # eps 1e-6: with 1e-8 a gradient that is rounding noise moves a weight by a full learning rate
    return torch.optim.AdamW(groups, lr=lr, eps=1e-6, fused=True)


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """The rate of optimizer step 0, 1, ...: rises linearly to `peak`, then falls linearly to 0.

    warmup   share of the steps in which the rate rises
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (steps - step) / max(1, steps - rising)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
