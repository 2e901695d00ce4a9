"""Tasks of one's own: every form of file and label; one line for what is wrong."""

import csv
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from distill.evaluation.tasks import folder_task
from minitransformer.files import UserError


def write(path, rows, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(objects))
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("\n".join(json.dumps(o, ensure_ascii=False) for o in objects), "utf-8")
    else:
        plain = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
        with path.open("w", encoding="utf-8", newline="") as file:
            form = {} if path.suffix == ".csv" else plain
            csv.writer(file, lineterminator="\n", **form).writerows([columns, *rows])


def own(folder, columns, train, dev, suffix="jsonl"):
    write(folder / f"train.{suffix}", train, columns)
    write(folder / f"dev.{suffix}", dev, columns)
    return folder


SUFFIXES = ("parquet", "jsonl", "csv", "TSV")


@pytest.mark.parametrize("suffix", [*SUFFIXES, "json", "ndjson"])
def test_classes_keep_their_names_numbers_their_order_and_fractions_are_predicted(suffix, tmp_path):
    rows = [["one", "x", "nein"], ["two", "y", "ja"], ["three", "z", "nein"]]
    task = folder_task(own(tmp_path / "votes", ["text", "text_pair", "label"], rows, rows, suffix))
    assert (task.name, task.classes, task.train.labels) == ("votes", ("ja", "nein"), [1, 0, 1])
    assert (task.train.texts, task.train.text_pairs) == (["one", "two", "three"], ["x", "y", "z"])
    for labels, classes, expected in (
        ([10, 2, 0], ("0", "2", "10"), [2, 1, 0]),
        ([0.5, 2, -1], (), [0.5, 2, -1]),  # -1 is a number
    ):
        rows = [["a", label] for label in labels]
        task = folder_task(own(tmp_path / str(labels), ["text", "label"], rows, rows, suffix))
        assert (task.classes, task.train.labels, len(task.notes)) == (classes, expected, 1)
        assert task.train.text_pairs is None


def test_labels_that_are_spelt_in_two_ways_are_two_classes(tmp_path):
    labels = ["1_1", "11", "1e5", "100000", "01", "1", "1.50", "1.5", "x"]
    labels += ["12345678901234567", "12345678901234568"]
    rows = [["text", label] for label in labels]
    for suffix in SUFFIXES:
        task = folder_task(own(tmp_path / suffix, ["text", "label"], rows, rows, suffix))
        assert [task.classes[label] for label in task.train.labels] == labels


@pytest.mark.parametrize(
    ("labels", "classes", "left_out"),
    [
        ([-1, 0, 1, -1], ("-1", "0", "1"), 0),
        (["-", "0", "+", "-"], ("0", "+", "-"), 0),
        ([0, -1, -1, 0], ("-1", "0"), 0),
        ([-2, -1, 1, 2], ("-2", "-1", "1", "2"), 0),
        (["-1", "+1", "+1", "-1"], ("-1", "+1"), 0),
        ([*[0, 1] * 20, -1], ("0", "1"), 1),  # too rare for a class
        ([*["x", "y"] * 20, "-"], ("x", "y"), 1),
        ([0, 1, -100, 1], ("0", "1"), 1),
        (["x", " ", "", "?", "NaN", "NA", "null", "y"], ("x", "y"), 6),
        ([None, 1, float("nan"), 0], ("0", "1"), 2),
        (["None", "x", "None"], ("None", "x"), 0),
        ([1, 1.0, "1", "1.00 ", "neg", "neg "], ("1", "neg"), 0),
        ([-0.0, 0, 1, 1.0], ("0", "1"), 0),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_what_is_a_class_and_what_is_no_label(labels, classes, left_out, suffix, tmp_path):
    rows = [["text", "" if label is None and suffix == "csv" else label] for label in labels]
    task = folder_task(own(tmp_path / "task", ["text", "label"], rows, rows, suffix))
    assert task.classes == classes
    assert len(task.train.texts) == len(task.train.labels) == len(labels) - left_out
    note = f"task train: {left_out} of {len(labels)} rows have no label and are left out"
    both = "task: 1 of 1 texts of dev are in train, too"  # dev is train here
    assert {*task.notes} - {note.replace("train", "dev")} == ({note, both} if left_out else {both})
    assert f"; {len(classes)} classes: {', '.join(classes)}; single texts" in str(task)


@pytest.mark.parametrize(("dashes", "numbers"), [(1, True), (9, False)])
def test_numbers_with_a_rare_dash_stay_numbers(dashes, numbers, tmp_path):
    rows = [["text", label] for label in [0.5, 1, 2.5] * 15 + ["-"] * dashes]
    task = folder_task(own(tmp_path / "task", ["text", "label"], rows, rows))
    assert (task.classes == ()) == numbers


def test_own_shards_are_read_in_order(tmp_path):
    for i in range(2):
        file = tmp_path / f"train-0000{i}-of-00002.parquet"
        write(file, [[f"t{i}", f"l{i}"]], ["text", "label"])
    write(tmp_path / "dev.csv", [["d", "l1"]], ["text", "label"])
    task = folder_task(tmp_path)
    assert (task.train.texts, task.scored["dev"].labels) == (["t0", "t1"], [1])


LINE = '{"text": "a", "label": "x"}\n'
GOOD = LINE + '{"text": "b", "label": "y"}\n'
POINTER = "version https://git-lfs.github.com/spec/v1\n"
WRONG = {
    "no dev": ({"train.jsonl": GOOD, "dev.jsonl": None}, "one dev with .parquet, .jsonl, .n"),
    "two trains": ({"train.jsonl": GOOD, "train.csv": "text\n"}, "found train.csv, train.jsonl"),
    "empty": ({"train.jsonl": ""}, "train.jsonl: no rows in it"),
    "wrong columns": ({"train.csv": "txt,y\na,b\n"}, "0 columns 'text' among ['txt', 'y']"),
    "semicolons": ({"train.csv": "text;label\na;b\n"}, "['text;label']; a .csv is separated"),
    "a text twice": ({"train.csv": "text,text,label\na,b,c\n"}, "train.csv: 2 columns 'text'"),
    "one word": ({"train.csv": "text,label\n" + "a,.5\n" * 20 + "a,x\n"}, "label 'x' is no number"),
    "no JSON": ({"train.jsonl": LINE + "{\n"}, "line 2 column"),
    "a number as text": ({"train.jsonl": '{"text": 1, "label": 1}'}, "row 1: column 'text' holds"),
    "labels": ({"train.jsonl": '{"text": "a", "label": [0]}'}, "row 1: column 'label' holds [0]"),
    "too many cells": ({"train.csv": 'text,label\n"a\nb",x\nc,d,e\n'}, "2 fields in line 3, saw 3"),
    "too few cells": ({"train.tsv": "text\tlabel\na\tb\nc\n"}, "row 2 has fewer cells"),
    "a Git LFS pointer": ({"train.jsonl": POINTER}, "git lfs pull"),
    "an underscore": ({"train.csv": "text,label\na,.5\n", "dev.csv": "text,label\na,1_0\n"},
                      "dev: label '1_0' is not a number"),
    "a shard alone": ({"train-00000-of-00002.jsonl": GOOD}, "1 files of train, their names say"),
    "a shard": ({"train-00000-of-00002.jsonl": '{"text": 1}', "train-00001-of-00002.jsonl": GOOD},
                "train-*: row 1: column 'text' holds 1"),
    "one class": ({"train.csv": "text,label\na,x\nb,x\n"}, "train has 1 classes"),
    "new label": ({"train.jsonl": GOOD, "dev.jsonl": LINE.replace('"x"', '"z"')},
                  "dev: label 'z' is not one of the classes x, y"),
    "pairs in train alone": ({"train.csv": "text,text_pair,label\na,b,1\nc,d,2\n"},
                             "only one of train and dev has"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_line_with_its_file(what, tmp_path):
    files, message = WRONG[what]
    if "dev.csv" not in files:
        files = {"dev.jsonl": GOOD, **files}
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        folder_task(tmp_path)
    assert message in str(error.value)


def test_class_numbers_of_a_parquet_file_are_read_by_its_own_names(tmp_path):
    for name, labels in {"train": "bad fine good fine", "dev": "good bad bad"}.items():
        rows = datasets.Dataset.from_dict({"text": labels.split(), "label": labels.split()})
        rows.class_encode_column("label").to_parquet(tmp_path / f"{name}.parquet")
    task = folder_task(tmp_path)
    assert (task.classes, task.train.labels) == (("bad", "fine", "good"), [0, 1, 2, 1])
    assert task.scored["dev"].labels == [2, 0, 0]


def test_joined_files_are_read(tmp_path):
    text = LINE + "\ufeff" + LINE.replace('"x"', '"y"').replace("a", "\u2028", 1) + "\n"
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(text, "utf-8")
    assert folder_task(tmp_path).train.labels == [0, 1]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").unlink()
        (tmp_path / f"{name}.csv").write_text("text,label\na,x\n\ufefftext,label\nb,y\n")
    assert folder_task(tmp_path).classes == ("x", "y")
