"""GLUE and XNLI, from the hub or from a folder (`--data-dir DIR`, one folder a task, offline).

    DIR/CoLA/train.tsv, dev.tsv                 GLUE's own files, as its download script left them
    DIR/cola/train-00000-of-00001.parquet, …    the hub's files, or .jsonl, .csv, .tsv with the
             validation.jsonl                   hub's columns
    DIR/xnli/fr/test.parquet                    XNLI, a folder a language; train and validation are
                                                read of English alone

GLUE's own files have other names for the columns, no header in CoLA, quotes that are plain letters
and often stray, words for the classes of MNLI, QNLI and RTE, a dozen columns and two dev files in
MNLI, and lines that lack cells in QQP (left out and counted; the hub left them out too). Labels of
the test splits are not public: dev is scored. Sources: arXiv 1804.07461 and 1809.05053.
"""

from dataclasses import dataclass
from pathlib import Path

from distill.evaluation.tasks import (
    Split,
    Task,
    find_split,
    label_of,
    need_columns,
    number,
    read_rows,
    text_cell,
    tsv_cells,
    with_header,
)
from minitransformer.errors import UserError

GLUE_HUB, XNLI_HUB = "nyu-mll/glue", "facebook/xnli"
LANGUAGES = (
    "ar",
    "bg",
    "de",
    "el",
    "en",
    "es",
    "fr",
    "hi",
    "ru",
    "sw",
    "th",
    "tr",
    "ur",
    "vi",
    "zh",
)
NLI = ("entailment", "neutral", "contradiction")
ENTAILED = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Form:
    """How a task is written: its columns of text on the hub, and in GLUE's own .tsv with the label
    last; its folder there; its classes in the hub's order; its metrics, first the one that enters
    the GLUE average."""

    texts: tuple[str, ...]
    own: tuple[str, ...]
    folder: str
    classes: tuple[str, ...]
    metrics: tuple[str, ...]


ONE, TWO, ASKED = ("sentence",), ("sentence1", "sentence2"), ("question1", "question2")
PARAPHRASE, DUPLICATE = ("not_equivalent", "equivalent"), ("not_duplicate", "duplicate")
GLUE = {
    "cola": Form(
        ONE, (*ONE, "label"), "CoLA", ("unacceptable", "acceptable"), ("matthews", "accuracy")
    ),
    "sst2": Form(ONE, (*ONE, "label"), "SST-2", ("negative", "positive"), ("accuracy",)),
    "mrpc": Form(
        TWO, ("#1 String", "#2 String", "Quality"), "MRPC", PARAPHRASE, ("f1", "accuracy")
    ),
    "stsb": Form(TWO, (*TWO, "score"), "STS-B", (), ("spearman", "pearson")),
    "qqp": Form(ASKED, (*ASKED, "is_duplicate"), "QQP", DUPLICATE, ("f1", "accuracy")),
    "mnli": Form(("premise", "hypothesis"), (*TWO, "gold_label"), "MNLI", NLI, ("accuracy",)),
    "qnli": Form(
        ("question", "sentence"), ("question", "sentence", "label"), "QNLI", ENTAILED, ("accuracy",)
    ),
    "rte": Form(TWO, (*TWO, "label"), "RTE", ENTAILED, ("accuracy",)),
}
XNLI = Form(("premise", "hypothesis"), (), "XNLI", NLI, ("accuracy",))


def glue_task(name: str, data_dir: str | None = None) -> Task:
    """One of GLUE's eight tasks; dev is scored, both of them for MNLI."""
    names = {"dev": ("validation", "dev")}
    if name == "mnli":
        names = {kind: (f"validation_{kind}", f"dev_{kind}") for kind in ("matched", "mismatched")}
    form, notes = GLUE[name], []
    splits = {}
    for split, files in {"train": ("train",), **names}.items():
        if data_dir:
            folder = task_folder(data_dir, name, form.folder)
            splits[split] = split_on_disk(folder, files, name, form, notes)
        else:
            splits[split] = split_of_hub(GLUE_HUB, name, files[0], form)
    train = splits.pop("train")
    return Task(name, train, splits, form.classes, form.metrics, notes=tuple(notes))


def xnli_task(data_dir: str | None = None) -> Task:
    """Zero-shot: learn from English, choose on its validation split, test in fifteen languages."""

    def split(language: str, name: str) -> Split:
        if data_dir:
            folder = task_folder(data_dir, "xnli", XNLI.folder) / language
            return split_on_disk(folder, (name,), "xnli", XNLI, [])
        return split_of_hub(XNLI_HUB, language, name, XNLI)

    scored = {language: split(language, "test") for language in LANGUAGES}
    english = split("en", "train"), split("en", "validation")
    return Task("xnli", english[0], scored, XNLI.classes, XNLI.metrics, chosen_on=english[1])


def task_folder(data_dir: str, *names: str) -> Path:
    for name in names:
        if (folder := Path(data_dir, name)).is_dir():
            return folder
    raise UserError(f"--data-dir {data_dir}: no folder {' or '.join(names)} in it")


def split_of_hub(dataset: str, config: str, split: str, form: Form) -> Split:
    import datasets  # here, because it takes a second that folders need not pay

    try:
        table = datasets.load_dataset(dataset, config, split=split)
    except Exception as error:  # whatever a hub, a network or a cache can do wrong
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{dataset} {config}: not had from the hub, try --data-dir ({reason})"
        ) from None
    rows = [(f"{dataset} {config} {split}, row {n}", row) for n, row in enumerate(table, 1)]
    return make_split(rows, form.texts, "label", form.classes)


def split_on_disk(folder: Path, files: tuple[str, ...], task: str, form: Form, notes) -> Split:
    """A split from its file or shards, in the hub's columns or GLUE's own."""
    texts, label, rows = form.texts, "label", []
    for path in find_split(folder, *files):
        if path.suffix == ".tsv":
            cells = tsv_cells(path)
            if task == "cola" and cells and "label" not in cells[0][1]:
                cells.insert(0, ("", ["source", "label", "mark", "sentence"]))
            columns, found = with_header(cells, ragged=task == "qqp")
        else:
            columns, found = read_rows(path)
        if form.own and set(form.own) <= set(columns):
            *texts, label = form.own
        if columns:
            need_columns(path, columns, (*texts, label))
        if task == "qqp":
            whole = [(place, row) for place, row in found if {*texts, label} <= row.keys()]
            if lost := len(found) - len(whole):
                notes.append(f"{path}: {lost} of {len(found)} lines lack cells and are left out")
            found = whole
        if not found:
            raise UserError(f"{path}: no rows in it")
        rows += found
    return make_split(rows, texts, label, form.classes)


def make_split(rows, texts, label: str, classes: tuple[str, ...]) -> Split:
    columns = [[text_cell(row, column, place) for place, row in rows] for column in texts]
    labels = []
    for place, row in rows:
        value = row.get(label)
        if classes and number(value) in range(len(classes)):
            value = classes[int(number(value))]  # the hub's numbers
        elif classes and value not in classes:
            raise UserError(f"{place}: label {value!r:.40} is none of {', '.join(classes)}")
        labels.append(label_of(value, classes, place))
    return Split(columns[0], columns[1] if len(columns) > 1 else None, labels)
