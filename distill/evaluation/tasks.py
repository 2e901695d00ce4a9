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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minitransformer.files import UserError, first_line

CLASS_METRICS, NUMBER_METRICS = ("accuracy", "macro-f1"), ("pearson", "spearman")
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SEPARATORS = "a .csv is separated by commas, a .tsv by tabs"
# no label: what pandas reads as "not a number", what people write, PyTorch's ignore_index
MISSING = set("? -100 #N/A #NA -NaN -nan <NA> N/A NA NULL NaN None n/a nan null".split()) | {""}
DOUBTFUL = {"-", "-1"}  # no label in some data sets, a class in others
FREQUENT = 0.05  # the share of train and of dev from which a doubtful label is a class


@dataclass(frozen=True)
class Split:
    """M examples: texts (and text_pairs), labels: class numbers or, in a regression, numbers."""

    texts: list[str]
    text_pairs: list[str] | None
    labels: list


@dataclass(frozen=True)
class Task:
    """`classes` names the class numbers; () makes it a regression. Each of `metrics` is measured on
    each split in `scored`; the headline is the first metric, its mean over those splits. A note is
    for the user: what was left out of a file. `aligned`: equal rows of the scored splits are
    translations of each other, the first split has the originals. The last three are the
    fine-tuning where the command line says nothing else.
    """

    name: str
    train: Split
    scored: dict[str, Split]
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    notes: tuple[str, ...] = ()
    aligned: bool = False
    lr: float = 1e-4
    epochs: int = 3
    batch_size: int = 16

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of all that a score depends on."""
        rows = {name: vars(split) for name, split in {"train": self.train, **self.scored}.items()}
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


def read_split(folder: Path, name: str, columns: tuple[str, ...]) -> Split:
    """Return a split, its labels as their names; `columns`: text, pair if there is one, label."""
    parts = []
    for file in find_split(folder, name):
        try:
            parts.append(make_split(read_records(file, columns), columns))
        except Exception as error:  # whatever pandas and pyarrow raise says what is wrong
            raise UserError(f"{file}: {first_line(error)}") from None
    texts, pairs, labels = (
        [value for part in column for value in part or []]
        for column in zip(*(vars(part).values() for part in parts), strict=True)
    )
    return Split(texts, pairs or None, labels)


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
        return read_json_records(file.read_text("utf-8-sig"))
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


def read_json_records(text: str) -> list[dict]:
    """Return the objects of one array, or of one a line."""
    if text.startswith("version https://git-lfs."):
        raise UserError("a Git LFS pointer: run git lfs pull")
    records = json.loads(text) if text.lstrip().startswith("[") else []
    for number, line in enumerate(() if records else text.split("\n"), 1):
        try:  # a byte order mark stands where files were joined
            records += [json.loads(line.lstrip("\ufeff"))] if line.strip() else []
        except ValueError:
            raise UserError(f"line {number}: not JSON; expected one object a line") from None
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise UserError(f"row {number}: {type(record).__name__}, not an object")
    return records


def check_columns(names: list[str], columns: tuple[str, ...]) -> None:
    """Refuse a table without a text or a label, or with two of them."""
    for column in columns:
        count = names.count(column)
        if count > 1 or (count == 0 and column != "text_pair"):
            there = f"its columns are {', '.join(map(repr, names)):.150}; {SEPARATORS}"
            raise UserError(f"{count or 'no'} columns {column!r}; {there}")


def make_split(records: list[dict], columns: tuple[str, ...]) -> Split:
    """Return the split of these records, in which no text is missing."""
    if not records:
        raise UserError("no rows in it")
    names = list(dict.fromkeys(name for record in records for name in record))
    check_columns(names, columns)
    cells = {name: [record.get(name) for record in records] for name in columns if name in names}
    *texts, labels = cells
    for column in texts:
        for number, value in enumerate(cells[column], 1):
            if not isinstance(value, str):
                kind = "nothing" if value is None else type(value).__name__
                raise UserError(f"row {number}: column {column!r} holds {kind}, not text")
    return Split(
        cells[texts[0]],
        cells[texts[1]] if len(texts) > 1 else None,
        [label_name(label) for label in cells[labels]],
    )


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


def labelled(split: Split, what: str, notes: list[str], missing: set[str]) -> Split:
    """Return the rows that have a label; a note counts the others."""
    rows = [n for n, label in enumerate(split.labels) if label not in {"", *missing}]
    total = len(split.labels)
    if not rows:
        raise UserError(f"{what}: none of its {total} rows has a label")
    if len(rows) < total:
        notes.append(f"{what}: {total - len(rows)} of {total} rows have no label and are left out")
    columns = [column and [column[n] for n in rows] for column in vars(split).values()]
    return Split(*columns)


def numbered(split: Split, numbers: dict[str, int], what: str) -> Split:
    """Replace the names of labels by `numbers` or, where that is {}, by what they spell."""
    labels = [numbers.get(name) if numbers else number(name) for name in split.labels]
    if None in labels:
        name = split.labels[labels.index(None)]
        known = f"one of the classes {', '.join(numbers):.200}" if numbers else "a number"
        raise UserError(f"{what}: label {name!r:.40} is not {known}")
    return replace(split, labels=labels)


# ---- your own task -------------------------------------------------------------------------------


def folder_task(folder: str | Path) -> Task:
    """Return the task in FOLDER. Labels are classes, or numbers to predict where all of train are
    numbers and one of them has a fraction.
    """
    folder, notes = Path(folder), []
    columns = ("text", "text_pair", "label")
    splits = {name: read_split(folder, name, columns) for name in ("train", "dev")}
    if len({split.text_pairs is None for split in splits.values()}) > 1:
        raise UserError(f"{folder}: only one of train and dev has a column 'text_pair'")
    name = folder.resolve().name
    values = [number(label) for label in splits["train"].labels if label]
    numeric = None not in values and any(value % 1 for value in values)
    missing = set() if numeric else doubtful_labels(splits)
    for key, split in splits.items():
        splits[key] = labelled(split, f"{name} {key}", notes, missing)
    numbers, metrics = {}, NUMBER_METRICS
    if not numeric:
        labels = set(splits["train"].labels)
        if len(labels) < 2:
            raise UserError(f"{folder}: every label of train is {labels.pop()!r}: nothing to learn")
        ordered = sorted(labels, key=lambda name: (number(name) is None, number(name) or 0, name))
        numbers, metrics = {label: n for n, label in enumerate(ordered)}, CLASS_METRICS
    train, dev = (numbered(split, numbers, f"{folder} {key}") for key, split in splits.items())
    return Task(name, train, {"dev": dev}, tuple(numbers), metrics, tuple(notes))


def doubtful_labels(splits: dict[str, Split]) -> set[str]:
    """Return those of DOUBTFUL that stand for no label: rare in train or in dev."""
    shares = {
        label: [split.labels.count(label) / len(split.labels) for split in splits.values()]
        for label in DOUBTFUL
    }
    return {label for label, by_split in shares.items() if min(by_split) < FREQUENT}
