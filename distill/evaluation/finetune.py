"""Fine-tuning on a task: one recipe for every model, a grid of learning rates and epochs, K seeds.

    ids of text (and text_pair), (B, N)  ->  encoder  ->  last layer's output, (B, N, D)
        ->  mean over the real tokens, (B, D)  ->  linear head  ->  classes or one number, (B, C)

The mean and not [CLS], because sentence encoders are trained for it, and because a student of MHA
or DirectMiniLM has no trained [CLS] at all: its last block's output and FFN never learned. For the
same reason every layer is trained. Cross-entropy, or for numbers the squared error of the labels
brought to mean 0 and deviation 1; AdamW; the rate rises over a tenth of the steps, then falls to 0,
both in a line; no dropout in any model.

What makes it quick without changing a result: batches of sentences of like length, and of the word
embeddings only those rows that the task reads (AdamW would move all of XLM-R's 250,002 at every
step).
"""

import hashlib
import itertools
import json
import math
import statistics
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.evaluation.columns import Model
from distill.evaluation.metrics import METRICS
from distill.evaluation.tasks import Split, Task
from distill.training.device import autocast
from distill.training.setup import learning_rate, make_optimizer, set_learning_rate
from minitransformer.config import EncoderConfig
from minitransformer.files import atomic, cache_folder
from minitransformer.model import Encoder
from minitransformer.tokenizer import Tokenizer

FORMAT = 3  # of a cached result; to be raised whenever the recipe changes
CHOOSE = "choose"  # the name of the split `chosen_on` among the scores
DISTINCT = "distinct predictions"  # stands among a split's metrics; 1 = all are the same
MEGABATCH = 50  # batches within which sentences are sorted by length


@dataclass(frozen=True)
class Recipe:
    """What a score depends on beside the model, the task, learning rate, epochs and seed."""

    batch_size: int = 16
    max_tokens: int = 128
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    precision: str = "fp32"  # or bf16: autocast over weights that stay float32
    device: str = "cpu"


class Examples:
    """A split as token ids that fit the encoder, and its batches.

    `cut` counts the inputs that were longer than that. The token types end at the encoder's last
    one: RoBERTa's body has one type, but many a tokenizer gives pairs two.
    """

    def __init__(self, split: Split, tokenizer: Tokenizer, config: EncoderConfig, max_tokens: int):
        limit, highest = min(max_tokens, config.max_tokens), config.type_vocab_size - 1
        rows = tokenizer.encode_pairs(split.texts, split.text_pairs, max_tokens=limit)
        whole = tokenizer.encode_pairs(split.texts, split.text_pairs, max_tokens=limit + 1)
        self.cut = sum(len(ids) > limit for ids, _ in whole)
        self.ids = [np.array(ids) for ids, _ in rows]
        self.types = [np.minimum(types, highest) for _, types in rows]
        self.lengths = np.array([len(ids) for ids in self.ids])
        self.pad, self.labels = config.pad_token_id, np.array(split.labels)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return (ids, mask, token types), (B, N) each; N is the length of the longest row."""
        mask = np.arange(self.lengths[rows].max()) < self.lengths[rows][:, None]  # (B, N)
        ids, types = np.full(mask.shape, self.pad), np.zeros(mask.shape, int)
        ids[mask] = np.concatenate([self.ids[row] for row in rows])
        types[mask] = np.concatenate([self.types[row] for row in rows])
        return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(types)

    def shuffled(self, batch_size: int, generator: torch.Generator) -> list[np.ndarray]:
        """The rows of each batch of an epoch; like lengths together, otherwise in random order."""
        order = torch.randperm(len(self.ids), generator=generator).numpy()
        batches = []
        for start in range(0, len(order), batch_size * MEGABATCH):
            batches += self.by_length(batch_size, order[start : start + batch_size * MEGABATCH])
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def by_length(self, batch_size: int, rows: np.ndarray | None = None) -> list[np.ndarray]:
        """The rows (default: all) in batches, the shortest first."""
        rows = np.arange(len(self.ids)) if rows is None else rows
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def mean_over_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, N, D) -> (B, D), the mean over the real tokens."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)  # (B, N, 1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


class Classifier(nn.Module):
    """A copy of the encoder that knows the words `used_ids` only, and a linear head on its mean."""

    def __init__(self, encoder: Encoder, used_ids: np.ndarray, outputs: int, generator):
        super().__init__()
        config = replace(encoder.config, vocab_size=len(used_ids))
        weights = encoder.state_dict()
        words = weights["embeddings.word.weight"]
        weights["embeddings.word.weight"] = words[torch.tensor(used_ids, device=words.device)]
        weights = {name: w for name, w in weights.items() if not name.startswith("mlm_head.")}
        self.encoder = Encoder(config, mlm_head=False)
        self.encoder.load_state_dict(weights)
        self.head = nn.Linear(encoder.config.hidden_size, outputs)
        nn.init.normal_(self.head.weight, 0.0, 0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        hidden = self.encoder(ids, mask, types, keep="last").hidden[-1]  # (B, N, D)
        return self.head(mean_over_tokens(hidden, mask))  # (B, C)


class Tuner:
    """One model on one task, tokenised once; `train` makes one fine-tuned copy and scores it."""

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, task: Task, recipe: Recipe):
        self.encoder, self.task, self.recipe = encoder, task, recipe
        self.device = torch.device(recipe.device)
        splits = {"train": task.train, **task.scored}
        if task.chosen_on:
            splits[CHOOSE] = task.chosen_on
        self.splits = {}
        for name, split in splits.items():
            self.splits[name] = Examples(split, tokenizer, encoder.config, recipe.max_tokens)
        self.cut = sum(examples.cut for examples in self.splits.values())
        # Ids up to the padding's keep their numbers: RoBERTa counts its positions from that one.
        used = [np.arange(encoder.config.pad_token_id + 1)]
        for examples in self.splits.values():
            used += examples.ids
        self.used_ids = np.unique(np.concatenate(used))
        for examples in self.splits.values():
            examples.ids = [np.searchsorted(self.used_ids, ids) for ids in examples.ids]
        labels = self.splits["train"].labels
        if not task.classes:
            labels = ((labels - labels.mean()) / (labels.std() or 1.0)).astype(np.float32)
        self.targets = labels

    def train(
        self, lr: float, epochs: int, seed: int, after_step: Callable = lambda: None
    ) -> dict | None:
        """Return {split: {metric: score}}; None if the loss or its gradient became NaN or inf.

        The seed decides the head's first weights and the order of the examples, and does so alike
        for every model: scores of one seed are pairs.
        """
        recipe, generator = self.recipe, torch.Generator().manual_seed(seed)
        outputs = len(self.task.classes) or 1
        model = Classifier(self.encoder, self.used_ids, outputs, generator).to(self.device)
        optimizer = make_optimizer(model, lr, recipe.weight_decay)
        batches = []
        for _ in range(epochs):
            batches += self.splits["train"].shuffled(recipe.batch_size, generator)
        for step, rows in enumerate(batches):
            self.loss(model, rows).backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            if not math.isfinite(norm):
                return None
            set_learning_rate(optimizer, learning_rate(step, len(batches), lr, recipe.warmup))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            after_step()
        scores = {name: self.score(model, name) for name in self.splits if name != "train"}
        return None if None in scores.values() else scores

    def loss(self, model: Classifier, rows: np.ndarray) -> Tensor:
        outputs = self.outputs(model, self.splits["train"], rows)
        targets = torch.from_numpy(self.targets[rows]).to(self.device)
        if self.task.classes:
            return F.cross_entropy(outputs, targets)
        return F.mse_loss(outputs.squeeze(-1), targets)

    def outputs(self, model: Classifier, examples: Examples, rows: np.ndarray) -> Tensor:
        with autocast(self.device, self.recipe.precision):
            return model(*(part.to(self.device) for part in examples.batch(rows))).float()

    @torch.inference_mode()
    def score(self, model: Classifier, split: str) -> dict[str, float | None] | None:
        examples = self.splits[split]
        predictions = np.empty(len(examples.ids))
        for rows in examples.by_length(64):
            outputs = self.outputs(model, examples, rows).cpu()
            predictions[rows] = outputs.argmax(-1) if self.task.classes else outputs.squeeze(-1)
        if not np.isfinite(predictions).all():
            return None
        scores = {name: METRICS[name](predictions, examples.labels) for name in self.task.metrics}
        return {**scores, DISTINCT: len(np.unique(predictions))}


# ---- cache ---------------------------------------------------------------------------------------


def cache_file(**key) -> Path:
    """Return where a result that depends on all of `key` is, or will be."""
    key |= {"format": FORMAT, "torch": torch.__version__}
    folder = cache_folder() / "evaluation"
    folder.mkdir(exist_ok=True)
    return folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}.json"


def write_result(file: Path, result: dict) -> None:
    text = json.dumps(result)
    with atomic(file) as temporary:
        temporary.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def read_result(file: Path) -> dict | None:
    """Return a cached result; None where there is none, or one that was cut off or changed."""
    try:
        digest, _, text = file.read_text().partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    whole = digest == hashlib.sha256(text.encode()).hexdigest()
    return json.loads(text) if whole else None


# ---- grid ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One point of the grid; `scores` has for each seed {split: {metric: score}}, or None where the
    loss became NaN or inf.
    """

    lr: float
    epochs: int
    scores: list[dict | None]

    def values(self, metric: str, splits: Iterable[str]) -> list[float | None]:
        """Return for each seed the metric's mean over the splits; None where one is undefined."""
        values = []
        for scores in self.scores:
            parts = [scores[split][metric] for split in splits] if scores else [None]
            values.append(None if None in parts else statistics.fmean(parts))
        return values


class Grid:
    """Learning rates x epochs x seeds for one model on one task, through the cache: a killed grid
    goes on, and a second call computes what is new.

    results   {(lr, epochs, seed): {scores, cut}}, those of the cache at first
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        recipe: Recipe,
        lrs: Sequence[float],
        epochs: Sequence[int],
        seeds: int,
    ):
        self.model, self.task, self.recipe, self.seeds = model, task, recipe, seeds
        self.points = list(dict.fromkeys(itertools.product(lrs, epochs)))  # each once
        self.files = {}
        for seed, (lr, epoch_count) in itertools.product(range(seeds), self.points):
            self.files[lr, epoch_count, seed] = cache_file(
                model=model.hash,
                task=task.hash,
                recipe=asdict(recipe),
                lr=lr,
                epochs=epoch_count,
                seed=seed,
            )
        found = {point: read_result(file) for point, file in self.files.items()}
        self.results = {point: result for point, result in found.items() if result}

    def missing(self) -> list[tuple[float, int, int]]:
        return [point for point in self.files if point not in self.results]

    def steps(self) -> int:
        """Return the optimizer steps of all that is missing."""
        batches = math.ceil(len(self.task.train.texts) / self.recipe.batch_size)
        return sum(epochs * batches for _, epochs, _ in self.missing())

    def compute(self, after_step: Callable[[], object] = lambda: None) -> None:
        """Train what is missing and keep each result at once.

        On a CPU every core trains a model of its own: batches are too small to share among cores,
        and the result does not depend on their number. Ctrl-C stops all of them after the step in
        progress.
        """
        tuner = Tuner(self.model.encoder, self.model.tokenizer, self.task, self.recipe)
        threads, stop = torch.get_num_threads(), threading.Event()

        def check_and_count() -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            after_step()

        def train_one(point: tuple[float, int, int]) -> None:
            result = {"scores": tuner.train(*point, check_and_count), "cut": tuner.cut}
            write_result(self.files[point], result)
            self.results[point] = result

        workers = threads if self.recipe.device == "cpu" else 1
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                list(pool.map(train_one, self.missing()))
            finally:
                stop.set()
        torch.set_num_threads(threads)

    def cells(self) -> list[Cell]:
        cells = []
        for point in self.points:
            scores = [self.results[*point, seed]["scores"] for seed in range(self.seeds)]
            cells.append(Cell(*point, scores))
        return cells

    def cut(self) -> int:
        """Return how many of the task's inputs were too long and were cut."""
        return self.results[*self.points[0], 0]["cut"]

    def best(self) -> Cell:
        """Return the cell with the highest mean over its seeds; the first of equals.

        A cell whose loss diverged or whose score is undefined is best only where all are so.
        """
        splits = [CHOOSE] if self.task.chosen_on else self.task.scored

        def merit(cell: Cell) -> float:
            values = cell.values(self.task.metrics[0], splits)
            return -math.inf if None in values else statistics.fmean(values)

        return max(self.cells(), key=merit)
