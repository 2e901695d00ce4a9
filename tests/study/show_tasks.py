"""Are the docs tasks worth anything? Print the table of docs/evaluation.md; it takes minutes."""

import sys
from pathlib import Path

import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import evaluate
from distill.evaluation.columns import load_models
from distill.evaluation.docs_tasks import DOCS
from distill.evaluation.finetune import Recipe
from distill.evaluation.metrics import chance
from distill.evaluation.table import markdown, result_records, score
from distill.evaluation.tasks import Task
from distill.training.device import choose_precision


def bag_of_words(task: Task) -> float:
    train, dev, columns = task.train, task.scored["dev"], []
    for side in ("texts", "text_pairs"):
        if getattr(train, side):
            counter = CountVectorizer(token_pattern=r"\w+|[^\w\s]")
            learned = counter.fit_transform(getattr(train, side))
            columns.append((learned, counter.transform(getattr(dev, side))))
    x, x_dev = (scipy.sparse.hstack(side).tocsr() for side in zip(*columns, strict=True))
    scores = []
    for strength in (0.01, 0.1, 1, 10):
        model = LogisticRegression(C=strength, max_iter=2000).fit(x, train.labels)
        scores.append(model.score(x_dev, dev.labels))
    return max(scores)


def main() -> None:
    tasks, models = [make() for make in DOCS.values()], load_models(["minilm"])
    precision = choose_precision("auto", torch.device("cpu"))
    grids = evaluate.make_grids(
        models, tasks, evaluate.parse_config(["minilm"]), Recipe(precision=precision)
    )
    lines = [["task", "train", "dev", "chance", "bag of words", "teacher"]]
    for task in tasks:
        labels = task.scored["dev"].labels
        lines.append([task.name, f"{len(task.train.labels):,}", f"{len(labels):,}"])
        lines[-1] += [f"{chance('accuracy', labels):.3f}", f"{bag_of_words(task):.3f}"]
        print(*lines[-1], flush=True)
    evaluate.fine_tune(grids)
    for line, record in zip(lines[1:], result_records(grids), strict=True):
        line.append(score(record))
    print("\n" + markdown(lines))


if __name__ == "__main__":
    main()
