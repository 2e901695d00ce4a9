"""What a model's sentence vectors are good for as they are, without fine-tuning.

probe        a linear classifier in closed form on frozen vectors
neighbours   share of sentences whose nearest other one is the one that the teacher finds
retrieval    share of translations whose nearest original is their own

A vector is the last layer's output, pooled as the model's files say.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.evaluation import finetune
from distill.evaluation.columns import Model
from distill.evaluation.metrics import METRICS
from distill.evaluation.tasks import Task
from distill.training.device import autocast
from minitransformer.files import read_hashed, write_hashed

SENTENCES = 1000  # whose neighbours are compared, at most
PROBE_ROWS = 10_000  # of train, at most: GLUE's largest has 393,000
RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


@torch.inference_mode()
def sentence_vectors(model: Model, sentences: list[str], device, precision="fp32") -> Tensor:
    """Return (M, D) vectors of length 1, as sentence-transformers makes them, in float32."""
    config = model.encoder.config
    examples = finetune.Examples(sentences, None, model.tokenizer, config, 128)
    vectors = torch.empty(len(sentences), config.hidden_size)
    for rows in examples.by_length(64):
        ids, mask, types = (tensor.to(device) for tensor in examples.batch(rows))
        with autocast(device, precision):
            hidden = model.encoder(ids, mask, types, keep="last").hidden[-1].float()
        cls = model.tokenizer.pooling == "cls"
        vectors[rows] = (hidden[:, 0] if cls else finetune.mean_over_tokens(hidden, mask)).cpu()
    return F.normalize(vectors)


def neighbours_kept(student: Tensor, teacher: Tensor) -> float | None:
    """Compare the vectors (M, D_s) and (M, D_t) of the same sentences; None: one is not finite."""
    nearest = [(v @ v.T).fill_diagonal_(-2.0).argmax(dim=-1) for v in (student, teacher)]
    finite = (student.sum() + teacher.sum()).isfinite()
    return float((nearest[0] == nearest[1]).float().mean()) if finite else None


def retrieval_accuracy(queries: Tensor, candidates: Tensor, texts: list[str]) -> float:
    """Return the share of queries (M, D) whose nearest candidate (M, D) has their own text."""
    nearest = (queries @ candidates.T).argmax(dim=-1).tolist()
    hits = [texts[found] == text for found, text in zip(nearest, texts, strict=True)]
    return sum(hits) / len(hits)


def probe(train: Tensor, targets: Tensor, tests: list[Tensor]) -> list[Tensor]:
    """Fit a linear map by ridge regression; return its outputs (M, C) for each of `tests`.

    train, targets   vectors (M, D) and what they should give (M, C)

        W = A^-1 X^T Y,  A = X^T X + ridge I,  X and Y centred

    The ridge is the one of RIDGES with the least leave-one-out error: of the largest output or, for
    a single number, the squared error. Without example n, the map's error at n is

        (y_n - x_n W) / (1 - h_n),  h_n = 1/M + x_n A^-1 x_n^T
    """
    x, y = train.double(), targets.double()
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    x, y = x - mean_x, y - mean_y
    xx, xy, identity = x.T @ x, x.T @ y, torch.eye(x.shape[1], dtype=torch.double)
    fits = []
    for ridge in RIDGES:
        inverse = torch.linalg.inv(xx + ridge * identity)
        weights = inverse @ xy  # (D, C)
        leverage = ((x @ inverse) * x).sum(dim=1) + 1 / len(x)  # (M,)
        residuals = (y - x @ weights) / (1 - leverage)[:, None]  # (M, C)
        if y.shape[1] == 1:
            error = residuals.square().mean().item()
        else:
            predicted = (targets - residuals).argmax(dim=1)
            error = (predicted != targets.argmax(dim=1)).double().mean().item()
        fits.append((error, weights))
    _, best = min(fits, key=lambda fit: fit[0])
    return [(test.double() - mean_x) @ best + mean_y for test in tests]


def probe_scores(model: Model, task: Task, device, precision: str) -> dict[str, dict]:
    """Return {metric: {split: score}} through the cache: of the probe by the task's first metric,
    and of retrieval where the other scored splits are translations of the first.
    """
    key = {"model": model.key, "task": task.hash, "precision": precision, "device": str(device)}
    file = finetune.cache_file(what="probe", **key)
    if (found := read_hashed(file)) is not None:
        return found
    metric, classes, vectors, labels = task.metrics[0], len(task.classes), {}, {}
    for name, split in task.splits.items():
        rows = range(len(split.texts))
        if name == "train":
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
            rows = order[:PROBE_ROWS].tolist()
        labels[name] = np.array([split.labels[n] for n in rows])
        sides = [[side[n] for n in rows] for side in (split.texts, split.text_pairs) if side]
        first, *second = (sentence_vectors(model, side, device, precision) for side in sides)
        for other in second:
            first = torch.cat([first, other, (first - other).abs(), first * other], dim=-1)
        vectors[name] = first
    if not all(split.isfinite().all() for split in vectors.values()):
        more = {"retrieval accuracy": dict.fromkeys([*task.scored][1:])} if task.aligned else {}
        return {f"probe {metric}": dict.fromkeys(task.scored), **more}
    train, targets = vectors.pop("train"), torch.from_numpy(labels["train"])
    targets = F.one_hot(targets, classes) if classes else targets[:, None]
    scores = {}
    for name, output in zip(vectors, probe(train, targets, list(vectors.values())), strict=True):
        output = output.argmax(dim=-1) if classes else output.squeeze(-1)
        scores[name] = METRICS[metric](output.numpy(), labels[name])
    result = {f"probe {metric}": scores}
    if task.aligned:
        original, *translations = vectors
        texts, found = task.scored[original].texts, {}
        for name in translations:
            found[name] = retrieval_accuracy(vectors[name], vectors[original], texts)
        result["retrieval accuracy"] = found
    write_hashed(file, result)
    return result
