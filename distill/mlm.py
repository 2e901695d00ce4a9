"""MLM, masked language modelling: no teacher, the words themselves are the target.

    loss = mean over the positions drawn for prediction of  -log softmax(z)[true token]

BERT's own pre-training task (arXiv 1810.04805, section 3.1, task #1): of the positions drawn, 80 %
show [MASK], 10 % a random token, 10 % the true one (distill/data/batches.py). It is the baseline
that distillation must beat, and the way to give a teacher without an MLM head the one that OD
needs. Differs from BERT: no next-sentence prediction.
"""

import torch
from torch.nn import functional as F

from distill.fast.vocabulary import check_mlm_head, chunked_loss, features_at, softmax
from distill.method import Method, exact, no_autocast
from minitransformer.errors import UserError


def mlm_loss(logits, targets):
    """Masked language modelling, the plain formula: holds the whole (M, V) tensor.

    Equation   loss = mean over positions of -log softmax(z)[target]
    Shapes
        logits           (M, V)                 M positions, chosen before the vocabulary projection
        targets          (M,) int64             the token that was there before masking
        returns          (sum, count), both ()  float32; loss = sum / count over the whole step
    Units      nats per position; exp(sum / count) is the perplexity.
    Gradient   to logits.
    Errors     UserError: not one target for each position.
    Invariant  log V when all logits are equal; a constant added to them is irrelevant.
    Source     BERT, see above; differs: sum and count instead of a mean.
    """
    check_targets(logits, targets)
    with no_autocast(logits):
        total = F.cross_entropy(exact(logits), targets, reduction="sum")
    return total, total.new_tensor(len(targets))


def mlm_loss_fused(features, weight, bias, targets):
    """mlm_loss of features (M, D) @ weight (V, D).T + bias (V,), a few positions at a time."""
    check_targets(features, targets)

    def score(rows, logits):
        """lse(z) - z[target], summed;   its gradient: softmax(z) - onehot(target)."""
        here = targets[rows, None]  # (C, 1)
        p, lse = softmax(logits)
        total = (lse - logits.gather(1, here)).sum()
        return total, p.scatter_add_(1, here, -torch.ones_like(lse))

    total = chunked_loss(features, weight, bias, score)
    return total, total.new_tensor(len(targets))


def check_targets(rows, targets):
    if targets.shape != rows.shape[:1]:
        raise UserError(f"{tuple(targets.shape)} targets for {len(rows)} positions: one for each")


class MLM(Method):
    """mlm_loss at the positions drawn for prediction."""

    masked_text = True
    needs_teacher = False

    def __init__(self, student, teacher=None):
        super().__init__()

    def describe(self):
        return "masked language modelling, no teacher"

    def check_models(self, student, teacher=None):
        check_mlm_head(student, "student", "build it with mlm_head=True")

    def forward(self, student, teacher, batch):
        self.check_models(student)
        return mlm_loss_fused(
            features_at(student, batch, batch.positions),
            student.embeddings.word.weight,
            student.mlm_head.bias,
            batch.ids.flatten()[batch.positions],
        )
