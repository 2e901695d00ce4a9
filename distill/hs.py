"""HS, hidden state transfer: make the student's hidden states equal the teacher's, layer by layer.

    loss = sum over pairs (i, j) of
           mean over real tokens and dimensions of (H_s[i] W_ij - H_t[j])^2

Hidden states hold everything that a layer passes on, so they are the richest target and the
strictest one: the student must find the teacher's very coordinates (or, through W, a linear image
of them) although it has fewer layers to get there. Which of its layers should resemble which of the
teacher's, `layer_map`, decides much of the outcome.

Source: hidden state loss of PKD (arXiv 1908.09355) and TinyBERT (1909.10351); the five layer maps
as compared by Udagawa et al. (2310.08797). Differs: PKD normalises [CLS] states of one task,
TinyBERT shares one W among all layers and averages over padding too. Here every real token counts
the same, each pair has its own W, and where the widths agree there is none.
"""

import torch
from torch import nn

from distill.method import Method, check_tokens, exact, initial_map, no_autocast, without_padding
from minitransformer.errors import UserError

STRATEGIES = ("single", "uniform", "last", "uniform-consecutive", "uniform+last")


def layer_map(strategy, student_layers, teacher_layers):
    """Which student layer i reads which teacher layer j: [(i, j), ...]; hidden state 0 is the
    embeddings.

    For 6 student and 12 teacher layers:

        single               (6,12)
        uniform              (1,2) (2,4) (3,6) (4,8) (5,10) (6,12)
        last                 (1,7) (2,8) (3,9) (4,10) (5,11) (6,12)
        uniform-consecutive  (1,0) (1,1) (1,2)  (2,2) (2,3) (2,4)  ...  (6,10) (6,11) (6,12)
        uniform+last         (1,2) (1,7)  (2,4) (2,8)  (3,6) (3,9)  ...  (6,12)

    The closed ranges of uniform-consecutive are the paper's [k(i-1), ki], k = L_t / L_s; where L_s
    does not divide L_t, their ends are the layers that `uniform` picks.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"unknown layer map {strategy!r}: choose from {', '.join(STRATEGIES)}")
    if "last" in strategy and student_layers > teacher_layers:
        raise UserError(
            f"layer map {strategy!r} needs no more student than teacher layers:"
            f" the student has {student_layers}, the teacher {teacher_layers}"
        )

    def u(i):  # i * L_t / L_s rounded half up, in whole numbers
        return (2 * i * teacher_layers + student_layers) // (2 * student_layers)

    students = range(1, student_layers + 1)
    if strategy == "single":
        return [(student_layers, teacher_layers)]
    if strategy == "uniform-consecutive":
        return [(i, j) for i in students for j in range(u(i - 1), u(i) + 1)]
    uniform = [(i, u(i)) for i in students]
    last = [(i, teacher_layers - student_layers + i) for i in students]
    if strategy == "uniform+last":
        return sorted(set(uniform + last))
    return uniform if strategy == "uniform" else last


def hs_loss(student_hidden, teacher_hidden, mask, projection=None):
    """Hidden state transfer for one pair of layers: squared distance, token by token.

    Equation   loss = mean over real tokens and dimensions of (H_s W - H_t)^2
    Shapes
        student_hidden   (B, N, D_s)
        teacher_hidden   (B, N, D_t)
        mask             (B, N) bool            True = real token; the others are left out
        projection       (D_s, D_t) or None     None = identity, only where D_s = D_t
        returns          (sum, count), both ()  float32; loss = sum / count over the whole step
    Units      squared hidden units per dimension, summed over `count` real tokens.
    Gradient   to student_hidden and projection; the teacher is detached here.
    Errors     UserError: widths differ without a projection; projection or mask do not fit.
    Invariant  0 when H_s W = H_t; what stands at padded tokens is irrelevant.
    Source     PKD, TinyBERT, see above; differs: padding left out, mean over the whole step.
    """
    check_tokens(student_hidden, teacher_hidden, mask)
    widths = student_hidden.shape[-1], teacher_hidden.shape[-1]
    if projection is None and widths[0] != widths[1]:
        raise UserError(
            f"student width {widths[0]} and teacher width {widths[1]} differ:"
            f" a ({widths[0]}, {widths[1]}) projection is needed"
        )
    if projection is not None and tuple(projection.shape) != widths:
        raise UserError(f"the projection is {tuple(projection.shape)}, the widths need {widths}")
    # The product may run in autocast's bfloat16, like all of the step; the difference may not.
    mapped = student_hidden if projection is None else student_hidden @ projection  # (B, N, D_t)
    with no_autocast(mapped):
        difference = exact(mapped) - exact(teacher_hidden.detach())
        total = without_padding(difference, mask).square().sum() / widths[1]
    return total, mask.sum().to(total.dtype)


def hidden_to(encoder, batch, layer):
    """Hidden states 0 to `layer`, (B, N, D) each."""
    return encoder(batch.ids, batch.mask, stop=(layer, "hidden"), keep="hidden").hidden


class HS(Method):
    """hs_loss summed over the pairs of a layer map."""

    def __init__(self, student, teacher, *, mapping="uniform"):
        super().__init__()
        self.mapping = mapping
        self.pairs = layer_map(mapping, student.num_hidden_layers, teacher.num_hidden_layers)
        self.student_layer = max(i for i, _ in self.pairs)
        self.teacher_layer = max(j for _, j in self.pairs)
        self.maps = None
        if student.hidden_size != teacher.hidden_size:
            self.maps = nn.Parameter(
                initial_map(len(self.pairs), student.hidden_size, teacher.hidden_size)
            )

    def describe(self):
        pairs = " ".join(f"({i},{j})" for i, j in self.pairs)
        learned = "" if self.maps is None else f", each with a learned {tuple(self.maps.shape[1:])}"
        return f"hidden states, map {self.mapping}: {pairs}{learned}"

    def forward(self, student, teacher, batch):
        with torch.no_grad():
            targets = hidden_to(teacher, batch, self.teacher_layer)
        hidden = hidden_to(student, batch, self.student_layer)
        maps = [None] * len(self.pairs) if self.maps is None else self.maps
        parts = [
            hs_loss(hidden[i], targets[j], batch.mask, w)
            for (i, j), w in zip(self.pairs, maps, strict=True)
        ]
        return sum(total for total, _ in parts), parts[0][1]
