"""MHA transfer (MiniLMv2): match which tokens resemble which, in the space of queries, of keys and
of values.

    R_a  = softmax(X_a X_a^T / sqrt(d))               X in {Q, K, V}, a: one of R relation heads
    loss = sum over Q, K, V of  mean over sequences of
           sum over a, n of KL(R_t[a, n] || R_s[a, n]) / (R * real tokens of that sequence)

Instead of the vectors themselves the student learns their relations: an (N, N) table for each
relation head, which has the same size whatever the widths. So it needs neither a learned map nor
equal attention heads, and it is free to rotate its space. The concatenated heads are re-split into
R relation heads; more heads give a finer description. One student layer (its last) learns from one
teacher layer, at best one a little below the top.

    student layer L_s   ->  Q_s | K_s | V_s      and no further: the rest of that block never learns
    teacher layer m     ->  Q_t | K_t | V_t      default m = L_t - 1

Source: MiniLMv2 (arXiv 2012.15828); the choice of m as compared by Udagawa et al. (2310.08797).
"""

import math

import torch
from torch.autograd.function import once_differentiable

from distill.method import (
    Method,
    check_heads,
    check_tokens,
    choose_heads,
    choose_teacher_layer,
    exact,
    no_autocast,
    qkv_of,
    slices,
)

BLOCK = {"cpu": 2**21}  # numbers in one table of relations, so that it stays in the cache
GPU_BLOCK = 2**26
SAFE = 90.0  # bits: 2^90 and its inverse, and sums of N of them, are well inside float32


def relation_loss_plain(student, teacher, mask, relation_heads):
    """The formula as it is read; `relation_loss` is the same, without any (B, R, N, N) tensor."""
    check_tokens(student, teacher, mask)
    check_heads(relation_heads, student.shape[-1], teacher.shape[-1])

    def log_relations(states):
        B, N, D = states.shape
        heads = exact(states).view(B, N, relation_heads, -1).transpose(1, 2)  # (B, R, N, d)
        scores = heads @ heads.mT / math.sqrt(D // relation_heads)  # (B, R, N, N)
        return scores.masked_fill(~mask[:, None, None, :], -1e30).log_softmax(-1)

    with no_autocast(student):
        log_s, log_t = log_relations(student), log_relations(teacher.detach())
        rows = (log_t.exp() * (log_t - log_s)).sum(-1).sum(1)  # (B, N)
        tokens = mask.sum(1)
        total = (torch.where(mask, rows, 0).sum(1) / (relation_heads * tokens.clamp(min=1))).sum()
    return total, (tokens > 0).sum().to(total.dtype)


def relation_loss(student, teacher, mask, relation_heads):
    """MHA transfer (MiniLMv2) for one of Q, K, V: match which tokens resemble which.

    Equation   [MiniLMv2, multi-head self-attention relations]
        R_a  = softmax(X_a X_a^T / sqrt(d))          a: one relation head of Q, of K or of V
        loss = mean over sequences of
               sum over a, n of KL(R_t[a, n] || R_s[a, n]) / (R * real tokens of that sequence)
    Shapes
        student          (B, N, D_s)            before the split into attention heads
        teacher          (B, N, D_t)            D_s != D_t is fine: both relations are (B, R, N, N)
        mask             (B, N) bool            True = real token; padded rows and columns left out
        relation_heads   int R                  divides D_s and D_t
        returns          (sum, count), both ()  float32; loss = sum / count over the whole step
    Units      nats per real token per relation head, over `count` sequences with a real token.
    Gradient   to student only; the teacher is detached here, not by the caller.
    Errors     UserError: R does not divide a width; (B, N) differ. Each names both numbers.
    Invariant  student == teacher gives 0; pad content is irrelevant, so are rotations of a head.
    Source     MiniLMv2, see above; its training code was never published. Chosen here: padding left
               out, every sequence weighs the same, Q, K and V are added with weight 1.
    """
    check_tokens(student, teacher, mask)
    check_heads(relation_heads, student.shape[-1], teacher.shape[-1])
    total = _RelationLoss.apply(student, teacher.detach(), mask, relation_heads)
    return total, mask.any(1).sum().to(total.dtype)


class _RelationLoss(torch.autograd.Function):
    """Value and gradient of relation_loss together, some heads at a time, tables in the cache."""

    @staticmethod
    def forward(ctx, student, teacher, mask, R):
        (B, N, _), gradient = student.shape, torch.empty_like(student)
        S, T, slopes = (  # (B, R, d, N), three views
            x.unflatten(-1, (R, -1)).permute(0, 2, 3, 1) for x in (student, teacher, gradient))
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
        gradient, = ctx.saved_tensors
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
        (X.mT @ X * math.log(2)).masked_fill(real == 0, -1e30).log_softmax(-1) for X in (S, T))
    P_t = log_t.exp()
    rows = (P_t * (log_t - log_s)).sum(-1)[:, None] / math.log(2)
    difference = log_s.exp() - P_t
    return rows, S @ (difference + difference.mT)


class MHA(Method):
    """relation_loss summed over Q, K and V of student layer L_s and teacher layer m."""

    def __init__(self, student, teacher, *, teacher_layer=None, relation_heads=None):
        super().__init__()
        self.student_layer = student.num_hidden_layers
        self.teacher_layer = choose_teacher_layer(teacher.num_hidden_layers, teacher_layer)
        self.relation_heads = choose_heads(student.hidden_size, teacher.hidden_size, relation_heads)

    def describe(self):
        return (f"Q, K, V relations: student layer {self.student_layer}, teacher layer"
                f" {self.teacher_layer}, {self.relation_heads} relation heads")

    def forward(self, student, teacher, batch):
        with torch.no_grad():
            targets = qkv_of(teacher, batch, self.teacher_layer)
        states = qkv_of(student, batch, self.student_layer)
        parts = [relation_loss(x_s, x_t, batch.mask, self.relation_heads)
                 for x_s, x_t in zip(states, targets, strict=True)]
        return sum(total for total, _ in parts), parts[0][1]
