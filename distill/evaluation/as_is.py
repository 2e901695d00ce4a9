"""What can be said of a model as it is, without fine-tuning.

loss         a run's own distillation loss on text that it did not train on

And on the vectors of sentences: the last layer's output, pooled as the model's files say

probe        a linear classifier in closed form on frozen vectors
neighbours   share of sentences whose nearest other one is the one that the teacher finds
cosine       of a sentence's two vectors, where teacher and student are equally wide
retrieval    share of translations whose nearest original is their own
"""

import math
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.batches import Text
from distill.evaluation.columns import Model
from distill.evaluation.finetune import (
    Examples,
    cache_file,
    mean_over_tokens,
    read_result,
    write_result,
)
from distill.evaluation.metrics import METRICS
from distill.evaluation.tasks import Split, Task
from distill.student import method_of
from distill.training.device import autocast
from distill.training.validation import held_out_loss
from minitransformer.files import UserError
from minitransformer.pretrained import read_weight_file

SENTENCES, SENTENCE_TOKENS = 1000, 128  # at most
PROBE_ROWS = 10_000  # of train, at most: GLUE's largest has 393,000
RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def held_out_loss_of(
    model: Model, data: list[str] | None, autocast: AbstractContextManager
) -> float | None:
    """Return the loss of a run's student by its own method, on the text that the run kept from
    training or on that of `data`. None for a model that no run made, or where no word counts.
    """
    settings, device = model.settings, model.encoder.embeddings.word.weight.device
    teacher = model.teacher and model.teacher.encoder
    if not settings or (teacher is None and settings["method"] != "mlm"):
        return None
    method = method_of(settings, model.encoder.config, teacher and teacher.config)
    method.check_models(model.encoder, teacher)
    maps = Path(model.name, "projections.safetensors")
    if maps.exists():  # what the run learned beside the student
        try:
            method.load_state_dict(read_weight_file(maps))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{model.name}: its maps do not fit this teacher: {reason}") from None
    names, length = data or settings["data"], settings["seq_len"]
    text = Text(names, model.tokenizer, length, alpha=settings["alpha"], seed=settings["seed"])
    batches = [batch.to(device) for batch in text.held_out(16, masked=method.masked_text)]
    compute = partial(method.to(device), model.encoder)
    loss = held_out_loss(compute, teacher, batches, autocast)
    return None if math.isnan(loss) else loss


# ---- sentence vectors ----------------------------------------------------------------------------


@torch.inference_mode()
def sentence_vectors(
    model: Model, sentences: list[str], device: torch.device, precision: str = "fp32"
) -> Tensor:
    """Return (M, D) vectors of length 1, as sentence-transformers makes them, in float32."""
    split = Split(sentences, None, [0] * len(sentences))
    examples = Examples(split, model.tokenizer, model.encoder.config, SENTENCE_TOKENS)
    vectors = torch.empty(len(sentences), model.encoder.config.hidden_size)
    for rows in examples.by_length(64):
        ids, mask, types = (tensor.to(device) for tensor in examples.batch(rows))
        with autocast(device, precision):
            hidden = model.encoder(ids, mask, types, keep="last").hidden[-1].float()
        cls = model.tokenizer.pooling == "cls"
        vectors[rows] = (hidden[:, 0] if cls else mean_over_tokens(hidden, mask)).cpu()
    return F.normalize(vectors)


def compare_vectors(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Compare the vectors (M, D_s) and (M, D_t) of the same sentences: see the top of the file."""
    nearest = [(v @ v.T).fill_diagonal_(-2.0).argmax(dim=-1) for v in (student, teacher)]
    facts = {"neighbours kept": float((nearest[0] == nearest[1]).float().mean())}
    if student.shape == teacher.shape:
        facts["cosine"] = float((student * teacher).sum(dim=-1).mean())
    return facts


def retrieval_accuracy(queries: Tensor, candidates: Tensor, texts: list[str]) -> float:
    """Return the share of queries (M, D) whose nearest candidate (M, D) has the text of their own
    row: two rows may have the same original.
    """
    nearest = (queries @ candidates.T).argmax(dim=-1).tolist()
    hits = [texts[found] == text for found, text in zip(nearest, texts, strict=True)]
    return sum(hits) / len(hits)


# ---- probe ---------------------------------------------------------------------------------------


def probe(train: Tensor, targets: Tensor, tests: list[Tensor]) -> list[Tensor]:
    """Fit a linear map by ridge regression; return its outputs (M, C) for each of `tests`.

    train, targets   vectors (M, D) in an order that says nothing about the targets (M, C)

        W = (X^T X + ridge I)^-1 X^T Y,  X and Y centred

    The ridge is the one of RIDGES with which four fifths of train predict the last fifth best, by
    the largest output or, for a single number, by squared error. Nothing here is random.
    """
    fit = len(train) * 4 // 5
    held_out = targets[fit:]

    def error(ridge: float) -> float:
        [outputs] = ridge_outputs(train[:fit], targets[:fit], [train[fit:]], ridge)
        if targets.shape[1] == 1:
            return float((outputs - held_out).square().mean())
        return float((outputs.argmax(dim=-1) != held_out.argmax(dim=-1)).float().mean())

    return ridge_outputs(train, targets, tests, min(RIDGES, key=error))


def ridge_outputs(x: Tensor, y: Tensor, tests: list[Tensor], ridge: float) -> list[Tensor]:
    x, y = x.double(), y.double()
    centred = x - x.mean(dim=0)
    matrix = centred.T @ centred + ridge * torch.eye(x.shape[1], dtype=torch.double)
    weights = torch.linalg.solve(matrix, centred.T @ (y - y.mean(dim=0)))  # (D, C)
    return [(test.double() - x.mean(dim=0)) @ weights + y.mean(dim=0) for test in tests]


def probe_scores(
    model: Model, task: Task, device: torch.device, precision: str
) -> dict[str, dict[str, float | None]]:
    """Return {metric: {split: score}} through the cache: "probe METRIC" with the task's first
    metric, and "retrieval accuracy" where the other scored splits are translations of the first.
    """
    file = cache_file(
        what="probe", model=model.hash, task=task.hash, precision=precision, device=str(device)
    )
    if (found := read_result(file)) is not None:
        return found

    def vectors(split: Split) -> Tensor:
        first = sentence_vectors(model, split.texts, device, precision)
        if split.text_pairs is None:
            return first
        second = sentence_vectors(model, split.text_pairs, device, precision)
        return torch.cat([first, second, (first - second).abs(), first * second], dim=-1)

    metric, train = task.metrics[0], task.train
    order = torch.randperm(len(train.texts), generator=torch.Generator().manual_seed(0))
    order = order[:PROBE_ROWS].tolist()
    pairs = train.text_pairs and [train.text_pairs[n] for n in order]
    train = Split([train.texts[n] for n in order], pairs, [train.labels[n] for n in order])
    targets = torch.tensor(train.labels)
    targets = F.one_hot(targets, len(task.classes)) if task.classes else targets[:, None]
    scored = {name: vectors(split) for name, split in task.scored.items()}
    scores = {}
    outputs = probe(vectors(train), targets, list(scored.values()))
    for (name, split), output in zip(task.scored.items(), outputs, strict=True):
        output = output.argmax(dim=-1) if task.classes else output.squeeze(-1)
        scores[name] = METRICS[metric](output.numpy(), np.array(split.labels))
    result = {f"probe {metric}": scores}
    if task.aligned:
        (original, split), *translations = task.scored.items()
        result["retrieval accuracy"] = {
            name: retrieval_accuracy(scored[name], scored[original], split.texts)
            for name, _ in translations
        }
    write_result(file, result)
    return result
