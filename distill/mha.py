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

from distill.fast.relations import _RelationLoss
from distill.method import (
    Method,
    check_heads,
    check_tokens,
    choose_heads,
    choose_teacher_layer,
    exact,
    no_autocast,
    qkv_of,
)


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


class MHA(Method):
    """relation_loss summed over Q, K and V of student layer L_s and teacher layer m."""

    def __init__(self, student, teacher, *, teacher_layer=None, relation_heads=None):
        super().__init__()
        self.student_layer = student.num_hidden_layers
        self.teacher_layer = choose_teacher_layer(teacher.num_hidden_layers, teacher_layer)
        self.relation_heads = choose_heads(student.hidden_size, teacher.hidden_size, relation_heads)

    def describe(self):
        return (
            f"Q, K, V relations: student layer {self.student_layer}, teacher layer"
            f" {self.teacher_layer}, {self.relation_heads} relation heads"
        )

    def forward(self, student, teacher, batch):
        with torch.no_grad():
            targets = qkv_of(teacher, batch, self.teacher_layer)
        states = qkv_of(student, batch, self.student_layer)
        parts = [
            relation_loss(x_s, x_t, batch.mask, self.relation_heads)
            for x_s, x_t in zip(states, targets, strict=True)
        ]
        return sum(total for total, _ in parts), parts[0][1]
