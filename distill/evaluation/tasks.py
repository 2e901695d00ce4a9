"""Tasks to fine-tune on: what a task is, how its files are read, and your own from a folder.

Own      FOLDER/train.* and FOLDER/dev.* (.parquet, .jsonl, .ndjson, .json, .csv, .tsv) with the
         columns `text`, `label` and, for pairs, `text_pair`.
"""

import functools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet

from minitransformer.files import UserError, check_regular, first_line, printable, sha256, shortened

# no label: how files spell a missing value, PyTorch's ignore_index
MISSING = set("? -100 #N/A #NA -NaN -nan <NA> N/A NA NULL NaN n/a nan null".split()) | {""}
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
    """`train` is learned from, each split in `scored` is scored by all `metrics`; the first one's
    mean is the headline. `classes` names the class numbers; () makes it a regression. `notes` say
    what was left out. `aligned`: equal rows of the scored splits are translations of the first's.
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

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, **self.scored}

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of all that a score depends on."""
        rows = {name: vars(split) for name, split in self.splits.items()}
        return sha256(json.dumps([self.name, self.classes, self.metrics, rows]))

    def __str__(self) -> str:
        counts = ", ".join(f"{len(split.texts):,} {name}" for name, split in self.splits.items())
        classes = f"{len(self.classes)} classes: {shortened(', '.join(self.classes), 100)}"
        texts = "pairs of texts" if self.train.text_pairs else "single texts"
        return f"{self.name}: {counts}; {classes if self.classes else 'numbers'}; {texts}"


def read_json(file: Path) -> pd.DataFrame:
    """Read one array of objects, or one object per line; errors name the line in either form."""
    text = file.read_text("utf-8-sig")
    if not text.lstrip().startswith("["):
        lines = (line.lstrip("\ufeff") for line in text.split("\n"))  # where files were joined
        text = "[" + ",\n".join(line for line in lines if line.strip()) + "]"
    return pd.DataFrame(json.loads(text), dtype=object)


def read_csv(file: Path, **form) -> pd.DataFrame:
    form |= {"header": None, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    # only this engine tells a cell that is missing (NaN) from an empty one ("")
    table = pd.read_csv(file, engine="python", **form)
    short = table.isna().any(axis=1)
    if short.any():
        raise UserError(f"row {short.idxmax()} has fewer cells than the header")
    table[0] = table[0].str.removeprefix("\ufeff")  # where files were joined
    header = table.iloc[0]
    return table[(table != header).any(axis=1)].set_axis(header.str.strip(), axis=1)


def read_parquet(file: Path) -> pd.DataFrame:
    """Read a file; class numbers of `datasets`, which each file has for itself, become names."""
    table, about = pd.read_parquet(file), pyarrow.parquet.read_schema(file).metadata or {}
    features = json.loads(about.get(b"huggingface", "{}")).get("info", {}).get("features", {})
    if isinstance(column := features.get("label"), dict) and (names := column.get("names")):
        table["label"] = [names[int(n)] if n >= 0 else "" for n in table["label"].fillna(-1)]
    return table


READERS = {
    ".parquet": read_parquet,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".csv": read_csv,  # quoted as spreadsheets do
    ".tsv": functools.partial(read_csv, sep="\t", quoting=3),  # quotes are letters, as in GLUE's
}


def read_split(folder: Path, name: str, columns: tuple[str, ...]) -> Split:
    """Return the split in NAME.*, or in its shards (`train-00000-of-00002.parquet`)."""
    names = re.compile(rf"{name}(-\d+-of-\d+)?({'|'.join(map(re.escape, READERS))})", re.I)
    files = sorted(path for path in folder.glob("*") if names.fullmatch(path.name))
    if len({(path.suffix, path.stem == name) for path in files}) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(f"{folder}: expected one {name} with {', '.join(READERS)}, found {found}")
    shards = re.search(r"-of-(\d+)", files[0].name)
    if shards and len(files) != int(shards[1]):
        raise UserError(f"{folder}: {len(files)} files of {name}, their names say {shards[1]}")
    tables = []
    try:
        for file in files:
            check_regular(file)
            tables.append(READERS[file.suffix.lower()](file))
        file = folder / f"{name}-*" if shards else file  # rows are counted over all shards
        return make_split(pd.concat(tables), columns)
    except Exception as error:  # whatever a reader raises says what is wrong
        raise UserError(f"{file}: {first_line(error)}") from None


def make_split(table: pd.DataFrame, columns: tuple[str, ...]) -> Split:
    """Return a split, its labels as their names; `columns`: text, pair if there is one, label."""
    if table.empty:
        raise UserError("no rows in it")
    cells, names = {}, list(table.columns)
    for name in columns:
        count = names.count(name)
        if count == 1:
            cells[name] = table[name].tolist()
        elif count or name != "text_pair":
            hint = "a .csv is separated by commas, a .tsv by tabs"
            raise UserError(f"{count} columns {name!r} among {names!s:.120}; {hint}")
    *texts, labels = cells
    for name, column in cells.items():
        for number, value in enumerate(column, 1):
            scalar = name == labels and not hasattr(value, "__len__")  # a list is several labels
            if not (scalar or isinstance(value, str)):
                raise UserError(f"row {number}: column {name!r} holds {value!r:.40}, not text")
    pairs = cells[texts[1]] if len(texts) > 1 else None
    return Split(cells[texts[0]], pairs, [label_name(label) for label in cells[labels]])


def label_name(label) -> str:
    """Return a label as text: 1, 1.0, "1", "1.0" and " 1" are all "1"; "" where it is missing."""
    name = "" if label is None else re.sub(r"^(-?\d+)\.0+$", r"\1", str(label).strip())
    return "" if name in MISSING else "0" if name == "-0" else name


def number(name: str) -> float | None:
    """Return the finite number that a label spells, None for any other; Python reads 1_0 as 10."""
    try:
        return float(name) if math.isfinite(float(name)) and "_" not in name else None
    except ValueError:
        return None


def numbered(split: Split, numbers: dict, missing: set, what: str, notes: list[str]) -> Split:
    """Return the rows with a label, now a number of `numbers` or else as spelt; note the others."""
    rows = [n for n, label in enumerate(split.labels) if label not in missing]
    total, labels = len(split.labels), []
    if not rows:
        raise UserError(f"{what}: none of its {total} rows has a label")
    if len(rows) < total:
        notes.append(f"{what}: {total - len(rows)} of {total} rows have no label and are left out")
    for n in rows:
        labels.append(numbers.get(split.labels[n]) if numbers else number(split.labels[n]))
        if labels[-1] is None:
            known = f"one of the classes {', '.join(numbers):.200}" if numbers else "a number"
            raise UserError(f"{what}: label {split.labels[n]!r:.40} is not {known}")
    pairs = split.text_pairs and [split.text_pairs[n] for n in rows]
    return Split([split.texts[n] for n in rows], pairs, labels)


def folder_task(folder: str | Path) -> Task:
    """Return the task in FOLDER: a regression if train's labels are numbers, at least one with a
    fraction; else classes.
    """
    folder, notes = Path(folder), []
    columns = ("text", "text_pair", "label")
    splits = {name: read_split(folder, name, columns) for name in ("train", "dev")}
    if len({split.text_pairs is None for split in splits.values()}) > 1:
        raise UserError(f"{folder}: only one of train and dev has a column 'text_pair'")
    by_split = [split.labels for split in splits.values()]
    rare = {x for x in DOUBTFUL if any(part.count(x) < FREQUENT * len(part) for part in by_split)}
    missing, numbers, metrics = {"", *rare & {"-"}}, {}, ("pearson", "spearman")
    labels = [label for label in by_split[0] if label not in missing]
    values = [number(label) for label in labels]
    odd = [label for label, value in zip(labels, values, strict=True) if value is None]
    fractions = any(value % 1 for value in values if value is not None)
    if fractions and 0 < len(odd) < 0.1 * len(labels):
        raise UserError(f"{folder}: label {odd[0]!r:.40} is no number, most are; fix or empty it")
    if odd or not fractions:
        missing |= rare
        classes = set(by_split[0]) - missing
        if len(classes) < 2:
            raise UserError(f"{folder}: train has {len(classes)} classes; a task needs at least 2")
        order = sorted(classes, key=lambda name: (number(name) is None, number(name) or 0, name))
        numbers, metrics = {label: n for n, label in enumerate(order)}, ("accuracy",)
    name = printable(folder.resolve().name)
    for key, split in splits.items():
        splits[key] = numbered(split, numbers, missing, f"{name} {key}", notes)
    known, dev = ({*zip(s.texts, s.text_pairs or s.texts, strict=True)} for s in splits.values())
    if both := len(known & dev):
        notes.append(f"{name}: {both} of {len(dev)} texts of dev are in train, too")
    return Task(name, splits.pop("train"), splits, tuple(numbers), metrics, tuple(notes))
