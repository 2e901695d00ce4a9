"""Tasks to fine-tune on: what a task is, how its files are read, and your own from a folder.

A task   sentences (or pairs of them) with a label each: a train split that is learned from, and
         one or more named splits that are scored. docs_tasks.py and glue.py have ready ones.
Own      FOLDER/train.* and FOLDER/dev.* (.parquet, .jsonl, .csv, .tsv) with the columns `text`,
         `label` and, for pairs, `text_pair`.
"""

import csv
import hashlib
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from minitransformer.errors import UserError

CLASS_METRICS, NUMBER_METRICS = ("accuracy", "macro-f1", "matthews"), ("pearson", "spearman")
SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")


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
    (XNLI: English). A note is for the user: what was left out of a file."""

    name: str
    train: Split
    scored: dict[str, Split]
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    chosen_on: Split | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def hash(self) -> str:
        """sha256 of all that a score depends on."""
        splits = {"train": self.train, "chosen_on": self.chosen_on} | {
            f"scored {n}": s for n, s in self.scored.items()
        }
        content = [
            self.name,
            self.classes,
            self.metrics,
            [[n, s and vars(s)] for n, s in splits.items()],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# ---- files ---------------------------------------------------------------------------------------


def find_split(folder: Path, *names: str) -> list[Path]:
    """The file of a split, or its shards (`train-00000-of-00002.parquet`); the first name found."""
    for name in names:
        found = [
            folder / f"{name}{suffix}"
            for suffix in SUFFIXES
            if (folder / f"{name}{suffix}").is_file()
        ]
        if len(found) > 1:
            raise UserError(f"{folder} has {' and '.join(f.name for f in found)}: keep one of them")
        if found := found or sorted(folder.glob(f"{name}-*-of-*.parquet")):
            return found
    there = sorted(f.name for f in folder.iterdir())[:8] if folder.is_dir() else []
    raise UserError(
        f"{folder}: no {' or '.join(names)} with one of {', '.join(SUFFIXES)};"
        f" {'it holds ' + ', '.join(there) if there else 'no such folder or nothing in it'}"
    )


def read_rows(path: Path) -> tuple[list[str], list[tuple[str, dict]]]:
    """(columns, [(place, {column: value})]) of a file; a place is "FILE, line 3" or "FILE, row 3".

    A .tsv is split at its tabs and its quotes are letters, as in GLUE's; a .csv quotes as
    spreadsheets do.
    Errors   UserError naming file and line for whatever cannot be read.
    """
    reader = {
        ".parquet": _read_parquet,
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".tsv": _read_tsv,
    }[path.suffix]
    try:
        columns, rows = reader(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not rows:
        raise UserError(f"{path}: no rows in it")
    return columns, rows


def decoded(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason})") from None


def _read_parquet(path):
    import pyarrow  # here, because it takes half a second that other tasks need not pay
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path}: not a readable parquet file ({str(error).splitlines()[0]})"
        ) from None
    return table.column_names, [
        (f"{path}, row {n}", row) for n, row in enumerate(table.to_pylist(), 1)
    ]


def _read_jsonl(path):
    rows, columns = [], {}
    for number, line in enumerate(decoded(path).split("\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{place}: not JSON ({error}); expected one object a line"
                ) from None
            if not isinstance(row, dict):
                raise UserError(f"{place}: {type(row).__name__}, expected one object a line")
            rows.append((place, row))
            columns |= row
    return list(columns), rows


def _read_csv(path):
    csv.field_size_limit(2**30)
    lines = csv.reader(io.StringIO(decoded(path), newline=""), strict=True)
    rows = []
    try:
        for cells in lines:
            if cells:
                rows.append((f"{path}, line {lines.line_num}", cells))
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: {error}") from None
    return with_header(rows)


def _read_tsv(path):
    return with_header(tsv_cells(path))


def tsv_cells(path: Path) -> list[tuple[str, list[str]]]:
    """[(place, cells)] of the lines of a .tsv that are not blank."""
    lines = enumerate(decoded(path).split("\n"), 1)
    return [
        (f"{path}, line {n}", line.rstrip("\r").split("\t")) for n, line in lines if line.strip()
    ]


def with_header(rows, ragged=False):
    """Cells to {column: value} by the first row. `ragged`: rows may lack cells (QQP)."""
    if not rows:
        return [], []
    columns = rows[0][1]
    for place, cells in rows[1:]:
        if len(cells) != len(columns) and not ragged:
            raise UserError(
                f"{place}: {len(cells)} cells, but the header has {len(columns)} columns"
            )
    return columns, [(place, dict(zip(columns, cells, strict=False))) for place, cells in rows[1:]]


def text_cell(row: dict, column: str, place: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        kind = "nothing" if value is None else type(value).__name__
        raise UserError(f"{place}: column {column!r} holds {kind}, not text")
    return value


def need_columns(path: Path, columns, wanted) -> None:
    missing = [name for name in wanted if name not in columns]
    if missing:
        there = ", ".join(map(repr, columns))
        raise UserError(f"{path}: no column {' or '.join(map(repr, missing))}; it has {there}")


# ---- your own task -------------------------------------------------------------------------------


def folder_task(folder: str | Path, regression: bool = False) -> Task:
    """The task in FOLDER. Labels that are strings or integers are classes; if they are numbers and
    one of train has a fraction, or with `regression`, they are numbers to predict."""
    folder = Path(folder)
    tables = {}
    for split in ("train", "dev"):
        tables[split] = []
        for path in find_split(folder, split):
            columns, rows = read_rows(path)
            need_columns(path, columns, ("text", "label"))
            for place, row in rows:
                pair = text_cell(row, "text_pair", place) if "text_pair" in columns else None
                tables[split].append((place, text_cell(row, "text", place), pair, row.get("label")))
        if len({pair is None for _, _, pair, _ in tables[split]}) > 1:
            raise UserError(
                f"{folder}: some files of {split} have a column 'text_pair' and some have none"
            )
    if (tables["train"][0][2] is None) != (tables["dev"][0][2] is None):
        raise UserError(f"{folder}: only one of train and dev has a column 'text_pair'")
    numbers = [number(label) for *_, label in tables["train"]]
    regression = regression or (None not in numbers and any(n != int(n) for n in numbers))
    classes = (
        () if regression else class_names([(place, label) for place, *_, label in tables["train"]])
    )
    splits = {}
    for split, rows in tables.items():
        labels = [label_of(label, classes, place) for place, *_, label in rows]
        pairs = None if rows[0][2] is None else [pair for _, _, pair, _ in rows]
        splits[split] = Split([text for _, text, _, _ in rows], pairs, labels)
    metrics = CLASS_METRICS if classes else NUMBER_METRICS
    return Task(folder.resolve().name, splits["train"], {"dev": splits["dev"]}, classes, metrics)


def number(label) -> float | None:
    """The finite number that a label is or spells, else None."""
    try:
        value = float(label) if isinstance(label, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def class_name(label, place: str) -> str:
    """1, 1.0, "1" and "1.0" are one class; an empty cell, null or NaN is none."""
    value = number(label)
    if (
        label == ""
        or not isinstance(label, (str, int, float))
        or (isinstance(label, float) and value is None)
    ):
        raise UserError(f"{place}: no label, or neither text nor a number ({label!r:.40})")
    spelt = isinstance(label, float) or (isinstance(label, str) and "." in label)
    return str(int(value)) if spelt and value is not None and value == int(value) else str(label)


def class_names(labels) -> tuple[str, ...]:
    names = {class_name(label, place) for place, label in labels}
    if len(names) < 2:
        raise UserError(
            f"{labels[0][0]}: every label of train is {names.pop()!r}: nothing to learn"
        )
    return tuple(sorted(names, key=lambda name: (number(name) is None, number(name) or 0.0, name)))


def label_of(label, classes, place: str) -> int | float:
    """The class number, or for a regression (no classes) the number itself."""
    if not classes:
        if (value := number(label)) is None:
            raise UserError(
                f"{place}: label {label!r:.40} is not a number, which a regression needs"
            )
        return value
    name = class_name(label, place)
    if name not in classes:
        known = ", ".join(classes)
        raise UserError(f"{place}: label {name!r:.40} does not occur in train: {known:.200}")
    return classes.index(name)
