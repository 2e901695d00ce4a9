"""Losses over a whole vocabulary without ever holding (positions x V) for a whole batch.

XLM-R's V is 250,002: the logits of one 32 x 128 batch are 3.8 GiB for each model, and the textbook
formula keeps several tensors of that size. Here a few positions at a time go through the vocabulary
projection, and since everything above the features is known at once, their gradient is worked out
on the spot:

    for some positions:   logits = features W^T + b
                          sum += score(logits),  logits <- d sum / d logits       (od.py, mlm.py)
                          d features = logits W,  d W += logits^T features,  d b += logits summed

What outlives a chunk is three gradients, each as large as what it belongs to. This is how fused
linear losses on GPUs work (Liger-Kernel's chunked losses); here it is plain PyTorch, the same on
every device.
"""

import torch
from torch.autograd.function import once_differentiable

from distill.method import exact, no_autocast
from minitransformer.config import UserError

CHUNK = 2**25  # logits held at a time (128 MiB); with fewer, W is read from memory more often


def chunked_loss(features, weight, bias, score):
    """sum of score over (M, V) logits, with the gradient ready before backward asks for it.

    features (M, D), weight (V, D), bias (V,); returns () float32. `score(logits, rows)` gets the
    float32 logits (C, V) of positions `rows`, returns their summed loss and overwrites logits with
    its gradient.
    """
    return _ChunkedLoss.apply(features, weight, bias, score)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, score):
        inputs = features, weight, bias
        product = product_dtype(features)
        D_features, D_weight, D_bias = [
            torch.zeros_like(x, dtype=exact(x[:0]).dtype) if needed else None
            for x, needed in zip(inputs, ctx.needs_input_grad[:3], strict=True)]
        total = exact(features[:0]).sum()
        with no_autocast(features):
            W = weight.to(product)
            for rows in chunks(len(features), len(weight)):
                x = features[rows].to(product)  # (C, D)
                logits = project(x, W, bias)  # (C, V)
                total += score(logits, rows)
                logits_p = logits.to(product)
                if D_features is not None:
                    D_features[rows] = logits_p @ W
                if D_weight is not None:
                    accumulate(D_weight, logits_p, x)
                if D_bias is not None:
                    D_bias += logits.sum(0)
        ctx.save_for_backward(D_features, D_weight, D_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        return *(None if grad is None else grad * upstream for grad in ctx.saved_tensors), None


def product_dtype(features):
    """What the matrix products run in: autocast's choice, else the features' own precision."""
    device = features.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype


def chunks(positions, vocabulary):
    size = max(1, CHUNK // vocabulary)
    return [slice(start, start + size) for start in range(0, positions, size)]


def project(x, W, bias):
    """(C, V) logits, float32 or better, in a tensor of their own that score may overwrite."""
    return exact(x @ W.T).add_(bias)


def accumulate(total, logits, x):
    """total (V, D) += logits^T x, without a second (V, D) tensor where the precisions agree."""
    if total.dtype == logits.dtype:
        total.addmm_(logits.T, x)
    else:
        total += logits.T @ x


def check_mlm_head(encoder, side, remedy):
    if encoder.mlm_head is None:
        raise UserError(f"the {side} has no MLM head, so it predicts no words: {remedy}")
