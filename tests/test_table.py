"""Results as records, as a table, and in words."""

from types import SimpleNamespace

import pytest

from distill.evaluation import table as results
from distill.evaluation.finetune import DISTINCT
from distill.evaluation.table import closing_lines, record, short_names, table, task_records
from distill.evaluation.tasks import Split, Task


def make_task(name="t", metrics=("accuracy",), scored=("dev",), size=10_000):
    split = Split(None, None, [0, 1] * (size // 2))  # chance is 0.5
    return Task(name, None, dict.fromkeys(scored, split), (), metrics)


def scores(value, task, distinct=2):
    return {metric: dict.fromkeys(task.scored, value) for metric in task.metrics} | {
        DISTINCT: dict.fromkeys(task.scored, distinct)
    }


def test_several_splits_are_averaged_and_kept():
    task = make_task("mnli", ("f1",), ("matched", "mismatched"))
    seeds = [{"f1": {"matched": x, "mismatched": x + 0.1}} for x in (0.5, 0.6)]
    rows = {r["metric"]: r for r in task_records("m", task, seeds)}
    assert {metric: r["values"] for metric, r in rows.items()} == {
        "f1": pytest.approx([0.55, 0.65]),
        "f1 matched": [0.5, 0.6],
        "f1 mismatched": [0.6, pytest.approx(0.7)],
    }
    assert rows["f1"]["chance"] == pytest.approx(2 / 3)
    task = make_task("xnli", scored=("en", "de"))
    seeds = [{"probe accuracy": {"en": 0.5, "de": 0.7}, "retrieval accuracy": {"de": 0.9}}]
    assert ["chance" in r for r in task_records("m", task, seeds)] == [True] * 3 + [False]
    alike = Task("t", None, {"dev": Split(None, None, [1])}, ("a", "b"), ("accuracy",))
    assert task_records("m", alike, [scores(1.0, alike, 1)])[0]["collapsed"] == 0  # one label


def test_table_has_a_block_for_each_purpose():
    task = make_task()
    tuned = [
        *task_records("a/b/big", task, [scores(0.9, task), scores(0.8, task, distinct=1)]),
        *task_records("a/b/small", task, [scores(0.7, task), scores(None, task)]),
    ]
    as_is = [*task_records("a/b/big", task, [{"probe accuracy": {"dev": 0.6}}])]
    as_is.append(record("a/b/small", "vectors", "neighbours kept", [0.25]))
    models = [
        {"model": "a/b/big", "parameters": 1_500_000, "latency": 1.25},
        {"model": "a/b/small", "parameters": 6_000, "latency": 0.5, "loss": None, "method": "mha"},
    ]
    labels = short_names([model["model"] for model in models])
    collapsed = "collapsed to one class in 1 of 2 seeds"
    assert table(models, {"fine-tuned": tuned, "as it is": as_is, "none": []}, labels) == [
        ["", "big", "small"],
        ["parameters", "1.5 M", "6.0 k"],
        ["latency", "1.25", "0.5"],
        ["loss", "", ""],
        ["method", "", "mha"],
        ["*fine-tuned*", "", ""],
        ["t accuracy (chance 0.500)", f"0.850 ± 0.071, {collapsed}", "undefined"],
        ["*as it is*", "", ""],
        ["t probe accuracy (chance 0.500)", "0.600", ""],
        ["neighbours kept", "", "0.250"],
    ]
    assert results.markdown([["", "a|b"], ["x", "1"]]).startswith("|     | a\\|b |\n")


def test_names_are_shortened_unless_two_would_be_the_same():
    names = ["/x/runs/t", "/x/runs/t (first 3 layers)", "a/b/", "a/b/ (start)"]
    assert list(short_names(names).values()) == ["t", "t (first 3 layers)", "b", "b (start)"]
    names = ["a/b@refs/pr/3", "a/b@refs/pr/3 (first 3 layers)"]
    assert list(short_names(names).values()) == ["b", "b (first 3 layers)"]
    assert list(short_names(["x/a/run", "x/b/run"]).values()) == ["x/a/run", "x/b/run"]


def test_the_student_is_compared_with_its_better_baseline_seed_by_seed():
    others = [SimpleNamespace(name=name, baselines=[]) for name in ("base", "start", "teacher")]
    run = SimpleNamespace(name="run", baselines=others[:2], teacher=others[2])
    task = make_task()

    def words(start=0.4, spread=0.01, **means):
        rows = []
        for name, mean in {"start": start, **means}.items():
            around = spread if name == "run" else 0.01
            seeds = [scores(mean and mean + step, task) for step in (-around, around)]
            rows += task_records(name, task, seeds)
        models = {model.name: model for model in (*others, run)}
        [line] = closing_lines(models, [task], rows, {name: name.upper() for name in models})
        return line

    assert words(base=0.5, run=0.6, teacher=0.7, spread=0.03) == (  # by hand: 0.08 and 0.12
        "t accuracy: RUN is 0.100 ± 0.028 above BASE"
        " (baseline 0.500 ± 0.014, student 0.600 ± 0.042, teacher 0.700 ± 0.014)"
    )
    below = "RUN is 0.100 ± 0.000 below BASE, so training it did not pay"
    assert below in words(base=0.6, run=0.5, teacher=0.7)
    assert "RUN cannot be compared" in words(base=0.5, run=None, teacher=0.5)
    assert "RUN is 0.100 ± 0.000 above BASE" in words(base=0.5, run=0.6, teacher=None)
    assert "RUN is 0.050 ± 0.000 below START" in words(base=None, start=0.65, run=0.6, teacher=0.7)
