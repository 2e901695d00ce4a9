"""relation_loss without any (B, R, N, N) tensor: some heads at a time, value and gradient together.

For sequences without padding. Two forms give the same numbers. On a CPU `by_powers` needs half the
exponentials and passes of `by_log_softmax`, but its powers leave float32's range where scores are
beyond +-90 bits; there, and on every other device, `by_log_softmax` is used. To ask a GPU for the
range would make it wait.
"""

import math

import torch
from torch.autograd.function import once_differentiable

from distill.lean import slices
from distill.method import in_float32, no_autocast

BLOCK = {"cpu": 2**21}  # numbers in one table of relations, so that it stays in the cache
GPU_BLOCK = 2**24
MAY_BE_ASKED = ("cpu",)  # devices where reading a value is free
SAFE = 90.0  # bits: 2^90 and its inverse, and sums of N of them, are well inside float32


def lean_relation_loss(student, teacher, relation_heads):
    """Return what relation_loss does where every token is real."""
    total = _RelationLoss.apply(student, teacher.detach(), relation_heads)
    return total, torch.full_like(total, len(student))


class _RelationLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, R):
        B, N, _ = student.shape
        gradient = torch.empty_like(student)
        S, T, slopes = (  # (B, R, d, N), three views
            x.unflatten(-1, (R, -1)).permute(0, 2, 3, 1) for x in (student, teacher, gradient)
        )
        d_s, d_t = S.shape[2], T.shape[2]
        weight = math.log(2) / (R * N)  # of a row's loss in bits
        total = in_float32(student.new_zeros(()))
        heads = min(B * R, max(1, BLOCK.get(student.device.type, GPU_BLOCK) // N**2))
        table = total.new_empty(heads, N, N)
        with no_autocast(student):
            for part in slices(0, B, max(1, heads // R)):
                b = part.stop - part.start
                states = total.new_empty(b, R, d_t + 2 * d_s, N)  # T, S and scratch space for S / z
                states[:, :, :d_t].copy_(T[part]).mul_(to_bits(d_t))
                states[:, :, d_t:-d_s].copy_(S[part]).mul_(to_bits(d_s))
                rows, slope = loss_and_slope(states.flatten(0, 1), d_t, d_s, table)
                total += weight * rows.sum()
                slopes[part] = slope.mul_(weight * to_bits(d_s)).view(b, R, d_s, N)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None


def to_bits(d):
    """What the states of a head of width d are multiplied by, so that scores S^T S are in bits."""
    return math.sqrt(math.log2(math.e) / math.sqrt(d))


def loss_and_slope(states, d_t, d_s, table):
    """Return the loss of each row in bits, (k, 1, N), and its gradient for S, (k, d_s, N).

    Shapes   states (k, d_t + 2 d_s, N): of k heads T and S, scaled, then scratch space;
             table (heads, N, N), a buffer for that many heads at once.
    """
    T, S, _ = states.split((d_t, d_s, d_s), 1)
    if states.device.type in MAY_BE_ASKED:
        rows, slope, z = by_powers(states, d_t, d_s, table)
        beyond = ~(z.amax((0, 2, 3)) < 2**SAFE)  # (k,); so written, it finds NaN too
        again = beyond.nonzero().flatten().split(len(table))
    else:
        rows, slope = torch.empty_like(S[:, :1]), torch.empty_like(S)
        again = slices(0, len(states), len(table))
    for heads in again:
        rows[heads], slope[heads] = by_log_softmax(S[heads], T[heads])
    return rows, slope


def by_powers(states, d_t, d_s, table):
    """Compute loss_and_slope from 2^scores without subtracting the maximum; also return sums z.

    E = 2^(S^T S) is symmetric. With its row sums z the relations are P = E / z, row by row:

        row loss    log2 z_s - log2 z_t + <T, P_t T> - <S, P_t S>        <,>: token by token, bits
        gradient    (P_s + P_s^T - P_t - P_t^T) S                        P^T S = E (S / z)

    exp2 is twice as fast as exp on CPUs, and wide products, of (d, N), are faster than tall ones.
    """
    T, S, S_z = states.split((d_t, d_s, d_s), 1)
    student = states[:, d_t:]  # S and S / z
    product_t, product_s = torch.empty_like(states), torch.empty_like(student)
    ones = torch.ones_like(S[:, :1])
    z = ones.new_empty(2, *ones.shape)  # row sums of teacher and student
    z_t, z_s = z
    for k in slices(0, len(states), len(table)):
        for X, sums, factor, product in ((T, z_t, states, product_t), (S, z_s, student, product_s)):
            E = torch.bmm(X[k].mT, X[k], out=table[: k.stop - k.start]).exp2_()  # (k, N, N)
            torch.bmm(ones[k], E, out=sums[k])
            torch.div(S[k], sums[k], out=S_z[k])
            torch.bmm(factor[k], E, out=product[k])
    PT_t, PS_t, down_t = product_t.split((d_t, d_s, d_s), 1)  # z P_t T, z P_t S, P_t^T S
    PS_s, down_s = product_s.split(d_s, 1)  # z P_s S, P_s^T S
    rows = (T * PT_t).sum(1, keepdim=True) - (S * PS_t).sum(1, keepdim=True)
    rows = (z_s / z_t).log2() + rows / z_t
    slope = (down_s - down_t).addcdiv_(PS_s, z_s).addcdiv_(PS_t, z_t, value=-1)
    return rows, slope, z


def by_log_softmax(S, T):
    """Compute loss_and_slope of any scores: whole relations (k, N, N), maximum subtracted."""

    def log_relations(X):
        X = X * math.log(2) ** 0.5  # to nats
        return (X.mT @ X).log_softmax(-1)

    log_s, log_t = log_relations(S), log_relations(T)
    P_t = log_t.exp()
    rows = (P_t * (log_t - log_s)).sum(-1)[:, None] / math.log(2)
    difference = log_s.exp() - P_t
    return rows, S @ (difference + difference.mT)
