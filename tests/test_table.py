"""Results as records and as a table."""

import pytest

from distill.evaluation.finetune import Cell
from distill.evaluation.glue import GLUE
from distill.evaluation.table import cell_records, markdown, plain, record, result_records, table
from distill.evaluation.tasks import Task


class FakeGrid:
    """Two cells, the second the better one. In it the first metric is `base` on the first split
    with seed 0; each further metric, split and seed adds something."""

    def __init__(self, task, base):
        def scores(shift):
            return [
                {
                    split: {
                        metric: base + shift + seed / 100 + n / 10 + m
                        for m, metric in enumerate(task.metrics)
                    }
                    for n, split in enumerate(task.scored)
                }
                for seed in range(2)
            ]

        self.made = [Cell(1e-5, 3, scores(-0.1)), Cell(1e-4, 3, scores(0.0))]

    def cells(self):
        return self.made

    def best(self):
        return self.made[1]


def make_task(name, metrics=("accuracy",), scored=("dev",)):
    return Task(name, None, dict.fromkeys(scored), (), metrics)


def make_model(name, teacher=None, **more):
    times = {"median": 1.25, "p95": 2.5}
    return {
        "model": name,
        "teacher": teacher,
        "layers": 2,
        "hidden": 8,
        "parameters": 1_500_000,
        "parameters_without_embeddings": 400_000,
        "megabytes": 6.0,
        "flops_per_token": 800_000,
        "inputs_per_s": 99.6,
        "latency_ms": {"1 x 128": times},
        **more,
    }


def test_record():
    assert record("m", "t", "f1", [0.5, 0.7, 0.9]) == {
        "model": "m",
        "task": "t",
        "metric": "f1",
        "mean": pytest.approx(0.7),
        "sd": pytest.approx(0.2),
        "seeds": 3,
        "values": [0.5, 0.7, 0.9],
    }
    assert record("m", "t", "f1", [0.5])["sd"] is None  # one seed knows no spread


def test_records_are_of_the_best_cell():
    task = make_task("t", ("f1", "accuracy"))
    grids = {("m", "t"): FakeGrid(task, 0.5)}
    rows = result_records(grids, [task], ["m"])
    assert [(r["metric"], r["values"]) for r in rows] == [
        ("f1", [0.5, 0.51]),
        ("accuracy", [1.5, 1.51]),
    ]
    cells = cell_records(grids)
    assert [(c["lr"], c["epochs"], c["best"]) for c in cells] == [(1e-5, 3, False), (1e-4, 3, True)]
    assert cells[0]["scores"][0] == {"dev": {"f1": 0.4, "accuracy": 1.4}}


def test_several_splits_are_averaged_and_kept():
    task = make_task("mnli", scored=("matched", "mismatched"))
    rows = result_records({("m", "mnli"): FakeGrid(task, 0.5)}, [task], ["m"])
    assert {r["metric"]: r["mean"] for r in rows} == pytest.approx(
        {"accuracy": 0.555, "accuracy matched": 0.505, "accuracy mismatched": 0.605}
    )


def test_glue_average_is_one_number_a_task():
    """Eight tasks scored 0.1, 0.2 ... by their first metric, MNLI by the mean of its two splits."""
    tasks, expected = [], 0.0
    for n, (name, form) in enumerate(GLUE.items()):
        scored = ("matched", "mismatched") if name == "mnli" else ("dev",)
        tasks.append(make_task(name, form.metrics, scored))
        expected += 0.1 * n + (0.05 if name == "mnli" else 0.0)
    tasks.append(make_task("mine"))  # is no part of it
    grids = {("m", t.name): FakeGrid(t, 0.1 * n) for n, t in enumerate(tasks)}
    average = result_records(grids, tasks, ["m"])[-1]
    assert (average["task"], average["metric"]) == ("glue", "average")
    assert average["values"] == pytest.approx([expected / 8, expected / 8 + 0.01])
    rows = result_records(grids, tasks[1:], ["m"])  # seven tasks have no GLUE average
    assert all(r["task"] != "glue" for r in rows)


def test_table_says_what_was_kept():
    task = make_task("t")
    grids = {("big", "t"): FakeGrid(task, 0.8), ("small", "t"): FakeGrid(task, 0.6)}
    measured = {"method": "mha", "loss": 1.5, "agreement": 0.625}
    models = [make_model("big"), make_model("small", "big", **measured)]
    cells = table(models, result_records(grids, [task], ["big", "small"]), {"t": "accuracy"})
    found = {line[0].strip(): line[1:] for line in cells}
    assert found["t accuracy"] == ["0.805 ± 0.007", "0.605 ± 0.007"]
    assert found["kept"] == ["", "75 %"]
    assert found["parameters"] == ["1.5 M", "1.5 M"]
    assert found["latency 1 x 128, ms (p95)"] == ["1.2 (2.5)"] * 2
    assert found["its held-out loss"] == ["", "1.5000"]
    assert found["top-1 agreement"] == ["", "62.5 %"]
    assert "MLM perplexity" not in found  # nobody has one
    assert plain(cells).splitlines()[0].split() == ["big", "small"]
    assert len({len(line) for line in plain(cells).splitlines() if line.endswith("%")}) == 1
    assert markdown(cells).splitlines()[1] == "| --- | ---: | ---: |"


def test_a_teacher_that_scores_nothing_leaves_no_share():
    task = make_task("t", ("matthews",))
    grids = {("big", "t"): FakeGrid(task, -0.005), ("small", "t"): FakeGrid(task, 0.5)}
    rows = result_records(grids, [task], ["big", "small"])
    cells = table([make_model("big"), make_model("small", "big")], rows, {"t": "matthews"})
    assert cells[-1] == ["  kept", "", ""]


def test_many_models_stand_below_each_other():
    models = [make_model(f"m{i}") for i in range(5)]
    wide, tall = table(models[:4], [], {"t": "f1"}), table(models, [], {"t": "f1"})
    assert "inputs/s, t" in tall[0]
    assert wide[0] == ["", "m0", "m1", "m2", "m3"]
    assert [line[0] for line in tall] == ["", "m0", "m1", "m2", "m3", "m4"]
