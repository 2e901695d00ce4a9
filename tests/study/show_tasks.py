"""Are the docs tasks worth anything? Four answers a task side by side, as a Markdown table.

    python tests/study/show_tasks.py             (ten minutes on two cores; cached afterwards)

    majority        the most frequent class of train
    bag of words    logistic regression on the counts of word pieces, of both sentences apart;
                    its weight decay chosen on dev, in its favour
    random start    the teacher's shape cut to half its layers, every weight random
    copied start    the same with the teacher's embeddings and every other layer, not distilled
    teacher         the embedded teacher

The last three are fine-tuned as evaluate.py does it; ± is the standard deviation over seeds.
"""

import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from distill.evaluation.docs_tasks import DOCS
from distill.evaluation.finetune import Grid, Recipe, fingerprint
from distill.evaluation.table import markdown
from distill.student import start_student, student_config
from minitransformer.files import cache_folder
from minitransformer.pretrained import load_pretrained

RATES, EPOCHS, SEEDS = [2e-4, 5e-4], [3], 2


def bag_of_words(task, tokenizer) -> float:
    splits = []
    for split in (task.train, task.scored["dev"]):
        sides = [split.texts, *([split.text_pairs] if split.text_pairs else [])]
        counts = [torch.zeros(len(split.texts), tokenizer.vocab_size) for _ in sides]
        for side, rows in zip(sides, counts, strict=True):
            for row, ids in zip(rows, tokenizer.encode_batch(side), strict=True):
                row.index_add_(0, torch.tensor(ids), torch.ones(len(ids)))
        splits.append((torch.cat(counts, dim=1), torch.tensor(split.labels)))
    (x, y), (x_dev, y_dev) = splits
    used = x.any(dim=0)
    x, x_dev, best = x[:, used], x_dev[:, used], 0.0
    for decay in (1e-4, 1e-3, 1e-2, 1e-1):
        layer = nn.Linear(x.shape[1], len(task.classes))
        nn.init.zeros_(layer.weight)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200)

        def loss(layer=layer, optimizer=optimizer, decay=decay):
            optimizer.zero_grad()
            value = F.cross_entropy(layer(x), y) + decay * layer.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        best = max(best, float((layer(x_dev).argmax(-1) == y_dev).float().mean()))
    return best


def main() -> None:
    teacher, tokenizer = load_pretrained("embedded")
    shape = student_config(teacher.config, len(teacher.blocks) // 2, None, None, None)
    models = {
        "random start": start_student("random", shape, teacher, 0, mlm_head=False),
        "copied start": start_student("uniform", shape, teacher, 0, mlm_head=False),
        "teacher": teacher,
    }
    cache = cache_folder() / "finetune"
    cache.mkdir(exist_ok=True)
    lines = [["task", "majority", "bag of words", *models]]
    for name, make in DOCS.items():
        task = make()
        labels = task.scored["dev"].labels
        share = labels.count(statistics.mode(task.train.labels)) / len(labels)
        lines.append([name, f"{share:.3f}", f"{bag_of_words(task, tokenizer):.3f}"])
        for encoder in models.values():
            model = fingerprint(encoder, tokenizer)
            grid = Grid(model, task, Recipe(), RATES, EPOCHS, SEEDS, cache)
            grid.compute(encoder, tokenizer)
            values = grid.best().values("accuracy", ["dev"])
            spread = statistics.stdev(values)
            lines[-1].append(f"{statistics.fmean(values):.3f} ± {spread:.3f}")
        print(" | ".join(lines[-1]), flush=True)
    print("\n" + markdown(lines))


if __name__ == "__main__":
    main()
