"""MLM, masked language modelling: no teacher, the words themselves are the target.

    loss = mean over the positions drawn for prediction of  -log softmax(z)[true token]

BERT's own pre-training task (arXiv 1810.04805, section 3.1, task #1): of the positions drawn, 80 %
show [MASK], 10 % a random token, 10 % the true one (distill/data/batches.py). It is the baseline
that distillation must beat, and the way to give a teacher without an MLM head the one that OD
needs. Differs from BERT: no next-sentence prediction.

Worked example: one position, a vocabulary of two words, of which the second is the true one.

    z = (0, ln 3)      softmax = (1/4, 3/4)      loss = -ln 3/4 = 0.2877, one position is counted

    >>> import math, torch
    >>> mlm_loss(torch.tensor([[0.0, math.log(3)]]), targets=torch.tensor([1]))
    (tensor(0.2877), tensor(1.))
"""

from torch.nn import functional as F

from distill.lean.vocabulary import factors_at, lean_mlm_loss
from distill.method import Method, in_float32, logits_at, no_autocast
from minitransformer.files import UserError


def mlm_loss(logits, targets):
    """Masked language modelling: the negative log probability of the true tokens.

    Equation   at the top of this file
    Shapes
        logits           (M, V)                 M positions, chosen before the vocabulary projection
        targets          (M,) int64             the token that was there before masking
        returns          (sum, count), both ()  float32; loss = sum / count over the whole step
    Units      nats per position; exp(sum / count) is the perplexity.
    Gradient   to logits.
    Errors     UserError: not one target for each position.
    Invariant  log V when all logits are equal; a constant added to them is irrelevant.
    Source     BERT; differs: sum and count instead of a mean.
    Fast form  in distill/lean/vocabulary.py; if you edit this formula, train with --plain.
    """
    if targets.shape != logits.shape[:1]:
        raise UserError(f"{tuple(targets.shape)} targets, {len(logits)} positions: give one each")
    with no_autocast(logits):
        log_p = F.log_softmax(in_float32(logits), dim=-1)  # (M, V)
        total = -log_p.gather(1, targets[:, None]).sum()
    return total, total.new_full((), len(targets))


class MLM(Method):
    """mlm_loss at the positions drawn for prediction."""

    masked_text = True
    peak_lr = 6e-4
    needs_teacher = False

    def __init__(self, student, teacher=None):
        super().__init__()

    def describe(self):
        return "masked language modelling, no teacher"

    def forward(self, student, teacher, batch):
        targets = batch.ids.flatten()[batch.positions]  # (M,)
        predictions, loss = (logits_at, mlm_loss) if self.plain else (factors_at, lean_mlm_loss)
        return loss(predictions(student, batch, batch.positions), targets)
