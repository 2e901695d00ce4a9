"""GLUE and XNLI, from the hub or from a folder (`--data-dir DIR`, one folder a task, offline).

    DIR/cola/train-00000-of-00001.parquet, …    the hub's files, or .jsonl, .csv, .tsv with the
             validation.jsonl                   hub's columns
    DIR/xnli/fr/test.parquet                    XNLI, a folder a language; train and validation are
                                                read of English alone

Labels of the test splits of GLUE are not public: its validation splits are scored. Sources: arXiv
1804.07461 and 1809.05053.
"""

from dataclasses import dataclass
from pathlib import Path

from distill.evaluation.tasks import (
    Row,
    Split,
    Task,
    drop_unlabelled,
    make_row,
    make_split,
    number,
    read_split,
)
from minitransformer.errors import UserError, first_line

GLUE_HUB, XNLI_HUB = "nyu-mll/glue", "facebook/xnli"
LANGUAGES = tuple("ar bg de el en es fr hi ru sw th tr ur vi zh".split())
NLI = ("entailment", "neutral", "contradiction")
ENTAILED = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Form:
    """How a task is written on the hub: its columns of text, pair (or None) and label, its classes
    in the order of their numbers, its metrics, first the one that enters the GLUE average.
    """

    columns: tuple[str | None, ...]
    classes: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)


ONE, TWO = ("sentence", None, "label"), ("sentence1", "sentence2", "label")
NLI_COLUMNS = ("premise", "hypothesis", "label")
GLUE = {
    "cola": Form(ONE, ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "sst2": Form(ONE, ("negative", "positive")),
    "mrpc": Form(TWO, ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "stsb": Form(TWO, (), ("spearman", "pearson")),
    "qqp": Form(
        ("question1", "question2", "label"), ("not_duplicate", "duplicate"), ("f1", "accuracy")
    ),
    "mnli": Form(NLI_COLUMNS, NLI),
    "qnli": Form(("question", "sentence", "label"), ENTAILED),
    "rte": Form(TWO, ENTAILED),
}
XNLI = Form(NLI_COLUMNS, NLI)


def glue_task(name: str, data_dir: str | None = None) -> Task:
    """Return one of GLUE's eight tasks; its validation split is scored, both of them for MNLI."""
    form, notes = GLUE[name], []

    def split(hub_name: str) -> Split:
        if data_dir:
            rows = read_split(task_folder(data_dir, name), hub_name, form.columns)
        else:
            rows = read_hub(GLUE_HUB, name, hub_name, form)
        return labelled_split(rows, f"{name} {hub_name}", form, notes)

    if name == "mnli":
        scored = {kind: split(f"validation_{kind}") for kind in ("matched", "mismatched")}
    else:
        scored = {"dev": split("validation")}
    return Task(name, split("train"), scored, form.classes, form.metrics, notes=tuple(notes))


def xnli_task(data_dir: str | None = None, languages: list[str] | None = None) -> Task:
    """Return XNLI, zero-shot: learn from English, choose on its validation split, test elsewhere.

    languages   those to test (default: all fifteen; of a folder those that it has)
    """
    notes = []

    def split(language: str, name: str) -> Split:
        if data_dir:
            rows = read_split(task_folder(data_dir, "xnli") / language, name, XNLI.columns)
        else:
            rows = read_hub(XNLI_HUB, language, name, XNLI)
        return labelled_split(rows, f"xnli {language} {name}", XNLI, notes)

    chosen = languages or LANGUAGES
    if data_dir and not languages:
        folder = task_folder(data_dir, "xnli")
        chosen = [language for language in LANGUAGES if (folder / language).is_dir()]
        if len(chosen) < len(LANGUAGES):
            notes.append(f"xnli: {folder} has {len(chosen)} of 15 languages: {', '.join(chosen)}")
    train, validation = split("en", "train"), split("en", "validation")
    scored = {language: split(language, "test") for language in chosen}
    return Task("xnli", train, scored, NLI, XNLI.metrics, validation, tuple(notes))


def task_folder(data_dir: str, name: str) -> Path:
    folder = Path(data_dir, name)
    if not folder.is_dir():
        raise UserError(f"--data-dir {data_dir}: no folder {name} in it")
    return folder


def read_hub(dataset: str, config: str, split: str, form: Form) -> list[Row]:
    import datasets  # here, because it takes a second that folders need not pay

    try:
        table = datasets.load_dataset(dataset, config, split=split)
    except Exception as error:  # whatever a hub, a network or a cache can do wrong
        raise UserError(
            f"{dataset} {config} could not be downloaded; pass --data-dir ({first_line(error)})"
        ) from None
    places = (f"{dataset} {config} {split}, row {n}" for n in range(1, len(table) + 1))
    return [make_row(place, row, form.columns) for place, row in zip(places, table, strict=True)]


def labelled_split(rows: list[Row], what: str, form: Form, notes: list[str]) -> Split:
    """Return the rows that have a label; the hub's class numbers and the classes' names are one."""
    named = []
    for row in drop_unlabelled(rows, what, notes, minus_one=False):
        if form.classes and number(row.label) in range(len(form.classes)):
            row = row._replace(label=form.classes[int(number(row.label))])
        named.append(row)
    return make_split(named, form.classes)
