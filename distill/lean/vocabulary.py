"""od_loss and mlm_loss without the logits of all positions: a few positions at a time.

XLM-R's V is 250,002: the logits of one 32 x 128 batch are 3.8 GiB for each model, and the plain
formula keeps several tensors of that size. But logits = features W^T + b, so the gradient can be
computed together with the loss, chunk by chunk:

    for a chunk of positions:        logits = features W^T, of each model
        for some rows of it:         sum += loss(logits + b),  slope = d sum / d logits
        d features = slope W,  d W += slope^T features,  d b += slope summed over positions

Only three gradients outlive a chunk. The slope overwrites the logits, because fresh memory costs
more than the arithmetic on it. Liger-Kernel's fused linear losses work like this on GPUs.
"""

import torch
from torch.autograd.function import once_differentiable

from distill.lean import slices
from distill.method import hidden_at, in_float32, no_autocast

CHUNK = 2**25  # logits of one model in a chunk; with fewer, W is read from memory more often
# Tile sizes for a CPU, chosen to fit its cache; other devices take the whole chunk.
ROWS = {"cpu": 2**20}  # logits whose loss is computed together
WORDS = {"cpu": 2**13}  # rows of W in one product


def factors_at(encoder, batch, positions):
    """Return (features (M, D), W (V, D), b (V,)): the logits at these positions, not multiplied."""
    features = encoder.mlm_features(hidden_at(encoder, batch, positions))
    return features, encoder.embeddings.word.weight, encoder.mlm_head.bias


def lean_od_loss(student, teacher, temperature=1.0):
    """Return what od_loss(student logits, teacher logits, temperature) does, from their factors.

    student, teacher: (features (M, D), W (V, D), b (V,)) each. Under autocast the products run in
    its precision; the distributions are float32 as in od_loss.
    """

    def loss_and_slope(rows, z_s, z_t):
        """KL(t || s) = sum p_t (z_t - z_s) - lse_t + lse_s;  its slope for z_s: p_s - p_t."""
        p_t, lse_t = softmax(z_t)
        p_s, lse_s = softmax(z_s)
        means = torch.bmm(p_t[:, None], z_t.sub_(z_s)[..., None])  # (rows, 1, 1): row by row
        return means.sum() + (lse_s - lse_t).sum(), p_s.sub_(p_t)

    (x_s, W_s, b_s), (x_t, W_t, b_t) = student, teacher
    teacher = (x_t.detach() / temperature, W_t, b_t / temperature)
    total = _ChunkedLoss.apply(x_s / temperature, W_s, b_s / temperature, [teacher], loss_and_slope)
    return total * temperature**2, total.new_full((), len(x_s))


def lean_mlm_loss(student, targets):
    """Return what mlm_loss(student logits, targets) does, from the factors of the logits."""

    def loss_and_slope(rows, logits):
        """lse(z) - z[target], summed;  its slope: softmax(z) - onehot(target)."""
        target = targets[rows, None]  # (rows, 1)
        p, lse = softmax(logits)
        total = (lse - logits.gather(1, target)).sum()
        return total, p.scatter_add_(1, target, -torch.ones_like(lse))

    total = _ChunkedLoss.apply(*student, [], loss_and_slope)
    return total, total.new_full((), len(targets))


class _ChunkedLoss(torch.autograd.Function):
    """Sum of a loss over (M, V) logits, with the gradient ready before backward asks for it.

    features (M, D), weight (V, D), bias (V,) are the student's factors; `fixed` lists the factors
    of further models, which get no gradient. loss_and_slope(rows, logits of each model) gets a
    slice of the M positions and their float32 logits (rows, V); it returns the summed loss and its
    gradient for the student's logits.
    """

    @staticmethod
    def forward(ctx, features, weight, bias, fixed, loss_and_slope):
        (M, V), device = (len(features), len(weight)), features.device.type
        chunk_size = max(1, min(M, CHUNK // V))
        row_size, word_size = max(1, ROWS.get(device, CHUNK) // V), WORDS.get(device, V)
        product = (features[:0] @ weight[:1].T).dtype  # autocast's, where it is on
        gradients = [in_float32(torch.zeros_like(x)) for x in (features, weight, bias)]
        d_features, d_weight, d_bias = gradients
        total = in_float32(features.new_zeros(()))
        with no_autocast(features):
            models = [(features, weight, bias), *fixed]
            biases = [in_float32(b) for _, _, b in models]
            models = [(x.to(product), W.to(product)) for x, W, _ in models]
            buffers = features.new_empty(len(models), chunk_size, V, dtype=product)
            student_x, student_W = models[0]
            for chunk in slices(0, M, chunk_size):
                logits = buffers[:, : chunk.stop - chunk.start]  # (models, chunk, V), without b
                for z, (x, W) in zip(logits, models, strict=True):
                    for words in slices(0, V, word_size):
                        z[:, words] = x[chunk] @ W[words].T
                for rows in slices(chunk.start, chunk.stop, row_size):
                    here = slice(rows.start - chunk.start, rows.stop - chunk.start)
                    scores = [in_float32(z[here]) + b for z, b in zip(logits, biases, strict=True)]
                    loss, slope = loss_and_slope(rows, *scores)
                    total += loss
                    logits[0][here] = slope
                    d_bias += slope.sum(0)
                for words in slices(0, V, word_size):
                    slope = logits[0][:, words]  # (chunk, words)
                    d_features[chunk] += slope @ student_W[words]
                    d_weight[words] += slope.T @ student_x[chunk]
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        gradients = ctx.saved_tensors
        # train.py backpropagates raw sums, that is with factor 1: save a pass over (V, D) then. A
        # GPU is not asked for the factor, since it would have to finish all its work to answer.
        if upstream.device.type != "cpu" or upstream.item() != 1:
            gradients = [g * upstream for g in gradients]
        return *gradients, None, None


def softmax(logits):
    """Return probabilities (rows, V) and logsumexp (rows, 1), from one pass of exponentials."""
    p = torch.softmax(logits, -1)
    # The largest logit has the probability exp(largest - logsumexp).
    return p, logits.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()
