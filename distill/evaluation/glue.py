"""GLUE and XNLI, from the hub or from a folder (`--data-dir DIR`, one folder a task, offline).

    DIR/cola/train-00000-of-00001.parquet, …    the hub's files, or others with the hub's columns
    DIR/xnli/fr/test.jsonl                      a folder a language; English alone has a train split

Labels of GLUE's test splits are not public: its validation splits are scored. Sources: arXiv
1804.07461 and 1809.05053.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from distill.evaluation import tasks
from distill.evaluation.tasks import Split, Task
from minitransformer.files import UserError, first_line

GLUE_HUB, XNLI_HUB = "nyu-mll/glue", "facebook/xnli"
LANGUAGES = tuple("ar bg de el en es fr hi ru sw th tr ur vi zh".split())


class Form(NamedTuple):
    """Columns of text, pair (if any) and label; classes by number; metrics, GLUE's own first."""

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)


ONE, TWO = ("sentence", "label"), ("sentence1", "sentence2", "label")
QUESTIONS = ("question1", "question2", "label")
NLI = Form(("premise", "hypothesis", "label"), ("entailment", "neutral", "contradiction"))
ENTAILED = ("entailment", "not_entailment")
GLUE = {
    "cola": Form(ONE, ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "sst2": Form(ONE, ("negative", "positive")),
    "mrpc": Form(TWO, ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "stsb": Form(TWO, (), ("spearman", "pearson")),
    "qqp": Form(QUESTIONS, ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    "mnli": NLI,
    "qnli": Form(("question", "sentence", "label"), ENTAILED),
    "rte": Form(TWO, ENTAILED),
}


def glue_task(name: str, data_dir: str | None = None) -> Task:
    """Return one of GLUE's eight tasks; its validation split is scored, both of them for MNLI."""
    folder, form, notes = data_dir and Path(data_dir, name), GLUE[name], []
    names = {"dev": "validation"}
    if name == "mnli":
        names = {"matched": "validation_matched", "mismatched": "validation_mismatched"}
    splits = {}
    for key, split in {"train": "train", **names}.items():
        splits[key] = read(folder, (GLUE_HUB, name, split), form, notes)
    return Task(name, splits.pop("train"), splits, form.classes, form.metrics, tuple(notes))


def xnli_task(data_dir: str | None = None) -> Task:
    """Return XNLI, zero-shot: learn from English, test in all languages or those of the folder."""
    folder, notes, languages = data_dir and Path(data_dir, "xnli"), [], LANGUAGES
    if folder:
        languages = [language for language in LANGUAGES if (folder / language).is_dir()]
        if len(languages) < len(LANGUAGES):
            notes.append(f"xnli: {folder} has {len(languages)} of 15 languages")
    splits = {}
    for language, split in (("en", "train"), *((language, "test") for language in languages)):
        place = (XNLI_HUB, language, split)
        name = "train" if split == "train" else language
        splits[name] = read(folder and folder / language, place, NLI, notes)
    return Task("xnli", splits.pop("train"), splits, NLI.classes, NLI.metrics, tuple(notes))


def read(folder: Path | None, place: tuple[str, str, str], form: Form, notes: list[str]) -> Split:
    """Return a split, from a folder or else from its place (dataset, configuration, split) on the
    hub. The hub's class numbers and the classes' names, in capitals or not, are one.
    """
    what = " ".join(place[1:])
    if folder:
        split = tasks.read_split(folder, place[2], form.columns)
    else:
        split = tasks.make_split(read_hub(*place), form.columns)
    numbers = {}
    for number, name in enumerate(form.classes):
        numbers |= {str(number): number, name: number}
    split = replace(split, labels=[label.lower() for label in split.labels])
    split = tasks.labelled(split, what, notes, tasks.DOUBTFUL)
    return tasks.numbered(split, numbers, what)


def read_hub(dataset: str, config: str, split: str) -> list[dict]:
    import datasets  # here, because it takes a second that folders need not pay

    try:
        return list(datasets.load_dataset(dataset, config, split=split))
    except Exception as error:  # whatever a hub, a network or a cache can do wrong
        raise UserError(
            f"{dataset} {config} could not be downloaded; pass --data-dir ({first_line(error)})"
        ) from None
