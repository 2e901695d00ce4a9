"""Losses over a whole vocabulary without ever holding (positions x V) for a whole batch.

XLM-R's V is 250,002: the logits of one 32 x 128 batch are 3.8 GiB for each model, and the textbook
formula keeps several tensors of that size. Here a few positions at a time go through the vocabulary
projection, and since everything above the features is known at once, their gradient is worked out
on the spot:

    for a chunk of positions:        logits = features W^T, of each model
        for some rows of it:         sum += score(logits + b),  slope = d sum / d logits
        d features = slope W,  d W += slope^T features,  d b += slope summed

What outlives a chunk is three gradients, each as large as what it belongs to. This is how fused
linear losses on GPUs work (Liger-Kernel's chunked losses); here it is plain PyTorch, the same on
every device. The rows scored together are few enough to stay in a processor's cache, and the slope
overwrites the logits: fresh memory costs more than the arithmetic on it.
"""

import torch
from torch.autograd.function import once_differentiable

from distill.method import exact, no_autocast, slices
from minitransformer.errors import UserError

CHUNK = 2**25  # logits of one model in a chunk; with fewer, W is read from memory more often
# So much at once on a CPU, so that it stays in the cache; elsewhere the whole chunk.
ROWS = {"cpu": 2**20}  # logits that are scored together
WORDS = {"cpu": 2**13}  # rows of W in one product


def chunked_loss(features, weight, bias, score, *fixed):
    """Sum of score over (M, V) logits, with the gradient ready before backward asks for it.

    Shapes   features (M, D), weight (V, D), bias (V,); returns () float32.
    fixed    the same three of further models, which get no gradient.
    score(rows, logits, ...) gets `rows`, a slice of the M positions, and float32 logits (C, V) of
    each model there; it returns their summed loss and its gradient for the first model's.
    """
    return _ChunkedLoss.apply(features, weight, bias, fixed, score)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, fixed, score):
        d_features, d_weight, d_bias = (
            exact(torch.zeros_like(x)) if needed else None
            for x, needed in zip((features, weight, bias), ctx.needs_input_grad, strict=False)
        )
        product, (M, V) = product_dtype(features), (len(features), len(weight))
        size = max(1, min(M, CHUNK // V))
        device = features.device.type
        rows_at_once, words_at_once = max(1, ROWS.get(device, CHUNK) // V), WORDS.get(device, V)
        total = exact(features.new_zeros(()))
        with no_autocast(features):
            heads = [
                (x.to(product), W.to(product), exact(b))
                for x, W, b in ((features, weight, bias), *fixed)
            ]
            buffers = features.new_empty(len(heads), size, V, dtype=product)
            for chunk in slices(0, M, size):
                logits = buffers[:, : chunk.stop - chunk.start]  # (models, C, V)
                for z, (x, W, _) in zip(logits, heads, strict=True):
                    for words in slices(0, V, words_at_once):
                        z[:, words] = x[chunk] @ W[words].T
                for rows in slices(chunk.start, chunk.stop, rows_at_once):
                    here = slice(rows.start - chunk.start, rows.stop - chunk.start)
                    loss, slope = score(
                        rows,
                        *(exact(z[here]) + b for z, (_, _, b) in zip(logits, heads, strict=True)),
                    )
                    total += loss
                    logits[0][here] = slope
                    if d_bias is not None:
                        d_bias += slope.sum(0)
                x, W, _ = heads[0]
                for words in slices(0, V, words_at_once):
                    slope = logits[0][:, words]  # (C, words)
                    if d_features is not None:
                        d_features[chunk] += slope @ W[words]
                    if d_weight is not None:
                        d_weight[words] += slope.T @ x[chunk]
        ctx.save_for_backward(d_features, d_weight, d_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        # train.py backpropagates raw sums: factor 1, and no need for another pass over (V, D).
        one = upstream.device.type == "cpu" and upstream.item() == 1
        return *(g if g is None or one else g * upstream for g in ctx.saved_tensors), None, None


def product_dtype(features):
    """What the matrix products run in: autocast's choice, else the features' own precision."""
    device = features.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype


def softmax(logits):
    """Probabilities (C, V) and logsumexp (C, 1), from one pass of exponentials."""
    p = torch.softmax(logits, -1)
    return p, logits.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()


def features_at(encoder, batch, positions):
    """What the vocabulary is compared with at the chosen positions of masked text, (M, D)."""
    hidden = encoder(batch.masked_ids, batch.mask, keep="last").hidden[-1]  # (B, N, D)
    return encoder.mlm_features(hidden.flatten(0, 1)[positions])


def check_mlm_head(encoder, side, remedy):
    if encoder.mlm_head is None:
        raise UserError(f"the {side} has no MLM head, so it predicts no words: {remedy}")
