"""OD, output distribution transfer: make the student predict masked words as the teacher does.

    loss = mean over chosen positions of  tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau))

Hinton's knowledge distillation (arXiv 1503.02531) on the masked-language-model head: the teacher's
whole distribution over the vocabulary says more than the one right word does. It constrains the
last layer only, so the student is free in how it gets there; in the paper it lags behind transfer
from inside the network. tau > 1 flattens both distributions, so that unlikely words count for more,
and tau^2 keeps the size of the gradient.

Source: DistilBERT (1910.01108) as compared by Udagawa et al. (2310.08797). Differs: DistilBERT adds
MLM and cosine losses, takes tau = 2 and by default all real positions. Here the loss stands alone,
tau is 1 and the positions are those drawn for prediction, unless set otherwise.

Worked example: one position, a vocabulary of two words, tau = 1.

    student z = (0, 0)       softmax = (1/2, 1/2)
    teacher z = (0, ln 3)    softmax = (1/4, 3/4)
    KL = 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2) = -0.1733 + 0.3041 = 0.1308, one position is counted

    >>> import math
    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3)]])
    >>> od_loss(student, teacher)
    (tensor(0.1308), tensor(1.))
"""

import torch
from torch.nn import functional as F

from distill.lean.vocabulary import factors_at, lean_od_loss
from distill.method import Method, in_float32, logits_at, no_autocast
from minitransformer.files import UserError


def od_loss(student_logits, teacher_logits, temperature=1.0):
    """Output distribution transfer: match the teacher's predictions, position by position.

    Equation   at the top of this file
    Shapes
        student_logits   (M, V)                 M positions, chosen before the vocabulary projection
        teacher_logits   (M, V)
        temperature      float tau > 0
        returns          (sum, count), both ()  float32; loss = sum / count over the whole step
    Units      nats per position, times tau^2; summed over `count` = M positions.
    Gradient   to student_logits; the teacher is detached here.
    Errors     UserError: shapes that differ, a temperature that is not positive.
    Invariant  0 when both distributions agree; free of a constant added to a position's logits.
    Source     Hinton et al., DistilBERT; differs as said at the top of this file.
    Fast form  in distill/lean/vocabulary.py; if you edit this formula, train with --plain.
    """
    if not temperature > 0:  # NaN is refused too
        raise UserError(f"the temperature is {temperature}; it must be above 0")
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        s, t = (tuple(logits.shape) for logits in (student_logits, teacher_logits))
        raise UserError(f"(positions, vocabulary) is {s} in the student and {t} in the teacher")
    with no_autocast(student_logits):
        log_s = F.log_softmax(in_float32(student_logits) / temperature, dim=-1)  # (M, V)
        log_t = F.log_softmax(in_float32(teacher_logits.detach()) / temperature, dim=-1)
        total = (log_t.exp() * (log_t - log_s)).sum() * temperature**2
    return total, total.new_full((), len(student_logits))


class OD(Method):
    """od_loss at the positions drawn for prediction, or at all real ones, of masked text."""

    settings = ("temperature", "positions")
    masked_text = True
    peak_lr = 6e-4

    def __init__(self, student, teacher, *, temperature=1.0, positions="masked"):
        super().__init__()
        if student.vocab_size != teacher.vocab_size:
            sizes = f"{student.vocab_size} in the student, {teacher.vocab_size} in the teacher"
            raise UserError(f"OD compares predictions word by word, but the vocabulary is {sizes}")
        self.teacher_layer = teacher.num_hidden_layers
        self.temperature, self.positions = temperature, positions

    def describe(self):
        return f"output distribution: {self.positions} positions, temperature {self.temperature:g}"

    def forward(self, student, teacher, batch):
        every = slice(None) if batch.full else batch.mask.flatten()
        positions = {"masked": batch.positions, "all": every}[self.positions]
        predictions, loss = (logits_at, od_loss) if self.plain else (factors_at, lean_od_loss)
        with torch.no_grad():
            target = predictions(teacher, batch, positions)
        return loss(predictions(student, batch, positions), target, self.temperature)
