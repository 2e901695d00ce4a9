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
    last_qkv,
    no_autocast,
)

BLOCK = {"cpu": 2**20}  # numbers in one table of relations, so that it stays in the cache
GPU_BLOCK = 2**26
SAFE = 90.0  # bits: 2^90 and its inverse, and sums of N of them, are well inside float32's range


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
    """Value and gradient of relation_loss together, some heads at a time, tables in the cache.

    S, T: the states of one head, (d, N) each, scaled so that the scores S^T S are in bits.
    E = 2^scores is symmetric; with its row sums z the relations are P = E / z, row by row:

        row loss    log2 z_s - log2 z_t + <T, P_t T> - <S, P_t S>        <,>: token by token, bits
        gradient    (P_s + P_s^T - P_t - P_t^T) S                        P^T S = E (S / z)

    so each side costs two matrix products and one pass of exp2 (twice as fast as exp on CPUs).
    States stand as (d, N) because a wide product is three times as fast as a tall one. Padding:
    zero columns in S, T and in the row of ones drop out of every sum.
    """

    @staticmethod
    def forward(ctx, student, teacher, mask, R):
        B, N, D = student.shape
        with no_autocast(student):
            (S, unit), (T, _) = heads_in_bits(student, mask, R), heads_in_bits(teacher, mask, R)
            real = mask.to(S.dtype)[:, None].expand(B, R, N).reshape(B * R, 1, N)
            rows, gradient = torch.empty_like(real), torch.empty_like(S)
            size = max(1, BLOCK.get(S.device.type, GPU_BLOCK) // N**2)
            table = S.new_empty(min(size, B * R), N, N)
            peaks = torch.maximum(*(x.square().sum(1).amax(-1) for x in (S, T))).tolist()
            for start in range(0, B * R, size):
                part = slice(start, start + size)
                block = fast_block if max(peaks[part]) < SAFE else safe_block
                rows[part], gradient[part] = block(S[part], T[part], real[part], table)
            weight = math.log(2) / (R * mask.sum(1).clamp(min=1).to(S.dtype))  # (B,), bits to nats
            total = (rows * real).view(B, -1).sum(1) @ weight
            gradient = gradient.view(B, D, N) * (mask * weight[:, None] * unit)[:, None]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        gradient, = ctx.saved_tensors
        return gradient.mT * upstream, None, None, None


def heads_in_bits(states, mask, R):
    """(B, N, D) -> (B R, d, N), zero at padding, times the unit that makes S^T S scores in bits."""
    B, N, D = states.shape
    unit = math.sqrt(math.log2(math.e) / math.sqrt(D // R))
    states = exact(states)
    scale = mask[:, None].to(states.dtype) * unit  # (B, 1, N)
    heads = torch.mul(states.mT, scale, out=states.new_empty(B, D, N))  # (B, D, N)
    return heads.view(B * R, D // R, N), unit


def fast_block(S, T, real, table):
    """k heads: S (k, d, N), T (k, d_t, N), real (k, 1, N) -> row losses (k, 1, N), d/dS as S."""
    E, z_t = exponentials(T, real, table)
    PS_t, PT_t, down_t = torch.bmm(torch.cat((S, T, S / z_t), 1), E).split(
        (S.shape[1], T.shape[1], S.shape[1]), 1)
    PS_t, PT_t = PS_t / z_t, PT_t / z_t
    E, z_s = exponentials(S, real, table)
    PS_s, down_s = torch.bmm(torch.cat((S, S / z_s), 1), E).chunk(2, 1)
    rows = (z_s / z_t).log2() + (T * PT_t).sum(1, keepdim=True) - (S * PS_t).sum(1, keepdim=True)
    return rows, (PS_s / z_s - PS_t) + (down_s - down_t)


def exponentials(X, real, table):
    """E = 2^(X^T X), in `table`, and its row sums: 2^0 or more, each token's own score."""
    E = torch.bmm(X.mT, X, out=table[:len(X)]).exp2_()  # (k, N, N)
    return E, torch.bmm(real, E).clamp_(min=1)


def safe_block(S, T, real, table):
    """The same where 2^scores could leave float32's range: whole relations, by log_softmax."""
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
            targets = last_qkv(teacher(batch.ids, batch.mask, stop=(self.teacher_layer, "qkv")))
        states = last_qkv(student(batch.ids, batch.mask, stop=(self.student_layer, "qkv")))
        parts = [relation_loss(x_s, x_t, batch.mask, self.relation_heads)
                 for x_s, x_t in zip(states, targets, strict=True)]
        return sum(total for total, _ in parts), parts[0][1]
