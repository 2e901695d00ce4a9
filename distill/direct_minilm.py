"""DirectMiniLM: transfer the same queries, keys and values as MiniLMv2, but directly, without
relations.

    loss = sum over Q, K, V of
           mean over relation heads a, real tokens and dimensions of (X_s,a W_a - X_t,a)^2

MHA transfer (mha.py) works well; is that because of *what* is transferred (queries, keys and values
of an upper-middle teacher layer) or because of *how* (as relations between tokens)? This method
keeps the what and drops the how: each relation head of the student is mapped linearly onto the
teacher's and compared by squared error. The matrices W also absorb the rotations to which relations
are blind.

Source: the ablation named DirectMiniLM of Udagawa et al. (arXiv 2310.08797). No public code is
known. Chosen here: one W for each relation head and each of Q, K and V; no bias; equal weight for
Q, K and V.
"""

import torch
from torch import nn

from distill.method import (
    Method,
    check_heads,
    check_tokens,
    choose_heads,
    choose_teacher_layer,
    exact,
    initial_map,
    no_autocast,
    qkv_of,
    without_padding,
)
from minitransformer.errors import UserError


def direct_loss(student, teacher, mask, weight):
    """DirectMiniLM for one of Q, K, V: squared distance of linearly mapped relation heads.

    Equation   loss = mean over relation heads, real tokens, dimensions of (X_s,a W_a - X_t,a)^2
    Shapes
        student          (B, N, D_s)            before the split into attention heads
        teacher          (B, N, D_t)
        mask             (B, N) bool            True = real token; the others are left out
        weight           (R, D_s/R, D_t/R)      one W a relation head
        returns          (sum, count), both ()  float32; loss = sum / count over the whole step
    Units      squared units of Q, K or V per dimension, summed over `count` real tokens.
    Gradient   to student and weight; the teacher is detached here.
    Errors     UserError: R does not divide a width; a weight or mask does not fit. Both numbers.
    Invariant  0 when X_s,a W_a = X_t,a; pad content is irrelevant; W can undo a rotation.
    Source     2310.08797, see above; differs: nothing to compare with, no code was published.
    """
    check_tokens(student, teacher, mask)
    (B, N, D_s), D_t = student.shape, teacher.shape[-1]
    R = weight.shape[0]
    check_heads(R, D_s, D_t)
    if tuple(weight.shape) != (R, D_s // R, D_t // R):
        raise UserError(
            f"the weight is {tuple(weight.shape)}, the widths need {(R, D_s // R, D_t // R)}"
        )
    with no_autocast(student):  # tiny products: a cast would cost more than it saves
        heads = exact(student).view(B, N, R, D_s // R)
        mapped = torch.einsum("bnrd,rde->bnre", heads, exact(weight))
        difference = mapped.reshape(B, N, D_t) - exact(teacher.detach())
        total = without_padding(difference, mask).square().sum() / D_t
    return total, mask.sum().to(total.dtype)


class DirectMiniLM(Method):
    """direct_loss summed over Q, K and V of student layer L_s and teacher layer m."""

    def __init__(self, student, teacher, *, teacher_layer=None, relation_heads=None):
        super().__init__()
        self.student_layer = student.num_hidden_layers
        self.teacher_layer = choose_teacher_layer(teacher.num_hidden_layers, teacher_layer)
        D_s, D_t = student.hidden_size, teacher.hidden_size
        R = self.relation_heads = choose_heads(D_s, D_t, relation_heads)
        maps = initial_map(3 * R, D_s // R, D_t // R).view(3, R, D_s // R, D_t // R)
        self.query, self.key, self.value = (nn.Parameter(each.clone()) for each in maps)

    def describe(self):
        return (
            f"Q, K, V directly: student layer {self.student_layer}, teacher layer"
            f" {self.teacher_layer}, {self.relation_heads} relation heads"
        )

    def forward(self, student, teacher, batch):
        with torch.no_grad():
            targets = qkv_of(teacher, batch, self.teacher_layer)
        states = qkv_of(student, batch, self.student_layer)
        weights = self.query, self.key, self.value
        parts = [
            direct_loss(x_s, x_t, batch.mask, weight)
            for x_s, x_t, weight in zip(states, targets, weights, strict=True)
        ]
        return sum(total for total, _ in parts), parts[0][1]
