"""GLUE in the hub's columns and in GLUE's own files, XNLI; one line for what is wrong."""

import random

import pytest
from test_tasks import write

from distill.evaluation.glue import GLUE, LANGUAGES, NLI, glue_task, xnli_task
from minitransformer.errors import UserError

# what GLUE's texts are full of: stray quotes, nothing at all, separators that are no line's end
ODD = ['he said "no', '"', "", "it 's \u2028 two lines ? \x85 one", "a, b; c"]
GLUE_FORMS = ("parquet", "jsonl", "csv", "tsv", "own")
OWN_HEADERS = {
    "mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "sst2": "sentence|label",
    "stsb": "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score",
    "qqp": "id|qid1|qid2|question1|question2|is_duplicate",
    "mnli": "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse"
    "|sentence1_parse|sentence2_parse|sentence1|sentence2|label1|gold_label",
    "qnli": "index|question|sentence|label",
    "rte": "index|sentence1|sentence2|label",
}


def glue_rows(name, split, size):
    """[texts ..., label] of a split, the label as the hub has it; the same at every call."""
    chance, form = random.Random(f"{name} {split}"), GLUE[name]
    words = ["good", "bad", "a", "film", "the", "loan", "of", "is", "not"]
    rows = []
    for i in range(size):
        texts = [" ".join(chance.choices(words, k=chance.randint(3, 9))) for _ in form.texts]
        texts[-1] += ODD[i % len(ODD)]
        if i == 1:
            texts[0] = ""  # an empty cell is an empty text
        label = i % len(form.classes) if form.classes else chance.randint(0, 50) / 10
        rows.append([*texts, label])
    return rows


def write_glue(folder, form, train=12, dev=9):
    """All eight tasks in the hub's columns in that form, or ("own") in GLUE's own files."""
    for name, task in GLUE.items():
        devs = ["validation_matched", "validation_mismatched"] if name == "mnli" else ["validation"]
        for split, size in [("train", train), *((each, dev) for each in devs)]:
            rows = glue_rows(name, split, size)
            if form == "own":
                write_own(folder / task.folder, name, split.replace("validation", "dev"), rows)
            else:
                shard = "-00000-of-00001" if form == "parquet" else ""
                file = folder / name / f"{split}{shard}.{form}"
                numbered = [[*row, i] for i, row in enumerate(rows)]
                write(file, numbered, [*task.texts, "label", "idx"])
    return folder


def write_own(folder, name, split, rows):
    folder.mkdir(parents=True, exist_ok=True)
    task = GLUE[name]
    if name == "cola":
        lines = [["gj04", row[1], "*", row[0]] for row in rows]
    else:
        header = OWN_HEADERS[name].split("|")
        lines = [header]
        for i, row in enumerate(rows):
            label = task.classes[row[-1]] if name in ("mnli", "qnli", "rte") else row[-1]
            cells = dict(zip(task.own, [*row[:-1], label], strict=True))
            lines.append([cells.get(column, f"x{i}") for column in header])
        if name == "qqp":
            lines.insert(3, ["7", "8", "9", "a question that a tab cut off"])
    text = "\n".join("\t".join(map(str, line)) for line in lines) + "\n"
    (folder / f"{split}.tsv").write_bytes(("\ufeff" + text).encode())


@pytest.mark.parametrize("name", GLUE)
def test_glue_is_the_same_in_all_forms(name, tmp_path):
    tasks = {form: glue_task(name, str(write_glue(tmp_path / form, form))) for form in GLUE_FORMS}
    assert {form: task.hash for form, task in tasks.items()} == dict.fromkeys(
        GLUE_FORMS, tasks["parquet"].hash
    )
    task, expected = tasks["own"], glue_rows(name, "train", 12)
    assert task.train.texts == [row[0] for row in expected]
    assert task.train.text_pairs == (
        [row[1] for row in expected] if len(GLUE[name].texts) == 2 else None
    )
    assert task.train.labels == [row[-1] for row in expected]
    assert list(task.scored) == (["matched", "mismatched"] if name == "mnli" else ["dev"])
    assert all(len(split.texts) == 9 for split in task.scored.values())
    assert len(task.notes) == (2 if name == "qqp" else 0)
    assert all("1 of 1" in note and "lack cells" in note for note in task.notes)


def test_glue_headlines_are_those_of_its_average():
    assert {name: form.metrics[0] for name, form in GLUE.items()} == {
        "cola": "matthews", "sst2": "accuracy", "mrpc": "f1", "stsb": "spearman", "qqp": "f1",
        "mnli": "accuracy", "qnli": "accuracy", "rte": "accuracy",
    }  # fmt: skip


def test_class_numbers_are_the_hubs():
    """As nyu-mll/glue's dataset card has them; written here once more, because they are data."""
    assert {name: form.classes for name, form in GLUE.items()} == {
        "cola": ("unacceptable", "acceptable"), "sst2": ("negative", "positive"),
        "mrpc": ("not_equivalent", "equivalent"), "stsb": (),
        "qqp": ("not_duplicate", "duplicate"), "mnli": ("entailment", "neutral", "contradiction"),
        "qnli": ("entailment", "not_entailment"), "rte": ("entailment", "not_entailment"),
    }  # fmt: skip


def write_xnli(folder):
    for language in LANGUAGES:
        splits = ["train", "validation", "test"] if language == "en" else ["test"]
        for n, split in enumerate(splits):
            rows = [[f"{language} {split} {i}", "is not", i % 3] for i in range(6 + n)]
            file = folder / "xnli" / language / f"{split}.jsonl"
            write(file, rows, ["premise", "hypothesis", "label"])
    return folder


def test_xnli_learns_english_and_is_scored_in_fifteen_languages(tmp_path):
    task = xnli_task(str(write_xnli(tmp_path)))
    assert task.train.texts[0] == "en train 0"
    assert task.chosen_on.texts[0] == "en validation 0"
    assert len(task.scored) == 15
    assert task.scored["sw"].texts[0] == "sw test 0"
    assert task.classes == NLI


@pytest.mark.parametrize(
    ("dataset", "load"), [("glue", lambda: glue_task("rte")), ("xnli", xnli_task)]
)
def test_the_hub_is_asked_where_there_is_no_folder(dataset, load, monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        texts = GLUE["rte"].texts if dataset == "glue" else ("premise", "hypothesis")
        return [dict.fromkeys(texts, "text") | {"label": 1}] * 3

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load().train.labels == [1, 1, 1]
    if dataset == "glue":
        assert asked == [("nyu-mll/glue", "rte", "train"), ("nyu-mll/glue", "rte", "validation")]
    else:
        assert ("facebook/xnli", "ur", "test") in asked
        assert len(asked) == 17


def test_a_hub_that_is_out_of_reach_is_one_line(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"nyu-mll/glue rte: .*--data-dir \(no route\)"):
        glue_task("rte")


GLUE_WRONG = {
    "no folder": (None, None, "no folder cola or CoLA in it"),
    "no train": ("dev.tsv", "x\t1\t\ty\n", "no train with one of"),
    "empty": ("train.tsv", "", "train.tsv: no rows in it"),
    "a line too short": ("train.tsv", "x\t1\t\ty\nx\t1\n", "train.tsv, line 2: 2 cells, but the"),
    "a class it has not": ("train.tsv", "x\t2\t\ty\n", "train.tsv, line 1: label '2' is none of u"),
    "wrong columns": ("train.jsonl", '{"text": "a", "label": 1}\n', "no column 'sentence'; it has"),
    "a hidden label": ("train.jsonl", '{"sentence": "a", "label": -1}', "line 1: label -1 is none"),
}


@pytest.mark.parametrize("what", GLUE_WRONG)
def test_what_is_wrong_with_glue(what, tmp_path):
    name, content, message = GLUE_WRONG[what]
    if name:
        write_own(tmp_path / "CoLA", "cola", "dev", glue_rows("cola", "validation", 3))
        (tmp_path / "CoLA" / name).write_text(content)
    with pytest.raises(UserError) as error:
        glue_task("cola", str(tmp_path))
    assert message in str(error.value)
