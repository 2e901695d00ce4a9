"""GLUE and XNLI (arXiv 1804.07461, 1809.05053), from the hub or offline from `--data-dir DIR`.

    DIR/cola/train-00000-of-00001.parquet, …    the hub's files, or others with the hub's columns
    DIR/xnli/fr/test.jsonl                      a folder a language; English alone has a train split

Labels of GLUE's test splits are not public: its validation splits are scored.
"""

from dataclasses import replace
from pathlib import Path

from distill.evaluation.tasks import DOUBTFUL, Split, Task, make_split, numbered, read_split
from minitransformer.files import UserError, first_line

LANGUAGES = tuple("ar bg de el en es fr hi ru sw th tr ur vi zh".split())
ONE, TWO = ("sentence", "label"), ("sentence1", "sentence2", "label")
QUESTIONS = ("question1", "question2", "label")
NLI = ("premise", "hypothesis", "label")
ENTAILED = ("entailment", "not_entailment")
RELATIONS = ("entailment", "neutral", "contradiction")
# columns of text, pair (if any) and label; classes by number; metrics, GLUE's own first
GLUE = {
    "cola": (ONE, ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "sst2": (ONE, ("negative", "positive"), ("accuracy",)),
    "mrpc": (TWO, ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "stsb": (TWO, (), ("spearman", "pearson")),
    "qqp": (QUESTIONS, ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    "mnli": (NLI, RELATIONS, ("accuracy",)),
    "qnli": (("question", "sentence", "label"), ENTAILED, ("accuracy",)),
    "rte": (TWO, ENTAILED, ("accuracy",)),
}


def glue_task(name: str, data_dir: str | None = None) -> Task:
    """Return one of GLUE's eight tasks; its validation split is scored, both of them for MNLI."""
    names = {"train": "train", "dev": "validation"}
    if name == "mnli":
        names = {"train": "train"} | {n: f"validation_{n}" for n in ("matched", "mismatched")}
    folder = data_dir and Path(data_dir, name)
    places = {key: (folder, "nyu-mll/glue", name, split) for key, split in names.items()}
    return make_task(name, places, *GLUE[name])


def xnli_task(data_dir: str | None = None) -> Task:
    """Return XNLI, zero-shot: learn from English, test in all languages or those of the folder."""
    folder = data_dir and Path(data_dir, "xnli")
    languages = [name for name in LANGUAGES if not folder or (folder / name).is_dir()]
    places = {"train": (folder and folder / "en", "facebook/xnli", "en", "train")}
    for name in languages:
        places[name] = (folder and folder / name, "facebook/xnli", name, "test")
    return make_task("xnli", places, NLI, RELATIONS, ("accuracy",))


def make_task(name: str, places: dict[str, tuple], columns, classes, metrics) -> Task:
    """Return the task of these splits {name: (folder or None, dataset, configuration, split)}."""
    numbers, notes, splits = {}, [], {}
    for number, label in enumerate(classes):  # files have the number or the name
        numbers |= {str(number): number, label: number}
    for key, (folder, *hub, split) in places.items():
        rows = read_split(folder, split, columns) if folder else read_hub(*hub, split, columns)
        rows = replace(rows, labels=[label.lower() for label in rows.labels])
        splits[key] = numbered(rows, numbers, {"", *DOUBTFUL}, f"{hub[1]} {split}", notes)
    return Task(name, splits.pop("train"), splits, classes, metrics, tuple(notes))


def read_hub(dataset: str, config: str, split: str, columns: tuple[str, ...]) -> Split:
    import datasets  # here, because it takes a second that folders need not pay

    try:
        table = datasets.load_dataset(dataset, config, split=split).to_pandas()
    except Exception as error:  # whatever a hub, a network or a cache can do wrong
        raise UserError(f"{dataset} {config}: {first_line(error)}; or pass --data-dir") from None
    return make_split(table, columns)
