"""AdamW and the learning-rate schedule, shared by distillation and fine-tuning."""

import math

import torch
from torch import nn


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over the parameters that learn.

    Weight decay acts on the matrices of layers and learned maps only. In an embedding table it
    would shrink every row that the text never reads; vectors are biases and norms.
    """
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed, kept = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.dim() > 1 and parameter not in tables
            (decayed if matrix else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
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
