"""OD, output distribution transfer: make the student predict masked words as the teacher does.

    loss = mean over chosen positions of  tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau))

Hinton's knowledge distillation (arXiv 1503.02531) on the masked-language-model head: the teacher's
whole distribution over the vocabulary says more than the one right word does. It touches the last
layer only, so the student is free in how it gets there; in the study it lags behind transfer from
inside the network. tau > 1 flattens both distributions so that unlikely words count for more, and
tau^2 keeps the gradient's size.

Source: DistilBERT (1910.01108) as compared by Udagawa et al. (2310.08797). Differs: DistilBERT adds
MLM and cosine losses, takes tau = 2 and by default all real positions; here the loss stands alone,
tau is 1 and the positions are those drawn for prediction, unless set otherwise.
"""

import torch
from torch.nn import functional as F

from distill.fast.vocabulary import check_mlm_head, chunked_loss, features_at, softmax
from distill.method import Method, exact, no_autocast
from minitransformer.errors import UserError


def od_loss(student_logits, teacher_logits, temperature=1.0):
    """Output distribution transfer, the plain formula: holds whole (M, V) tensors.

    Equation   loss = mean over positions of tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau))
    Shapes
        student_logits   (M, V)                 M positions, chosen before the vocabulary projection
        teacher_logits   (M, V)
        temperature      float tau > 0
        returns          (sum, count), both ()  float32; loss = sum / count over the whole step
    Units      nats per position, times tau^2; summed over `count` = M positions.
    Gradient   to student_logits; the teacher is detached here.
    Errors     UserError: shapes that differ, a temperature that is not positive.
    Invariant  0 when both distributions agree; free of a constant added to a position's logits.
    Source     Hinton et al., DistilBERT, see above; differs: sum and count instead of a mean.
    """
    check_same(student_logits, teacher_logits, temperature)
    with no_autocast(student_logits):
        student = F.log_softmax(exact(student_logits) / temperature, dim=-1)
        teacher = F.log_softmax(exact(teacher_logits.detach()) / temperature, dim=-1)
        total = F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2
    return total, total.new_tensor(len(student_logits))


def od_loss_fused(
    student_features,
    student_weight,
    student_bias,
    teacher_features,
    teacher_weight,
    teacher_bias,
    temperature=1.0,
):
    """od_loss of features @ weight.T + bias of both models, a few positions at a time.

    Features (M, D_s) and (M, D_t), weights (V, D_s) and (V, D_t), biases (V,). Under autocast the
    products run in its precision, the distributions are float32 as in od_loss. Gradient to the
    student's three.
    """
    check_same(student_features, teacher_features, temperature, "positions", 1)
    check_same(student_weight, teacher_weight, temperature, "vocabularies", 1)

    def score(rows, z_s, z_t):
        """KL(t || s) = sum p_t (z_t - z_s) - lse_t + lse_s;   its gradient for z_s: p_s - p_t."""
        p_t, lse_t = softmax(z_t)
        p_s, lse_s = softmax(z_s)
        means = torch.bmm(p_t[:, None], z_t.sub_(z_s)[..., None])  # (C, 1, 1), row by row
        return means.sum() + (lse_s - lse_t).sum(), p_s.sub_(p_t)

    teacher = teacher_features.detach() / temperature, teacher_weight, teacher_bias / temperature
    total = chunked_loss(
        student_features / temperature, student_weight, student_bias / temperature, score, teacher
    )
    return total * temperature**2, total.new_tensor(len(student_features))


def check_same(student, teacher, temperature, what="(positions, vocabulary)", dims=2):
    shapes = tuple(student.shape[:dims]), tuple(teacher.shape[:dims])
    if shapes[0] != shapes[1]:
        raise UserError(f"{what} of student and teacher differ: {shapes[0]} and {shapes[1]}")
    if not temperature > 0:
        raise UserError(f"the temperature is {temperature}; it must be above 0")


class OD(Method):
    """od_loss at the positions drawn for prediction, or at all real ones, of masked text."""

    masked_text = True

    def __init__(self, student, teacher, *, temperature=1.0, positions="masked"):
        super().__init__()
        if positions not in ("masked", "all"):
            raise UserError(f"unknown positions {positions!r}: choose from masked, all")
        if not temperature > 0:
            raise UserError(f"the temperature is {temperature}; it must be above 0")
        if student.vocab_size != teacher.vocab_size:
            raise UserError(
                f"OD compares predictions word by word, but the student knows"
                f" {student.vocab_size} tokens and the teacher {teacher.vocab_size}"
            )
        self.temperature, self.positions = temperature, positions

    def describe(self):
        return f"output distribution: {self.positions} positions, temperature {self.temperature:g}"

    def check_models(self, student, teacher):
        check_mlm_head(
            teacher, "teacher", "train one with `python train.py --method mlm --init TEACHER`"
        )
        check_mlm_head(student, "student", "build it with mlm_head=True")

    def forward(self, student, teacher, batch):
        self.check_models(student, teacher)
        rows = batch.positions if self.positions == "masked" else batch.real
        with torch.no_grad():
            target = features_at(teacher, batch, rows)  # (M, D_t)
        return od_loss_fused(
            features_at(student, batch, rows),
            student.embeddings.word.weight,
            student.mlm_head.bias,
            target,
            teacher.embeddings.word.weight,
            teacher.mlm_head.bias,
            self.temperature,
        )
