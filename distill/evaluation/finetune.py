"""Fine-tuning on a task: one recipe for every model, K seeds, results through a cache.

    ids of text (and text_pair), (B, N)  ->  encoder  ->  last layer's output, (B, N, D)
        ->  mean over the real tokens, layer-normalised, (B, D)
        ->  linear head  ->  classes or one number, (B, C)

The mean and not [CLS], because a student of MHA or DirectMiniLM has no trained [CLS]: its last
block's output and FFN never learned; for the same reason every layer is trained. The mean is
layer-normalised, so that the head learns equally fast on every encoder. Cross-entropy, or for
numbers the squared error of the standardised labels; AdamW; the rate rises over a tenth of the
steps, then falls to 0; no dropout. To be quick, batches hold sentences of like length,
and the word table only the rows that the task reads, not all of XLM-R's 250,002.
"""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.evaluation.columns import Model
from distill.evaluation.metrics import METRICS
from distill.evaluation.tasks import Task
from distill.training.device import autocast
from distill.training.setup import learning_rate, make_optimizer, set_learning_rate
from minitransformer.config import EncoderConfig
from minitransformer.files import cache_folder, printable, read_hashed, sha256, write_hashed
from minitransformer.model import Encoder
from minitransformer.tokenizer import Tokenizer

FORMAT = 6  # of a cached result; to be raised whenever the recipe changes
DISTINCT = "distinct predictions"  # an entry beside the metrics; 1: all answers are the same
MEGABATCH = 50  # batches within which sentences are sorted by length


@dataclass(frozen=True)
class Recipe:
    """What a score depends on beside the model, the task and the seed."""

    lr: float
    epochs: int
    batch_size: int
    max_tokens: int = 128
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    precision: str = "fp32"  # or bf16: autocast over weights that stay float32
    device: str = "cpu"


class Examples:
    """A split as token ids, cut to what fits the encoder, and its batches."""

    def __init__(self, texts, text_pairs, tokenizer: Tokenizer, config: EncoderConfig, most: int):
        limit, highest = min(most, config.max_tokens), config.type_vocab_size - 1
        rows = tokenizer.encode_pairs(texts, text_pairs, max_tokens=limit)
        self.ids = [np.array(ids) for ids, _ in rows]
        # RoBERTa's body has one token type, but many a tokenizer gives pairs two
        self.types = [np.minimum(types, highest) for _, types in rows]
        self.lengths = np.array([len(ids) for ids in self.ids])
        self.pad = config.pad_token_id

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return (ids, mask, token types), (B, N) each; N is the length of the longest row."""
        mask = np.arange(self.lengths[rows].max()) < self.lengths[rows][:, None]  # (B, N)
        ids, types = np.full(mask.shape, self.pad), np.zeros(mask.shape, int)
        ids[mask] = np.concatenate([self.ids[row] for row in rows])
        types[mask] = np.concatenate([self.types[row] for row in rows])
        return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(types)

    def shuffled(self, batch_size: int, generator: torch.Generator) -> list[np.ndarray]:
        """Return the rows of each batch of an epoch: like lengths together, otherwise random."""
        order = torch.randperm(len(self.ids), generator=generator).numpy()
        batches = []
        for start in range(0, len(order), batch_size * MEGABATCH):
            batches += self.by_length(batch_size, order[start : start + batch_size * MEGABATCH])
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def by_length(self, batch_size: int, rows: np.ndarray | None = None) -> list[np.ndarray]:
        """Return the rows (default: all) in batches, the shortest first."""
        rows = np.arange(len(self.ids)) if rows is None else rows
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def mean_over_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, N, D) -> (B, D), the mean over the real tokens."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)  # (B, N, 1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


class Classifier(nn.Module):
    """A copy of the encoder that knows the words `used_ids` only, and a linear head."""

    def __init__(self, encoder: Encoder, used_ids: np.ndarray, outputs: int, generator):
        super().__init__()
        config = replace(encoder.config, vocab_size=len(used_ids))
        weights = encoder.state_dict()
        weights["embeddings.word.weight"] = weights["embeddings.word.weight"][used_ids]
        weights = {name: w for name, w in weights.items() if not name.startswith("mlm_head.")}
        self.encoder = Encoder(config, mlm_head=False)
        self.encoder.load_state_dict(weights)
        self.head = nn.Linear(encoder.config.hidden_size, outputs)
        nn.init.normal_(self.head.weight, 0.0, 0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        hidden = self.encoder(ids, mask, types, keep="last").hidden[-1]  # (B, N, D)
        mean = mean_over_tokens(hidden, mask)  # (B, D)
        return self.head(F.layer_norm(mean, mean.shape[-1:]))  # (B, C)


class Tuner:
    """One model on one task, tokenised once; `train` makes one fine-tuned copy and scores it."""

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, task: Task, recipe: Recipe):
        self.encoder, self.task, self.recipe = encoder, task, recipe
        self.splits = {}
        for name, split in task.splits.items():
            sides = split.texts, split.text_pairs
            self.splits[name] = Examples(*sides, tokenizer, encoder.config, recipe.max_tokens)
        # Ids up to the padding id stay as they are: RoBERTa counts positions from that id.
        rows = [ids for examples in self.splits.values() for ids in examples.ids]
        rows.append(np.arange(encoder.config.pad_token_id + 1))
        self.used_ids = np.unique(np.concatenate(rows))
        for examples in self.splits.values():
            examples.ids = [np.searchsorted(self.used_ids, ids) for ids in examples.ids]
        labels = np.array(task.train.labels)
        if not task.classes:
            labels = ((labels - labels.mean()) / (labels.std() or 1.0)).astype(np.float32)
        self.targets = torch.from_numpy(labels)

    def train(self, seed: int) -> dict[str, dict[str, float | None]]:
        """Return {metric: {split: score}}; None where the loss became NaN or infinite."""
        # models of one tokenizer see the examples in one order, so that their scores are paired
        recipe, task, generator = self.recipe, self.task, torch.Generator().manual_seed(seed)
        model = Classifier(self.encoder, self.used_ids, len(task.classes) or 1, generator)
        model.to(recipe.device)
        loss = F.cross_entropy if task.classes else F.mse_loss
        optimizer = make_optimizer(model, recipe.lr, recipe.weight_decay)
        batches = []
        for _ in range(recipe.epochs):
            batches += self.splits["train"].shuffled(recipe.batch_size, generator)
        for step, rows in enumerate(batches):
            targets = self.targets[rows].to(recipe.device)
            loss(self.outputs(model, "train", rows), targets).backward()
            if not math.isfinite(nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)):
                return {name: dict.fromkeys(task.scored) for name in task.metrics}
            rate = learning_rate(step, len(batches), recipe.lr, recipe.warmup)
            set_learning_rate(optimizer, rate)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return self.scores(model)

    def outputs(self, model: Classifier, split: str, rows: np.ndarray) -> Tensor:
        device = torch.device(self.recipe.device)
        with autocast(device, self.recipe.precision):
            outputs = model(*(part.to(device) for part in self.splits[split].batch(rows))).float()
        return outputs if self.task.classes else outputs.squeeze(-1)

    @torch.inference_mode()
    def scores(self, model: Classifier) -> dict[str, dict[str, float | None]]:
        scores = {name: {} for name in (*self.task.metrics, DISTINCT)}
        for split, examples in self.task.scored.items():
            labels = np.array(examples.labels)
            predictions = np.empty(len(labels))
            for rows in self.splits[split].by_length(64):
                outputs = self.outputs(model, split, rows).cpu()
                predictions[rows] = outputs.argmax(-1) if self.task.classes else outputs
            finite = np.isfinite(predictions).all()
            for name in self.task.metrics:
                scores[name][split] = METRICS[name](predictions, labels) if finite else None
            scores[DISTINCT][split] = len(np.unique(predictions))
        return scores


def cache_file(**key) -> Path:
    """Return the file of a result that depends on all of `key`."""
    key |= {"format": FORMAT, "torch": torch.__version__}
    folder = cache_folder() / "evaluation"
    folder.mkdir(exist_ok=True)
    return folder / f"{sha256(json.dumps(key, sort_keys=True))}.json"


def fine_tune(models: list[Model], task: Task, recipe: Recipe, seeds: int) -> list[list[dict]]:
    """Return {metric: {split: score}} of each seed and model, from the cache or trained now."""
    key = {"task": task.hash, "recipe": asdict(recipe)}
    files = [[cache_file(model=m.key, **key, seed=seed) for seed in range(seeds)] for m in models]
    results = {file: read_hashed(file) for row in files for file in row}
    # equal models, such as the starts of two runs, share a file and so one fine-tuning
    jobs, names = {}, []
    for model, row in zip(models, files, strict=True):
        missing = {f: n for n, f in enumerate(row) if results[f] is None and f not in jobs}
        if missing:
            names.append(model.name)
            tuner = Tuner(model.encoder, model.tokenizer, task, recipe)
            jobs |= {file: (tuner, seed) for file, seed in missing.items()}
    if jobs:
        what = f"fine-tuning on {task.name}, {len(jobs)} times: {', '.join(names)}"
        print(printable(what), flush=True)

    def train_one(file: Path, tuner: Tuner, seed: int) -> None:
        results[file] = tuner.train(seed)
        write_hashed(file, results[file])

    threads = torch.get_num_threads()
    # on a CPU each core trains a model of its own: batches are too small to share among cores
    workers = threads if recipe.device == "cpu" else 1
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(lambda file: train_one(file, *jobs[file]), jobs))
    torch.set_num_threads(threads)
    return [[results[file] for file in row] for row in files]
