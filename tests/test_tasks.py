"""Tasks of one's own: every form of file and label; one line for what is wrong."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from distill.evaluation.tasks import folder_task
from minitransformer.files import UserError


def write(path, rows, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        cells = [list(column) for column in zip(*rows, strict=True)]
        pyarrow.parquet.write_table(pyarrow.table(cells, names=columns), path)
    elif path.suffix == ".jsonl":
        objects = (dict(zip(columns, row, strict=True)) for row in rows)
        path.write_text("".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects), "utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    else:
        lines = ["\t".join(map(str, row)) for row in [columns, *rows]]
        path.write_text("\n".join(lines) + "\n", "utf-8")


def own(folder, columns, train, dev, suffix="jsonl"):
    write(folder / f"train.{suffix}", train, columns)
    write(folder / f"dev.{suffix}", dev, columns)
    return folder


SUFFIXES = ("parquet", "jsonl", "csv", "tsv")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_own_classes_keep_their_names_and_numbers_their_order(suffix, tmp_path):
    rows = [["one", "x", "nein"], ["two", "y", "ja"], ["three", "z", "nein"]]
    task = folder_task(own(tmp_path / "votes", ["text", "text_pair", "label"], rows, rows, suffix))
    assert (task.name, task.classes, task.train.labels) == ("votes", ("ja", "nein"), [1, 0, 1])
    assert task.train.text_pairs == ["x", "y", "z"]
    assert task.metrics == ("accuracy", "macro-f1", "matthews")
    rows = [["a", 10], ["b", 2], ["c", 0]]
    task = folder_task(own(tmp_path / "numbers", ["text", "label"], rows, rows, suffix))
    assert (task.classes, task.train.labels) == (("0", "2", "10"), [2, 1, 0])
    assert task.train.text_pairs is None


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("regression", [False, True])
def test_own_fractions_or_the_flag_make_a_regression(suffix, regression, tmp_path):
    rows = [["a", 1 if regression else 0.5], ["b", 2], ["c", -1]]
    folder = own(tmp_path, ["text", "label"], rows, rows, suffix)
    task = folder_task(folder, regression)
    assert (task.classes, task.train.labels) == ((), [row[1] for row in rows])  # -1 is a number
    assert (task.metrics, task.notes) == (("pearson", "spearman"), ())


def test_one_class_may_be_spelt_in_several_ways(tmp_path):
    rows = [["a", label] for label in (1, 1.0, "1", "1.0", 0, "0.0", "x")]
    task = folder_task(own(tmp_path, ["text", "label"], rows, rows))
    assert (task.classes, task.train.labels) == (("0", "1", "x"), [1, 1, 1, 1, 0, 0, 2])


def test_labels_that_are_spelt_in_two_ways_are_two_classes(tmp_path):
    labels = ["1_1", "11", "1e5", "100000", "01", "1", "1.50", "1.5"]
    labels += ["12345678901234567", "12345678901234568"]
    rows = [["text", label] for label in labels]
    for suffix in SUFFIXES:
        task = folder_task(own(tmp_path / suffix, ["text", "label"], rows, rows, suffix))
        assert [task.classes[label] for label in task.train.labels] == labels
    train = [["text", label] for label in labels[-5:]]
    folder = own(tmp_path / "mixed", ["text", "label"], train[:2] + train[-2:], [], "csv")
    (folder / "dev.csv").unlink()
    dev = [["a", int(labels[-1])], ["a", int(labels[-2])], ["a", 1]]
    write(folder / "dev.jsonl", dev, ["text", "label"])
    (folder / "train.csv").write_text("text,label\n" + "".join(f"a,{row[1]}\n" for row in dev))
    task = folder_task(folder)  # a number and how it is written are one
    assert task.train.labels == task.scored["dev"].labels
    assert len(task.classes) == 3


def test_a_regression_takes_every_spelling_of_a_number(tmp_path):
    rows = [["text", label] for label in ("01", "1e1", "1.50", "-.5", " 2")]
    task = folder_task(own(tmp_path, ["text", "label"], rows, rows, "csv"))
    assert (task.classes, task.train.labels) == ((), [1.0, 10.0, 1.5, -0.5, 2.0])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_columns_may_hold_anything(suffix, tmp_path):
    rows, columns = [["a", "x", 1, 2], ["b", "y", 3, 4]], ["text", "label", "", ""]
    if suffix == "parquet":
        far = pyarrow.array([2**50] * 2, pyarrow.timestamp("ms"))
        table = pyarrow.table([["a", "b"], ["x", "y"], far, far], names=columns)
        for split in ("train", "dev"):
            pyarrow.parquet.write_table(table, tmp_path / f"{split}.parquet")
    else:
        own(tmp_path, columns, rows, rows, suffix)
    assert folder_task(tmp_path).train.texts == ["a", "b"]


def test_a_parquet_file_with_two_texts_or_a_damaged_page(tmp_path):
    file, rows = tmp_path / "train.parquet", [["a" * 99, "x"], ["b" * 99, "y"]]
    own(tmp_path, ["text", "label"], rows, rows, "parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:8] + b"\xfe" * 60 + whole[68:])
    with pytest.raises(UserError, match=r"train.parquet: not a readable parquet file"):
        folder_task(tmp_path)
    table = pyarrow.table([["a"], ["b"], ["x"]], names=["text", "text", "label"])
    pyarrow.parquet.write_table(table, file)
    with pytest.raises(UserError, match=r"train.parquet: 2 columns are called 'text'"):
        folder_task(tmp_path)


@pytest.mark.parametrize(
    ("labels", "classes", "note"),
    [
        ([0, 1, -1, 1], ("0", "1"), "train: 1 of 4 rows are left out, their label is empty"),
        (["x", "-", "", "y"], ("x", "y"), "train: 2 of 4 rows are left out"),
        ([None, 1, float("nan"), 0], ("0", "1"), "train: 2 of 4 rows are left out"),
        ([-1, 1, 1, -1], ("-1", "1"), None),
        (["-1", "+1", "+1", "-1"], ("-1", "+1"), None),
        ([-2, -1, 1, 2], ("-2", "-1", "1", "2"), None),
    ],
)
def test_rows_without_a_label_are_counted_and_never_a_class(labels, classes, note, tmp_path):
    rows = [["text", label] for label in labels]
    task = folder_task(own(tmp_path / "task", ["text", "label"], rows, rows))
    assert task.classes == classes
    assert len(task.train.texts) == len(task.train.labels)
    assert (note in " ".join(task.notes)) if note else task.notes == ()


def test_own_shards_are_read_in_order(tmp_path):
    for i in range(2):
        file = tmp_path / f"train-0000{i}-of-00002.parquet"
        write(file, [[f"t{i}", f"l{i}"]], ["text", "label"])
    write(tmp_path / "dev.csv", [["d", "l1"]], ["text", "label"])
    task = folder_task(tmp_path)
    assert (task.train.texts, task.scored["dev"].labels) == (["t0", "t1"], [1])


LINE = '{"text": "a", "label": "x"}\n'
GOOD = LINE + '{"text": "b", "label": "y"}\n'
WRONG = {
    "no dev": ({"train.jsonl": GOOD}, "no dev with one of .parquet, .jsonl, .csv, .tsv"),
    "two trains": ({"train.jsonl": GOOD, "train.csv": "text\n"}, "train.jsonl and train.csv: keep"),
    "empty file": ({"train.jsonl": GOOD, "dev.jsonl": ""}, "dev.jsonl: no rows in it"),
    "header alone": ({"train.tsv": "text\tlabel\n"}, "train.tsv: no rows in it"),
    "wrong columns": ({"train.csv": "txt,y\na,b\n"}, "line 2: column 'text' holds noth"),
    "a text twice": ({"train.csv": "text,text,label\na,b,c\n"}, "train.csv: 2 columns are called"),
    "a label twice": ({"train.tsv": "label\ttext\tlabel\na\tb\tc\n"}, "2 columns are called 'la"),
    "a space in the header": ({"train.csv": "text, label\na,b\n"},
                              "none of the 1 rows has a 'label'; its columns are 'text', ' label'"),
    "no object": ({"train.jsonl": LINE + "3\n"}, "train.jsonl, line 2: holds int, not an object"),
    "a number as text": ({"train.jsonl": '{"text": 1, "label": 1}'}, "line 1: column 'text' holds"),
    "no label": ({"train.jsonl": '{"text": "x", "label": null}'}, "none of the 1 rows of task tr"),
    "a list as label": ({"train.jsonl": '{"text": "a", "label": []}'}, "line 1: label [] is nei"),
    "infinite": ({"train.jsonl": LINE + '{"text": "x", "label": Infinity}'}, "label inf is n"),
    "too many cells": ({"train.csv": 'text,label\n"a\nb",x\nc,d,e\n'}, "line 4: 3 cells, the"),
    "too few cells": ({"train.tsv": "text\tlabel\na\tb\nc\n"}, "train.tsv, line 3: 1 cells, the"),
    "an open quote": ({"train.csv": 'text,label\na,b\n"c,d\n'}, "train.csv, line 3: unexpected"),
    "not UTF-8": ({"train.csv": b"text,label\na,b\n\xff,d\n"}, "train.csv, line 3: not UTF-8"),
    "UTF-16": ({"train.csv": "text,label\na,b\n".encode("utf-16-le")}, "line 1: 10 of the fir"),
    "an underscore": ({"train.csv": "text,label\na,.5\n", "dev.csv": "text,label\na,1_0\n"},
                      "dev.csv, line 2: label '1_0' is not a number"),
    "not parquet": ({"train.parquet": b"PAR1"}, "train.parquet: not a readable parquet file"),
    "one class": ({"train.csv": "text,label\na,x\nb,x\n", "dev.jsonl": GOOD}, "every label of t"),
    "new label": ({"train.jsonl": GOOD, "dev.jsonl": LINE.replace('"x"', '"z"')},
                  "dev.jsonl, line 1: label 'z' is none of the classes x, y"),
    "a word among numbers": ({"train.csv": "text,label\na,.5\n", "dev.csv": "text,label\na,x\n"},
                             "dev.csv, line 2: label 'x' is not a number"),
    "pairs in train alone": ({"train.csv": "text,text_pair,label\na,b,1\nc,d,2\n",
                              "dev.csv": "text,label\na,1\n"}, "only some of its files"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_line_with_file_and_row(what, tmp_path):
    files, message = WRONG[what]
    folder = tmp_path / "task"
    if what != "no dev" and not any(name.startswith("dev") for name in files):
        files = {**files, "dev.jsonl": GOOD}
    for name, content in files.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        folder_task(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
