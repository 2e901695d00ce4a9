"""The relation loss of MiniLMv2 without any (B, R, N, N) tensor."""

import math

import torch
from torch.autograd.function import once_differentiable

from distill.method import exact, no_autocast, slices

BLOCK = {"cpu": 2**21}  # numbers in one table of relations, so that it stays in the cache
GPU_BLOCK = 2**26
SAFE = 90.0  # bits: 2^90 and its inverse, and sums of N of them, are well inside float32


class _RelationLoss(torch.autograd.Function):
    """Value and gradient of relation_loss together, some heads at a time, tables in the cache."""

    @staticmethod
    def forward(ctx, student, teacher, mask, R):
        (B, N, _), gradient = student.shape, torch.empty_like(student)
        S, T, slopes = (  # (B, R, d, N), three views
            x.unflatten(-1, (R, -1)).permute(0, 2, 3, 1) for x in (student, teacher, gradient)
        )
        real = exact(mask.to(student.dtype))[:, None, None]  # (B, 1, 1, N)
        weight = real * math.log(2) / (R * real.sum(-1, keepdim=True).clamp(min=1))  # nats; mean
        total = real.new_zeros(())
        with no_autocast(student):
            heads = min(B * R, max(1, BLOCK.get(student.device.type, GPU_BLOCK) // N**2))
            table = real.new_empty(heads, N, N)
            for part in slices(0, B, max(1, heads // R)):
                rows, slope = loss_and_slope(S[part], T[part], real[part], table)
                total += (rows * weight[part]).sum()
                slopes[part] = slope.mul_(weight[part] * unit(S.shape[2]))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None


def loss_and_slope(S, T, real, table):
    """Of b sequences: S (b, R, d_s, N), T (b, R, d_t, N), real (b, 1, 1, N), a buffer (k, N, N) for
    k heads -> row losses in bits (b, R, 1, N) and their gradient for S times unit(d_s).

    With S and T times their unit, the scores S^T S are in bits and E = 2^scores is symmetric. With
    its row sums z the relations are P = E / z, row by row:

        row loss    log2 z_s - log2 z_t + <T, P_t T> - <S, P_t S>        <,>: token by token, bits
        gradient    (P_s + P_s^T - P_t - P_t^T) S                        P^T S = E (S / z)

    so each side costs two matrix products and one pass of exp2 (twice as fast as exp on CPUs).
    States stand as (d, N), since wide products are faster than tall ones. Padding stands as zero
    columns in S, T and in the row of ones, `real`, so it drops out of every sum.
    """
    (b, R, d_s, N), d_t = S.shape, T.shape[2]
    states = real.new_empty(b, R, d_t + 2 * d_s, N)  # T, S and S / z: together in one product
    states[:, :, :d_t].copy_(T).mul_(real * unit(d_t))
    states[:, :, d_t:-d_s].copy_(S).mul_(real * unit(d_s))
    states, real = states.flatten(0, 1), real.expand(b, R, 1, N).flatten(0, 1)  # (b R, ·, N)
    T, S, S_z = states.split((d_t, d_s, d_s), 1)

    read_t, read_s = torch.empty_like(states), torch.empty_like(states[:, d_t:])
    z = real.new_empty(2, *real.shape)  # row sums of both
    z_t, z_s = z
    for k in slices(0, b * R, len(table)):
        for X, sums, read, what in ((T, z_t, read_t, states), (S, z_s, read_s, states[:, d_t:])):
            E = torch.bmm(X[k].mT, X[k], out=table[: k.stop - k.start]).exp2_()  # (k, N, N)
            torch.bmm(real[k], E, out=sums[k]).clamp_(min=1)  # 2^0 or more: a token's own score
            torch.div(S[k], sums[k], out=S_z[k])
            torch.bmm(what[k], E, out=read[k])
    PT_t, PS_t, down_t = read_t.split((d_t, d_s, d_s), 1)
    PS_s, down_s = read_s.split(d_s, 1)
    rows = (T * PT_t).sum(1, keepdim=True) - (S * PS_t).sum(1, keepdim=True)
    rows = (z_s / z_t).log2() + rows / z_t
    slope = (down_s - down_t).addcdiv_(PS_s, z_s).addcdiv_(PS_t, z_t, value=-1)

    if not z.amax() < 2**SAFE:
        unsafe = ~(z.amax((0, 2, 3)) < 2**SAFE)  # (b R,)
        for k in unsafe.nonzero()[:, 0].split(len(table)):
            rows[k], slope[k] = safe_loss_and_slope(S[k], T[k], real[k])
    return rows.view(b, R, 1, N), slope.view(b, R, d_s, N)


def unit(d):
    """What the states of a head of width d are multiplied with, so that scores are in bits."""
    return math.sqrt(math.log2(math.e) / math.sqrt(d))


def safe_loss_and_slope(S, T, real):
    """The same where 2^scores leaves float32's range: whole relations (k, N, N), by log_softmax."""
    log_s, log_t = (
        (X.mT @ X * math.log(2)).masked_fill(real == 0, -1e30).log_softmax(-1) for X in (S, T)
    )
    P_t = log_t.exp()
    rows = (P_t * (log_t - log_s)).sum(-1)[:, None] / math.log(2)
    difference = log_s.exp() - P_t
    return rows, S @ (difference + difference.mT)
