"""GLUE and XNLI in the hub's columns; one line for what is wrong."""

import datasets
import pytest
from test_tasks import write

from distill.evaluation.glue import GLUE, LANGUAGES, glue_task, xnli_task
from minitransformer.files import UserError

# what GLUE's texts are full of: stray quotes, nothing at all, separators that are no line's end
ODD = ['he said "no', '"', "", "it 's \u2028 two lines ? \x85 one", "a, b; c"]
FORMS = ("parquet", "jsonl", "csv", "tsv")


def glue_rows(name, split, size):
    """[texts ..., label] of a split, the label as the hub has it."""
    columns, classes, _ = GLUE[name]
    rows = []
    for i in range(size):
        texts = [f"{ODD[i % 5]} {split} {i}", ODD[(i + 1) % 5]][: len(columns) - 1]
        rows.append([*texts, i % len(classes) if classes else i / 4])
    return rows


def write_glue(folder, name, form):
    devs = ["validation_matched", "validation_mismatched"] if name == "mnli" else ["validation"]
    for split, size in [("train", 12), *((split, 9) for split in devs)]:
        shard = "-00000-of-00001" if form == "parquet" else ""
        rows = [[*row, i] for i, row in enumerate(glue_rows(name, split, size))]
        write(folder / name / f"{split}{shard}.{form}", rows, [*GLUE[name][0], "idx"])
    return folder


@pytest.mark.parametrize("name", GLUE)
def test_glue_is_the_same_in_all_forms(name, tmp_path):
    tasks = [glue_task(name, str(write_glue(tmp_path / form, name, form))) for form in FORMS]
    assert len({task.hash for task in tasks}) == 1
    task, (*texts, labels) = tasks[0], zip(*glue_rows(name, "train", 12), strict=True)
    parts = [task.train.texts, task.train.text_pairs, task.train.labels]
    assert [part for part in parts if part] == [*map(list, texts), list(labels)]
    assert list(task.scored) == (["matched", "mismatched"] if name == "mnli" else ["dev"])
    assert all(len(split.texts) == 9 for split in task.scored.values())


def test_xnli_learns_english_and_is_scored_in_the_languages_that_are_there(tmp_path):
    for language, split in (("en", "train"), ("en", "test"), ("sw", "test"), ("de", "test")):
        file = tmp_path / "xnli" / language / f"{split}.jsonl"
        rows = [[f"{language} {split} {i}", "is not", i] for i in range(3)]
        write(file, rows, ["premise", "hypothesis", "label"])
    task = xnli_task(str(tmp_path))
    assert (task.train.texts[0], task.scored["sw"].texts[0]) == ("en train 0", "sw test 0")
    assert list(task.scored) == ["de", "en", "sw"]


def test_the_hub_is_asked_where_there_is_no_folder_and_may_be_out_of_reach(monkeypatch):
    asked, texts = set(), ("sentence1", "sentence2", "premise", "hypothesis")

    def load_dataset(name, config, split):
        asked.add(f"{name} {config} {split}")
        return datasets.Dataset.from_list([dict.fromkeys(texts, "text") | {"label": 1}] * 3)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert glue_task("rte").train.labels == [1, 1, 1]
    assert asked == {"nyu-mll/glue rte train", "nyu-mll/glue rte validation"}
    assert list(xnli_task().scored) == list(LANGUAGES)
    assert "facebook/xnli ur test" in asked
    monkeypatch.setattr("datasets.load_dataset", None)
    with pytest.raises(UserError, match=r"nyu-mll/glue rte: .*; or pass --data-dir"):
        glue_task("rte")


def test_names_of_classes_may_be_in_capitals_and_an_unknown_class_is_one_line(tmp_path):
    columns = ["sentence1", "sentence2", "label"]
    write(tmp_path / "rte" / "train.jsonl", [["a", "b", "ENTAILMENT"], ["a", "b", 1]], columns)
    write(tmp_path / "rte" / "validation.jsonl", [["a", "b", " Not_entailment"]], columns)
    task = glue_task("rte", str(tmp_path))
    assert (task.train.labels, task.scored["dev"].labels) == ([0, 1], [1])
    write(tmp_path / "rte" / "train.jsonl", [["a", "b", 2]], columns)
    with pytest.raises(UserError, match="rte train: label '2' is not one of the classes 0, entail"):
        glue_task("rte", str(tmp_path))
