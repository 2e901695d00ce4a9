"""HS, hidden state transfer: make the student's hidden states equal the teacher's, layer by layer.

    loss = sum over pairs (i, j) of
           mean over real tokens and dimensions of (H_s[i] W_ij - H_t[j])^2

Hidden states hold everything that a layer passes on: the richest target, and the strictest one.
Which of the student's layers should resemble which of the teacher's, `layer_map`, matters much.

Source: hidden state loss of PKD (arXiv 1908.09355) and TinyBERT (1909.10351); the five layer maps
as compared by Udagawa et al. (2310.08797). Differs: PKD normalises [CLS] states of one task,
TinyBERT shares one W among all layers and averages over padding too. Here every real token counts
the same, each pair has its own W, and where the widths agree there is none.

Worked example: one sequence of two tokens, width 2, no W.

    student H = (1, 2), (0, 1)      teacher H = (3, 2), (0, 5)      differences (-2, 0), (0, -4)
    loss = (4 + 0) / 2 + (0 + 16) / 2 = 10, summed over two tokens: 5 per token

    >>> student = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    >>> teacher = torch.tensor([[[3.0, 2.0], [0.0, 5.0]]])
    >>> hs_loss(student, teacher, mask=torch.tensor([[True, True]]))
    (tensor(10.), tensor(2.))
"""

import torch
from torch import nn

from distill.method import Method, check_tokens, choose_teacher_layer, in_float32, initial_maps
from minitransformer.files import UserError

STRATEGIES = ("single", "uniform", "last", "uniform-consecutive", "uniform+last")


def layer_map(strategy, student_layers, teacher_layers):
    """Return which student layer i learns from which teacher layer j: [(i, j), ...].

    Layer 0 is the embeddings. For 6 student and 12 teacher layers:

        single               (6,12)
        uniform              (1,2) (2,4) (3,6) (4,8) (5,10) (6,12)
        last                 (1,7) (2,8) (3,9) (4,10) (5,11) (6,12)
        uniform-consecutive  (1,0) (1,1) (1,2)  (2,2) (2,3) (2,4)  ...  (6,10) (6,11) (6,12)
        uniform+last         (1,2) (1,7)  (2,4) (2,8)  (3,6) (3,9)  ...  (6,12)

    The closed ranges of uniform-consecutive are the paper's [k(i-1), ki], k = L_t / L_s; where L_s
    does not divide L_t, their ends are the layers that `uniform` picks. In uniform+last the pair
    that both have, (6,12), counts once: our choice, not known from the paper.
    """
    L_s, L_t = student_layers, teacher_layers
    if "last" in strategy and L_s > L_t:
        raise UserError(f"layer map {strategy!r}: {L_s} student layers, but {L_t} of the teacher")
    students = range(1, L_s + 1)
    # u(i) = i L_t / L_s, rounded half up, in whole numbers
    u = [(2 * i * L_t + L_s) // (2 * L_s) for i in range(L_s + 1)]
    uniform = [(i, u[i]) for i in students]
    last = [(i, L_t - L_s + i) for i in students]
    return {
        "single": uniform[-1:],
        "uniform": uniform,
        "last": last,
        "uniform-consecutive": [(i, j) for i in students for j in range(u[i - 1], u[i] + 1)],
        "uniform+last": sorted({*uniform, *last}),
    }[strategy]


def hs_loss(student_hidden, teacher_hidden, mask, projection=None):
    """Hidden state transfer for one pair of layers: squared distance, token by token.

    Equation   at the top of this file; here for one pair
    Shapes
        student_hidden   (B, N, D_s)
        teacher_hidden   (B, N, D_t)
        mask             (B, N) bool            True = real token; the others are left out
        projection       (D_s, D_t) or None     W; None = identity, only where D_s = D_t
        returns          (sum, count), both ()  float32; loss = sum / count over the whole step
    Units      squared hidden units per dimension, summed over `count` real tokens.
    Gradient   to student_hidden and projection; the teacher is detached here.
    Errors     UserError: widths differ without a projection; projection or mask do not fit.
    Invariant  0 when H_s W = H_t; what stands at padded tokens is irrelevant.
    Source     PKD and TinyBERT; differs as said at the top of this file.
    """
    check_tokens(student_hidden, teacher_hidden, mask)
    D_s, D_t = student_hidden.shape[-1], teacher_hidden.shape[-1]
    shape = None if projection is None else tuple(projection.shape)
    if shape != (D_s, D_t) and not (shape is None and D_s == D_t):
        raise UserError(f"the projection is {shape}, the widths need {(D_s, D_t)}")
    # The product may run in autocast's bfloat16, as all products of the step; not the difference.
    mapped = student_hidden if projection is None else student_hidden @ projection  # (B, N, D_t)
    difference = in_float32(mapped) - in_float32(teacher_hidden.detach())
    distance = difference.square().mean(-1)  # (B, N)
    total = torch.where(mask, distance, 0).sum()
    return total, mask.sum().to(total.dtype)


class HS(Method):
    """hs_loss summed over the pairs of a layer map."""

    settings = ("mapping", "teacher_layer")

    def __init__(self, student, teacher, *, mapping="uniform", teacher_layer=None):
        super().__init__()
        self.mapping, last = mapping, teacher.num_hidden_layers
        # as in the paper, the map ends at the teacher's last layer unless a lower one is asked for
        self.teacher_layer = choose_teacher_layer(last, teacher_layer, default=last)
        self.pairs = layer_map(mapping, student.num_hidden_layers, self.teacher_layer)
        self.maps = None  # (pairs, D_s, D_t)
        if student.hidden_size != teacher.hidden_size:
            maps = initial_maps(len(self.pairs), student.hidden_size, teacher.hidden_size)
            self.maps = nn.Parameter(maps)

    def describe(self):
        pairs = " ".join(f"({i},{j})" for i, j in self.pairs)
        learned = "" if self.maps is None else f", each with a learned {tuple(self.maps.shape[1:])}"
        return f"hidden states, map {self.mapping}, (student, teacher) layers: {pairs}{learned}"

    def forward(self, student, teacher, batch):
        inputs = batch.ids, batch.attention_mask
        with torch.no_grad():  # nothing above the teacher's layer is computed
            targets = teacher(*inputs, stop=(self.teacher_layer, "hidden"), keep="hidden").hidden
        states = student(*inputs, keep="hidden").hidden  # 0 to L_s, (B, N, D_s) each
        maps = [None] * len(self.pairs) if self.maps is None else self.maps
        pairs = zip(self.pairs, maps, strict=True)
        parts = [hs_loss(states[i], targets[j], batch.mask, W) for (i, j), W in pairs]
        return sum(total for total, _ in parts), parts[0][1]  # the count is the same for all pairs
