"""MHA transfer (MiniLMv2): learn from the teacher which tokens resemble which, in Q, K and V.

    R_a  = softmax(X_a X_a^T / sqrt(d))               X in {Q, K, V}, a: one of R relation heads
    loss = sum over Q, K, V of  mean over sequences of
           sum over a, n of KL(R_t[a, n] || R_s[a, n]) / (R * real tokens of that sequence)

Why relations: a relation head is an (N, N) table, which has the same size whatever the widths of
the models. So the student needs neither a learned projection nor the teacher's number of attention
heads, and rotating all vectors of a head changes nothing. The concatenated attention heads are
split anew into R relation heads; more heads describe the teacher in more detail. Only Q, K and V of
the student's last layer are compared, with those of one teacher layer m, best a little below the
top. The rest of that student layer gets no gradient.

Source: MiniLMv2 (arXiv 2012.15828; its training code was never published); the choice of m as
compared by Udagawa et al. (2310.08797). Chosen here: padding left out, every sequence weighs the
same, Q, K and V are added with weight 1.

Worked example: one sequence of two tokens, one relation head of width d = 4, c = sqrt(2 ln 3).

    student X = 0, 0             X X^T / sqrt(d) = (0, 0), (0, 0)     R_s = (1/2, 1/2), (1/2, 1/2)
    teacher X = 0, (c, 0, 0, 0)  X X^T / sqrt(d) = (0, 0), (0, ln 3)  R_t = (1/2, 1/2), (1/4, 3/4)
    KL of row 1 = 0
    KL of row 2 = 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2) = -0.1733 + 0.3041 = 0.1308
    loss = (0 + 0.1308) / (1 head * 2 tokens) = 0.0654, and one sequence is counted

    >>> student = torch.zeros(1, 2, 4)                                  # (B, N, D)
    >>> teacher = student.clone()
    >>> teacher[0, 1, 0] = math.sqrt(2 * math.log(3))
    >>> mask = torch.tensor([[True, True]])
    >>> relation_loss(student, teacher, mask, relation_heads=1)
    (tensor(0.0654), tensor(1.))
"""

import math

import torch

from distill.lean.relations import lean_relation_loss
from distill.method import QKVMethod, check_tokens, choose_heads, in_float32, no_autocast


def relation_loss(student, teacher, mask, relation_heads):
    """MHA transfer for one of Q, K, V: match which tokens resemble which.

    Equation   at the top of this file; here for one X
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
    Source     MiniLMv2; differs as said at the top of this file.
    Fast form  in distill/lean/relations.py, without padding; if you edit this formula, use --plain.
    """
    check_tokens(student, teacher, mask)
    choose_heads(student.shape[-1], teacher.shape[-1], relation_heads)  # R divides both, or error

    def log_relations(states):
        B, N, D = states.shape
        d = D // relation_heads
        heads = in_float32(states).view(B, N, relation_heads, d).transpose(1, 2)  # (B, R, N, d)
        scores = heads @ heads.mT / math.sqrt(d)  # (B, R, N, N)
        # Padded columns get probability 0; -inf would give NaN in a sequence of padding alone.
        return scores.masked_fill(~mask[:, None, None, :], -1e30).log_softmax(-1)

    with no_autocast(student):  # the loss is a difference of logarithms: too fine for bfloat16
        log_s = log_relations(student)
        log_t = log_relations(teacher.detach())
        divergence = (log_t.exp() * (log_t - log_s)).sum(-1)  # KL of each row, (B, R, N)
        divergence = torch.where(mask, divergence.sum(1), 0)  # sum over heads, real rows: (B, N)
        tokens = mask.sum(1)  # (B,)
        total = (divergence.sum(1) / (relation_heads * tokens.clamp(min=1))).sum()
    return total, (tokens > 0).sum().to(total.dtype)


class MHA(QKVMethod):
    """relation_loss summed over Q, K and V of student layer L_s and teacher layer m."""

    what = "Q, K, V relations"

    def compare(self, name, student, teacher, batch):
        if self.plain or not batch.full:
            return relation_loss(student, teacher, batch.mask, self.relation_heads)
        return lean_relation_loss(student, teacher, self.relation_heads)
