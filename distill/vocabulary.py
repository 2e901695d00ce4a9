"""Losses over a whole vocabulary without ever holding (positions x V) for a whole batch.

XLM-R's V is 250,002: the logits of one 32 x 128 batch are 3.8 GiB for each model, and the textbook
formula keeps several tensors of that size. Here a few positions at a time go through the vocabulary
projection, and since everything above the features is known at once, their gradient is worked out
on the spot:

    for some positions:   logits = features W^T + b
                          sum += score(logits),  slope = d sum / d logits         (od.py, mlm.py)
                          d features = slope W,  d W += slope^T features,  d b += slope summed

What outlives a chunk is three gradients, each as large as what it belongs to. This is how fused
linear losses on GPUs work (Liger-Kernel's chunked losses); here it is plain PyTorch, the same on
every device. The buffers of one chunk serve for all: fresh memory costs more than the arithmetic
on it.
"""

import torch
from torch.autograd.function import once_differentiable

from distill.method import exact, no_autocast
from minitransformer.config import UserError

CHUNK = 2**25  # logits in one buffer (128 MiB); with fewer, W is read from memory more often


def chunked_loss(features, weight, bias, score):
    """Sum of score over (M, V) logits, with the gradient ready before backward asks for it.

    Shapes   features (M, D), weight (V, D), bias (V,); returns () float32.
    score(logits, rows) gets the float32 logits (C, V) of positions `rows`, which it may overwrite,
    and returns their summed loss and its gradient for them.
    """
    return _ChunkedLoss.apply(features, weight, bias, score)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, score):
        product = product_dtype(features)
        d_features, d_weight, d_bias = (
            exact(torch.zeros_like(x)) if needed else None
            for x, needed in zip((features, weight, bias), ctx.needs_input_grad, strict=False))
        total = exact(features.new_zeros(()))
        with no_autocast(features):
            x, W = features.to(product), weight.to(product)
            buffer, = buffers(1, features, weight)
            for rows in chunks(features, weight):
                loss, slope = score(project(x[rows], W, bias, buffer), rows)  # (C, V)
                total += loss
                if d_bias is not None:
                    d_bias += slope.sum(0)
                slope = slope.to(product)
                if d_features is not None:
                    d_features[rows] = slope @ W
                if d_weight is not None:
                    accumulate(d_weight, slope, x[rows])
        ctx.save_for_backward(d_features, d_weight, d_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        # train.py backpropagates raw sums: factor 1, and no need for another pass over (V, D).
        one = upstream.device.type == "cpu" and upstream.item() == 1
        return *(g if g is None or one else g * upstream for g in ctx.saved_tensors), None


def product_dtype(features):
    """What the matrix products run in: autocast's choice, else the features' own precision."""
    device = features.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype


def chunk_size(features, weight):
    return max(1, min(len(features), CHUNK // len(weight)))


def chunks(features, weight):
    size = chunk_size(features, weight)
    return [slice(start, start + size) for start in range(0, len(features), size)]


def buffers(count, features, weight):
    """`count` buffers (C, V) for the logits of one chunk and what is made of them."""
    dtype = exact(features[:0]).dtype
    return features.new_empty(count, chunk_size(features, weight), len(weight), dtype=dtype)


def project(x, W, bias, buffer):
    """x W^T + b, (C, V), written into the buffer: float32 also where the product is bfloat16."""
    out = buffer[:len(x)]
    if x.dtype == out.dtype:
        return torch.addmm(bias, x, W.T, out=out)
    return torch.add(x @ W.T, bias, out=out)


def softmax(logits, buffer):
    """Probabilities (C, V), written into the buffer, and logsumexp (C, 1), without a third one."""
    p = torch.softmax(logits, -1, out=buffer[:len(logits)])
    return p, logits.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()


def accumulate(total, slope, x):
    """total (V, D) += slope^T x, without a second (V, D) tensor where the precisions agree."""
    if total.dtype == slope.dtype:
        total.addmm_(slope.T, x)
    else:
        total += slope.T @ x


def features_at(encoder, batch, rows):
    """What the vocabulary is compared with at the chosen positions of masked text, (M, D)."""
    hidden = encoder(batch.masked_ids, batch.mask, keep="last").hidden[-1]  # (B, N, D)
    return encoder.mlm_features(hidden[rows])


def check_mlm_head(encoder, side, remedy):
    if encoder.mlm_head is None:
        raise UserError(f"the {side} has no MLM head, so it predicts no words: {remedy}")
