"""DirectMiniLM: transfer MiniLMv2's queries, keys and values directly, without relations.

    loss = sum over Q, K, V of
           mean over relation heads a, real tokens and dimensions of (X_s,a W_a - X_t,a)^2

MHA transfer (mha.py) works well. Is that because of *what* it transfers (queries, keys and values
of an upper-middle teacher layer) or because of *how* (as relations between tokens)? This method
keeps the what and drops the how: each relation head of the student is mapped linearly to the
teacher's and compared by squared error.

Source: the ablation named DirectMiniLM of Udagawa et al. (arXiv 2310.08797). No public code is
known. Chosen here: one W for each relation head and each of Q, K and V; no bias; equal weight for
Q, K and V.

Worked example: one token, two relation heads of width 1.

    student X = (1, 2), weights W = (3), (-1)      X W = (3, -2)
    teacher X = (1, 1)                             differences (2, -3)
    loss = (4 + 9) / (2 heads * 1 dimension) = 6.5, and one token is counted

    >>> student, teacher = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 1.0]]])
    >>> weight = torch.tensor([[[3.0]], [[-1.0]]])                      # (R, D_s/R, D_t/R)
    >>> direct_loss(student, teacher, torch.tensor([[True]]), weight)
    (tensor(6.5000), tensor(1.))
"""

import torch
from torch import nn

from distill.method import QKVMethod, check_tokens, in_float32, initial_maps, no_autocast
from minitransformer.files import UserError


def direct_loss(student, teacher, mask, weight):
    """DirectMiniLM for one of Q, K, V: squared distance of linearly mapped relation heads.

    Equation   at the top of this file; here for one X
    Shapes
        student          (B, N, D_s)            before the split into attention heads
        teacher          (B, N, D_t)
        mask             (B, N) bool            True = real token; the others are left out
        weight           (R, D_s/R, D_t/R)      one W per relation head
        returns          (sum, count), both ()  float32; loss = sum / count over the whole step
    Units      squared units of Q, K or V per dimension, summed over `count` real tokens.
    Gradient   to student and weight; the teacher is detached here.
    Errors     UserError: weight or mask do not fit. The message gives expected and actual shapes.
    Invariant  0 when X_s,a W_a = X_t,a; pad content is irrelevant; W can undo a rotation.
    Source     Udagawa et al.; what they leave open is at the top of this file.
    """
    check_tokens(student, teacher, mask)
    (B, N, D_s), D_t, R = student.shape, teacher.shape[-1], weight.shape[0]
    needed = (R, D_s / R, D_t / R)  # whole numbers if R divides both widths
    if tuple(weight.shape) != needed:
        raise UserError(f"the weight is {tuple(weight.shape)}, the widths need {needed}")
    with no_autocast(student):  # tiny products: a cast would cost more than it saves
        heads = in_float32(student).view(B, N, R, D_s // R)
        mapped = torch.einsum("bnrd,rde->bnre", heads, in_float32(weight)).reshape(B, N, D_t)
        difference = mapped - in_float32(teacher.detach())  # (B, N, D_t)
        distance = difference.square().mean(-1)  # (B, N)
        total = torch.where(mask, distance, 0).sum()
    return total, mask.sum().to(total.dtype)


class DirectMiniLM(QKVMethod):
    """direct_loss summed over Q, K and V of student layer L_s and teacher layer m."""

    what = "Q, K, V directly"

    def __init__(self, student, teacher, teacher_layer=None, relation_heads=None):
        super().__init__(student, teacher, teacher_layer, relation_heads)
        R = self.relation_heads
        maps = initial_maps(3 * R, *self.head_widths)
        # (R, D_s/R, D_t/R) each
        self.query, self.key, self.value = (nn.Parameter(W.clone()) for W in maps.split(R))

    def compare(self, name, student, teacher, batch):
        return direct_loss(student, teacher, batch.mask, weight=getattr(self, name))
