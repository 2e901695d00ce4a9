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

from distill.method import (
    Method,
    check_heads,
    check_tokens,
    choose_heads,
    choose_teacher_layer,
    exact,
    no_autocast,
)

BLOCK = 2**20  # numbers of one relation block: about what stays in the cache
SAFE = 60.0  # exp(+-60) is far inside float32, and so is a sum of N of them


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
    """Multi-Head Attention transfer (MiniLMv2), for one of Q, K, V: match which tokens resemble
    which.

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
    """Value and gradient of relation_loss together, block by block, while the (N, N) tables are in
    the cache.

    S, T: the states of one head, (N, d) each, divided by d^(1/4), so that the scores are S S^T.
    With E = exp(scores), z = E 1 its row sums and P = E / z the relations:

        row loss    log z_s - log z_t + <T, P_t T> - <S, P_t S>          <,>: row by row
        gradient    (P_s + P_s^T - P_t - P_t^T) S                        P^T S = E^T (S / z)

    so that besides exp no table is ever touched but by a matrix product. Padding: zero rows in S
    and T and in the column of ones drop out of every sum.
    """

    @staticmethod
    def forward(ctx, student, teacher, mask, R):
        B, N, _ = student.shape
        with no_autocast(student):
            real = mask[:, None, :, None].expand(B, R, N, 1).reshape(B * R, N, 1)
            S, T = split(student, real, R), split(teacher, real, R)  # (B R, N, d)
            ones = real.to(S.dtype)
            weight = ones / (R * mask.sum(1).clamp(min=1)).repeat_interleave(R)[:, None, None]
            total, gradient = S.new_zeros((), dtype=torch.float64), torch.empty_like(S)
            size = max(1, BLOCK // N**2)
            table = S.new_empty(min(size, B * R), N, N)
            for start in range(0, B * R, size):
                part = slice(start, start + size)
                value, slope = block(S[part], T[part], ones[part], weight[part], table)
                total += value
                gradient[part] = slope
            gradient *= S.shape[-1] ** -0.25
        ctx.save_for_backward(gradient)
        ctx.like = student.dtype, student.shape
        return total.to(S.dtype)

    @staticmethod
    def backward(ctx, upstream):
        gradient, = ctx.saved_tensors
        dtype, (B, N, D) = ctx.like
        gradient = gradient.view(B, -1, N, gradient.shape[-1]).transpose(1, 2).reshape(B, N, D)
        return (gradient * upstream).to(dtype), None, None, None


def split(states, real, R):
    """(B, N, D) -> (B R, N, d) scaled heads, zero at padding."""
    B, N, D = states.shape
    heads = exact(states).view(B, N, R, D // R).transpose(1, 2).reshape(B * R, N, D // R)
    return torch.where(real, heads, 0).mul_((D // R) ** -0.25)


def block(S, T, ones, weight, table):
    """-> sum of weighted row losses, and its gradient for S (k, N, d), for k heads."""
    table = table[:len(S)]
    E, top = exponentials(T, table)
    z_t, PS_t, PT_t = products(E, (ones, S, T))
    down = torch.bmm(E.mT, S * (weight / z_t))
    lse_t = z_t.log() + top
    E, top = exponentials(S, table)
    z_s, PS_s = products(E, (ones, S))
    gradient = (PS_s - PS_t) * weight - down
    gradient += torch.bmm(E.mT, S * (weight / z_s))
    rows = z_s.log() + top - lse_t + ((T * PT_t).sum(-1) - (S * PS_t).sum(-1))[..., None]
    return (rows * weight).sum(dtype=torch.float64), torch.where(ones > 0, gradient, 0)


def exponentials(X, table):
    """E = exp(X X^T - top) in `table`, and top (0, or the row maxima where exp might overflow)."""
    torch.bmm(X, X.mT, out=table)
    top = 0
    if X.square().sum(-1).amax() > SAFE:
        top = table.amax(-1, keepdim=True)
        table -= top
    return table.exp_(), top


def products(E, columns):
    """One matrix product for all: z = E 1, then P X = E X / z for the others."""
    widths = [x.shape[-1] for x in columns]
    z, *rest = torch.bmm(E, torch.cat(columns, -1)).split(widths, -1)
    z = torch.where(z > 0, z, 1)  # a sequence without a real token
    return z, *(x / z for x in rest)


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
            target = teacher(batch.ids, batch.mask, stop=(self.teacher_layer, "qkv"))
        output = student(batch.ids, batch.mask, stop=(self.student_layer, "qkv"))
        parts = [relation_loss(getattr(output, name)[-1], getattr(target, name)[-1], batch.mask,
                               self.relation_heads) for name in ("queries", "keys", "values")]
        return sum(total for total, _ in parts), parts[0][1]
