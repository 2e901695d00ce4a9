"""Tasks to fine-tune on: what a task is, how its files are read, and your own from a folder.

A task   sentences (or pairs of them) with a label each: a train split that is learned from, and
         one or more named splits that are scored. named_tasks.py and glue.py have ready ones.
Own      FOLDER/train.* and FOLDER/dev.* (.parquet, .jsonl, .ndjson, .json, .csv, .tsv) with the
         columns `text`, `label` and, for pairs, `text_pair`.
"""

import functools
import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from distill.data.sources import read_file
from minitransformer.files import UserError, first_line

CLASS_METRICS, NUMBER_METRICS = ("accuracy", "macro-f1", "matthews"), ("pearson", "spearman")
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SEPARATORS = "a .csv is separated by commas, a .tsv by tabs"
# no label: what pandas reads as "not a number", what people write, PyTorch's ignore_index
MISSING = set("? -100 #N/A #NA -NaN -nan <NA> N/A NA NULL NaN None n/a nan null".split()) | {""}
DOUBTFUL = {"-", "-1"}  # no label in some data sets, a class in others
FREQUENT = 0.05  # the share of train and of dev from which a doubtful label is a class


@dataclass(frozen=True)
class Split:
    """M examples: texts (and text_pairs), labels that are class numbers, or any in a regression."""

    texts: list[str]
    text_pairs: list[str] | None
    labels: list[int] | list[float]


@dataclass(frozen=True)
class Task:
    """`classes` names the class numbers; () makes it a regression. Each of `metrics` is measured on
    each split in `scored`. The headline is the first metric, its mean over those splits; it also
    decides which cell of a fine-tuning grid is best, unless `chosen_on` is there to decide that
    (XNLI: English). A note is for the user: what was left out of a file. `aligned`: equal rows of
    the scored splits are translations of each other, the first split's are the originals. The last
    three are the fine-tuning where the command line says nothing else.
    """

    name: str
    train: Split
    scored: dict[str, Split]
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    chosen_on: Split | None = None
    notes: tuple[str, ...] = ()
    aligned: bool = False
    lrs: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    epochs: tuple[int, ...] = (3,)
    batch_size: int = 16

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of all that a score depends on."""
        splits = [["train", self.train], ["chosen_on", self.chosen_on]]
        splits += [[f"scored {name}", split] for name, split in self.scored.items()]
        rows = [[name, split and vars(split)] for name, split in splits]
        content = json.dumps([self.name, self.classes, self.metrics, rows])
        return hashlib.sha256(content.encode()).hexdigest()

    def __str__(self) -> str:
        """Return one line: examples and classes."""
        sizes = {"train": self.train, **self.scored}
        counts = ", ".join(f"{len(split.texts):,} {name}" for name, split in sizes.items())
        classes = f"{len(self.classes)} classes: {', '.join(self.classes[:6])}"
        if len(self.classes) > 6:
            classes += ", …"
        return f"{self.name}: {counts}; {classes if self.classes else 'numbers'}"


# ---- files ---------------------------------------------------------------------------------------


class Row(NamedTuple):
    """An example as it was read; `place` is "FILE, row 3", the label "" where there is none."""

    place: str
    text: str
    pair: str | None
    label: str


def find_split(folder: Path, name: str) -> list[Path]:
    """Return the file of a split, or its shards (`train-00000-of-00002.parquet`)."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    files = [path for path in found if path.stem == name]
    files = files or [path for path in found if re.fullmatch(rf"{name}-\d+-of-\d+", path.stem)]
    if len({path.suffix for path in files}) > 1:
        raise UserError(f"{folder} has {' and '.join(f.name for f in files)}: keep one of them")
    if not files:
        raise UserError(f"{folder}: no {name} with one of {', '.join(SUFFIXES)}")
    return files


def read_split(folder: Path, name: str, columns: tuple[str, ...]) -> list[Row]:
    """Return the rows of a split; `columns` name the text, the pair if there is one, the label."""
    rows = []
    for file in find_split(folder, name):
        try:
            records = read_records(file, columns)
            if not records:
                raise UserError("no rows in it")
            rows += make_rows(str(file), records, columns)
        except Exception as error:  # whatever pandas and pyarrow raise says what is wrong
            raise UserError(f"{file}: {first_line(error)}") from None
    return rows


def read_records(file: Path, columns: tuple[str, ...]) -> list[dict]:
    """Return the rows of a file; where a file says so, only the columns that are wanted."""
    import pandas  # here, because it takes half a second that other programs need not pay

    suffix = file.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet

        names = pyarrow.parquet.read_schema(file).names
        check_columns(names, columns)
        wanted = [name for name in names if name in columns]
        return pyarrow.parquet.read_table(file, columns=wanted).to_pylist()
    if suffix not in (".csv", ".tsv"):
        return [record for _, record in read_file(str(file), columns[0])]
    # a .csv quotes as spreadsheets do; the quotes of a .tsv are plain letters, as in GLUE's
    form = {"sep": "\t", "quoting": 3} if suffix == ".tsv" else {}
    form |= {"header": None, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        # only this engine tells a cell that is missing (NaN) from an empty one ("")
        names, *rows = pandas.read_csv(file, engine="python", **form).to_numpy().tolist()
    except pandas.errors.EmptyDataError:
        return []
    except pandas.errors.ParserError as error:
        raise UserError(f"{first_line(error)}; {SEPARATORS}") from None
    names = [str(name).strip() for name in names]
    check_columns(names, columns)
    for number, row in enumerate(rows, 1):
        if row[-1] != row[-1]:
            raise UserError(f"row {number} has fewer cells than the header, {len(names)}")
    return [dict(zip(names, row, strict=True)) for row in rows]


def check_columns(names: list[str], columns: tuple[str, ...]) -> None:
    """Refuse a table without a text or a label, or with two of them."""
    for column in columns:
        count = names.count(column)
        if count > 1 or (count == 0 and column != "text_pair"):
            there = f"its columns are {', '.join(map(repr, names)):.150}; {SEPARATORS}"
            raise UserError(f"{count or 'no'} columns {column!r}; {there}")


def make_rows(file: str, records: list[dict], columns: tuple[str, ...]) -> list[Row]:
    """Return the rows of these records, in which no text is missing."""
    names = dict.fromkeys(name for record in records for name in record)
    check_columns(list(names), columns)
    texts = [column for column in columns[:-1] if column in names]
    rows = []
    for number, record in enumerate(records, 1):
        cells = [record.get(column) for column in texts]
        for column, value in zip(texts, cells, strict=True):
            if not isinstance(value, str):
                kind = "nothing" if value is None else type(value).__name__
                raise UserError(f"row {number}: column {column!r} holds {kind}, not text")
        try:
            label = label_name(record.get(columns[-1]))
        except UserError as error:
            raise UserError(f"row {number}: {error}") from None
        text, pair = (*cells, None)[:2]
        rows.append(Row(f"{file}, row {number}", text, pair, label))
    return rows


# ---- labels --------------------------------------------------------------------------------------


def label_name(label: Any) -> str:
    """Return a label as text: 1, 1.0, "1", "1.0" and " 1" are all "1"; "" where it is missing."""
    if label is None or label != label:  # NaN
        return ""
    if not isinstance(label, (str, int, float)):
        raise UserError(f"label {label!r:.40} is neither text nor a number")
    name = str(label).strip()
    if isinstance(label, float) and label.is_integer():
        name = str(int(label))  # no 1e+16
    if isinstance(label, float) and math.isinf(label):
        raise UserError(f"label {label} is not a finite number")
    name = re.sub(r"^(-?\d+)\.0$", r"\1", name)
    return "" if name in MISSING else name


def number(name: str) -> float | None:
    """Return the finite number that a label spells, None for any other; Python reads 1_0 as 10."""
    try:
        value = math.nan if "_" in name else float(name)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def drop_unlabelled(rows: list[Row], what: str, notes: list[str], missing: set[str]) -> list[Row]:
    """Return the rows that have a label; a note counts the others."""
    labelled = [row for row in rows if row.label not in {"", *missing}]
    if not labelled:
        raise UserError(f"{what}: none of its {len(rows)} rows has a label")
    if len(labelled) < len(rows):
        left_out = f"{len(rows) - len(labelled)} of {len(rows)} rows have no label"
        notes.append(f"{what}: {left_out}, they are left out")
    return labelled


def make_split(rows: list[Row], numbers: dict[str, int]) -> Split:
    """`numbers` has the class number of each label; {} in a regression."""
    labels = []
    for row in rows:
        label = numbers.get(row.label) if numbers else number(row.label)
        if label is None:
            known = f"one of the classes {', '.join(numbers):.200}" if numbers else "a number"
            raise UserError(f"{row.place}: label {row.label!r:.40} is not {known}")
        labels.append(label)
    pairs = None if rows[0].pair is None else [row.pair for row in rows]
    return Split([row.text for row in rows], pairs, labels)


# ---- your own task -------------------------------------------------------------------------------


def folder_task(folder: str | Path) -> Task:
    """Return the task in FOLDER. Labels are classes, or numbers to predict where all of train are
    numbers and one of them has a fraction.
    """
    folder, notes = Path(folder), []
    columns = ("text", "text_pair", "label")
    tables = {split: read_split(folder, split, columns) for split in ("train", "dev")}
    if len({row.pair is None for rows in tables.values() for row in rows}) > 1:
        raise UserError(f"{folder}: only some of its files have a column 'text_pair'")
    name = folder.resolve().name
    values = [number(row.label) for row in tables["train"] if row.label]
    numeric = None not in values and any(value % 1 for value in values)
    missing = set() if numeric else doubtful_labels(tables)
    for split, rows in tables.items():
        tables[split] = drop_unlabelled(rows, f"{name} {split}", notes, missing)
    numbers, metrics = {}, NUMBER_METRICS
    if not numeric:
        labels = {row.label for row in tables["train"]}
        if len(labels) < 2:
            raise UserError(f"{folder}: every label of train is {labels.pop()!r}: nothing to learn")
        ordered = sorted(labels, key=lambda label: (number(label) is None, number(label), label))
        numbers, metrics = {label: n for n, label in enumerate(ordered)}, CLASS_METRICS
    splits = {split: make_split(rows, numbers) for split, rows in tables.items()}
    classes, dev = tuple(numbers), {"dev": splits["dev"]}
    return Task(name, splits["train"], dev, classes, metrics, notes=tuple(notes))


def doubtful_labels(tables: dict[str, list[Row]]) -> set[str]:
    """Return those of DOUBTFUL that stand for no label: rare in train or in dev."""
    shares = []
    for rows in tables.values():
        counts = Counter(row.label for row in rows)
        shares.append({label: counts[label] / len(rows) for label in DOUBTFUL})
    return {label for label in DOUBTFUL if min(share[label] for share in shares) < FREQUENT}
