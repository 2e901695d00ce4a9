"""Fine-tuning throughput on real-length pairs, against padding to 128 with transformers.

    python tests/bench/finetune.py [PAIRS]                  (512, all of them; 3 minutes)

Both train the embedded teacher on sentence pairs (the task docs-next) in float32 on the same cores,
with AdamW (fused), the same clipping and the same linear head on the mean of the last hidden
states. They take turns and the medians count, so a machine that slows down slows both. As padding
makes all batches alike, transformers is timed on an eighth of the pairs.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, __file__.rsplit("/tests/", 1)[0] if "/tests/" in __file__ else ".")

from distill.evaluation.docs_tasks import docs_next
from distill.evaluation.finetune import Recipe, Tuner
from distill.evaluation.tasks import Split, Task
from distill.program.machine import machine
from minitransformer.pretrained import find_folder, load_pretrained

ROUNDS = 3


def theirs(folder, task: Task, recipe: Recipe):
    """A function that trains one epoch with transformers, as its examples do: pad to 128."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = AutoModel.from_pretrained(folder, config=config)
    head = nn.Linear(config.hidden_size, len(task.classes))
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = recipe.max_tokens
    batch = tokenizer(
        task.train.texts,
        task.train.text_pairs,
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    labels = torch.tensor(task.train.labels)

    def epoch():
        for rows in torch.randperm(len(labels)).split(recipe.batch_size):
            hidden = model(**{name: values[rows] for name, values in batch.items()})[0]
            weight = batch["attention_mask"][rows].unsqueeze(-1)
            mean = (hidden * weight).sum(1) / weight.sum(1)
            F.cross_entropy(head(mean), labels[rows]).backward()
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def shortened(task: Task, pairs: int) -> Task:
    train = Split(*(column[:pairs] for column in vars(task.train).values()))
    return Task(task.name, train, {}, task.classes, task.metrics)


def main(pairs: int = 512) -> float:
    recipe, task = Recipe(), shortened(docs_next(), pairs)
    tuner = Tuner(*load_pretrained("embedded"), task, recipe)
    padded = theirs(find_folder("embedded"), shortened(task, pairs // 8), recipe)
    epochs = {
        "this project": (pairs, lambda: tuner.train(1e-4, 1, 0)),
        "transformers, padded to 128": (pairs // 8, padded),
    }
    rates = {name: [] for name in epochs}
    for turn in range(ROUNDS + 1):
        for name, (size, epoch) in epochs.items():
            start = time.perf_counter()
            epoch()
            if turn:  # the first turn warms up
                rates[name].append(size / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    lengths = tuner.splits["train"].lengths
    print(f"{machine()}, float32")
    print(f"{len(lengths)} pairs of {lengths.mean():.0f} tokens ({lengths.min()}-{lengths.max()})")
    for name, rate in medians.items():
        print(f"{name:28} {rate:7.1f} pairs/s")
    ours, other = medians.values()
    print(f"ratio {ours / other:.2f}")
    return ours / other


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
