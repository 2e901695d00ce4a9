"""Tasks to fine-tune on: what a task is, how its files are read, and your own from a folder.

A task   sentences (or pairs of them) with a label each: a train split that is learned from, and
         one or more named splits that are scored. named_tasks.py and glue.py have ready ones.
Own      FOLDER/train.* and FOLDER/dev.* (.parquet, .jsonl, .csv, .tsv) with the columns `text`,
         `label` and, for pairs, `text_pair`.
"""

import csv
import functools
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from distill.evaluation.old_readers import lines, read_jsonl, read_parquet, refuse_twice
from minitransformer.files import UserError

CLASS_METRICS, NUMBER_METRICS = ("accuracy", "macro-f1", "matthews"), ("pearson", "spearman")
OWN_COLUMNS = ("text", "text_pair", "label")  # text_pair may be missing


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


# ---- files ---------------------------------------------------------------------------------------


class Row(NamedTuple):
    """An example of a file; `place` is "FILE, line 3" or "FILE, row 3", and the label is as
    read_label returns it, None where there is none.
    """

    place: str
    text: str
    pair: str | None
    label: float | str | None


def find_split(folder: Path, name: str) -> list[Path]:
    """Return the file of a split, or its shards (`train-00000-of-00002.parquet`)."""
    files = [folder / f"{name}{suffix}" for suffix in READERS]
    files = [file for file in files if file.is_file()]
    files = files or sorted(folder.glob(f"{name}-*-of-*.parquet"))
    if len({file.suffix for file in files}) > 1:
        raise UserError(f"{folder} has {' and '.join(f.name for f in files)}: keep one of them")
    if not files:
        raise UserError(f"{folder}: no {name} with one of {', '.join(READERS)}")
    return files


def read_split(folder: Path, name: str, columns: tuple[str | None, ...]) -> list[Row]:
    """Return the rows of a split; `columns` name the text, the pair (or None) and the label.

    Errors   UserError naming file and line for whatever cannot be read.
    """
    rows = []
    for file in find_split(folder, name):
        records = list(READERS[file.suffix](file, *filter(None, columns)))
        if not records:
            raise UserError(f"{file}: no rows in it")
        wanted = columns
        if columns == OWN_COLUMNS and not any("text_pair" in record for _, record in records):
            wanted = ("text", None, "label")
        rows += [make_row(f"{file}, {place}", record, wanted) for place, record in records]
        if not any(columns[2] in record for _, record in records):
            problem = f"none of the {len(records)} rows has a {columns[2]!r}"
            raise UserError(f"{file}: {problem}; {columns_of(records[0][1])}")
    return rows


def columns_of(record: dict) -> str:
    return f"its columns are {', '.join(map(repr, record)):.200}"


def make_row(place: str, record: dict, columns: tuple[str | None, ...]) -> Row:
    text, pair, label = (record.get(column) for column in columns)
    for column, value in ((columns[0], text), (columns[1], pair)):
        if column and not isinstance(value, str):
            kind = "nothing" if value is None else type(value).__name__
            problem = f"column {column!r} holds {kind}, not text; {columns_of(record)}"
            raise UserError(f"{place}: {problem}")
    return Row(place, text, pair, read_label(place, label))


# A reader takes the columns that are wanted and yields (place, {column: value}): where the row
# stands, and what it holds.


def read_cells(file: Path, *wanted: str) -> Iterator[tuple[str, dict]]:
    """A .csv quotes as spreadsheets do; the quotes of a .tsv are plain letters, as in GLUE's.

    Not pandas: it fills the missing cell of a short line with "" and says nothing.
    """
    form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.suffix == ".tsv" else {}
    csv.field_size_limit(2**30)
    reader = csv.reader((line for _, line in lines(file)), strict=True, **form)
    try:
        columns = next(reader, [])
        refuse_twice(file, columns, wanted)
        for cells in reader:
            if not cells:  # a blank line
                continue
            if len(cells) != len(columns):
                raise csv.Error(f"{len(cells)} cells, the header has {len(columns)}")
            yield f"line {reader.line_num}", dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}") from None


READERS = {".parquet": read_parquet, ".jsonl": read_jsonl, ".csv": read_cells, ".tsv": read_cells}


# ---- labels --------------------------------------------------------------------------------------


def read_label(place: str, label: Any) -> float | str | None:
    """The label 1, 1.0, "1" or "1.0" is a number. "01", "1e5" and integers that a float cannot hold
    are text, so that no two classes become one.
    """
    if label is None or label in ("", "-") or label != label:  # NaN
        return None
    value = number(label)
    if isinstance(label, str):
        written = () if value is None else (str(value), f"{value:.0f}")
        return value if label.strip() in written else label
    if value is None:
        raise UserError(f"{place}: label {label!r:.40} is neither text nor a finite number")
    return str(label) if isinstance(label, int) and label != value else value


def number(label: Any) -> float | None:
    """Return the finite number that a label is or spells, None for any other."""
    try:
        value = math.nan if "_" in str(label) else float(label)  # Python reads 1_0 as 10
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def drop_unlabelled(rows: list[Row], what: str, notes: list[str], minus_one: bool) -> list[Row]:
    """Return the rows that have a label; a note counts the others, of which -1 is one unless it
    is a label here (`minus_one`).
    """
    missing = (None,) if minus_one else (None, -1.0)
    labelled = [row for row in rows if row.label not in missing]
    if not labelled:
        raise UserError(f"{rows[0].place}: none of the {len(rows)} rows of {what} has a 'label'")
    if len(labelled) < len(rows):
        left_out = f"{len(rows) - len(labelled)} of {len(rows)} rows are left out"
        notes.append(f"{what}: {left_out}, their label is empty, null, '-' or -1")
    return labelled


def make_split(rows: list[Row], numbers: dict[float | str, int]) -> Split:
    """`numbers` has the class number of each label; {} in a regression."""
    labels = []
    for row in rows:
        if numbers and row.label not in numbers:
            known = ", ".join(map(class_name, numbers))
            label = class_name(row.label)
            raise UserError(f"{row.place}: label {label!r:.40} is none of the classes {known:.200}")
        if not numbers and number(row.label) is None:
            label = f"label {row.label!r:.40}"
            raise UserError(f"{row.place}: {label} is not a number, as those of train are")
        labels.append(numbers[row.label] if numbers else number(row.label))
    pairs = None if rows[0].pair is None else [row.pair for row in rows]
    return Split([row.text for row in rows], pairs, labels)


def class_name(label: float | str) -> str:
    return f"{label:.0f}" if isinstance(label, float) and label.is_integer() else str(label)


# ---- your own task -------------------------------------------------------------------------------


def folder_task(folder: str | Path, regression: bool = False) -> Task:
    """Return the task in FOLDER. Labels that are strings or integers are classes; if they are
    numbers and one of train has a fraction, or with `regression`, they are numbers to predict.
    """
    folder, notes = Path(folder), []
    tables = {split: read_split(folder, split, OWN_COLUMNS) for split in ("train", "dev")}
    if len({row.pair is None for rows in tables.values() for row in rows}) > 1:
        raise UserError(f"{folder}: only some of its files have a column 'text_pair'")
    name = folder.resolve().name
    # -1 is a label, and not the lack of one, where others are negative or all are -1 or 1
    labels = {row.label for rows in tables.values() for row in rows}
    others = {number(label) for label in labels} - {None, -1.0}
    minus_one = regression or others == {1.0} or any(n < 0 or n % 1 for n in others)
    for split, rows in tables.items():
        tables[split] = drop_unlabelled(rows, f"{name} {split}", notes, minus_one)

    labels = {row.label for row in tables["train"]}
    values = {number(label) for label in labels}
    if regression or not (None in values or all(value.is_integer() for value in values)):
        numbers, metrics = {}, NUMBER_METRICS
    elif len(labels) < 2:
        place, only = tables["train"][0].place, class_name(labels.pop())
        raise UserError(f"{place}: every label of train is {only!r}: nothing to learn")
    else:  # numbers in their order, then words
        ordered = sorted(labels, key=lambda label: (isinstance(label, str), label))
        numbers, metrics = {label: n for n, label in enumerate(ordered)}, CLASS_METRICS
    splits = {split: make_split(rows, numbers) for split, rows in tables.items()}
    classes = tuple(map(class_name, numbers))
    return Task(name, splits["train"], {"dev": splits["dev"]}, classes, metrics, notes=tuple(notes))
