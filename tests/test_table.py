"""Results as records, as a table, and in words."""

from types import SimpleNamespace

import pytest

from distill.evaluation import table as tables
from distill.evaluation.finetune import DISTINCT, Cell
from distill.evaluation.glue import GLUE
from distill.evaluation.table import closing_lines, markdown, record, result_records, share, table
from distill.evaluation.tasks import Split, Task


def fake_grid(task, base, distinct=2):
    """A grid in whose best cell the scores are `base` and more for each seed, split and metric."""
    rows = []
    for seed in (0.0, 0.01):
        rows.append({split: {DISTINCT: distinct} for split in task.scored})
        for n, split in enumerate(task.scored):
            for m, metric in enumerate(task.metrics):
                rows[-1][split][metric] = None if base is None else base + seed + n / 10 + m
    return SimpleNamespace(task=task, best=lambda: Cell(1e-4, 3, rows))


def make_task(name, metrics=("accuracy",), scored=("dev",)):
    split = Split(["a", "b"], None, [0, 1])  # chance is 0.5
    return Task(name, None, dict.fromkeys(scored, split), (), metrics)


def make_model(name, teacher=None, **more):
    cost = {"parameters": 1_500_000, "latency_ms": {"1 x 128": {"median": 1.25, "p95": 2.5}}}
    return {"model": name, "teacher": teacher, "layers": 2, "hidden": 8, **cost, **more}


def test_one_seed_knows_no_spread_and_an_undefined_value_no_mean():
    assert record("m", "t", "f1", [0.5], 0.4)["sd"] is None
    assert record("m", "t", "pearson", [0.5, None], 0.0)["mean"] is None


def test_records_are_of_the_best_cell_and_several_splits_are_averaged_and_kept():
    task = make_task("mnli", ("f1", "accuracy"), ("matched", "mismatched"))
    grids = {("m", "mnli"): fake_grid(task, 0.5)}
    rows = result_records(grids)
    values = {r["metric"]: pytest.approx(r["values"]) for r in rows}
    assert values == {
        "f1": [0.55, 0.56],
        "f1 matched": [0.5, 0.51],
        "f1 mismatched": [0.6, 0.61],
        "accuracy": [1.55, 1.56],
        "accuracy matched": [1.5, 1.51],
        "accuracy mismatched": [1.6, 1.61],
    }
    assert [r["chance"] for r in rows] == [pytest.approx(2 / 3)] * 3 + [0.5] * 3
    assert {(r["lr"], r["epochs"]) for r in rows} == {(1e-4, 3)}


def test_glue_average_is_one_number_a_task():
    """Eight tasks scored 0.1, 0.2 ... by their first metric, MNLI by the mean of its two splits."""
    tasks, expected = [], 0.0
    for n, (name, form) in enumerate(GLUE.items()):
        scored = ("matched", "mismatched") if name == "mnli" else ("dev",)
        tasks.append(make_task(name, form.metrics, scored))
        expected += 0.1 * n + (0.05 if name == "mnli" else 0.0)
    tasks.append(make_task("mine"))  # is no part of it
    grids = {("m", t.name): fake_grid(t, 0.1 * n) for n, t in enumerate(tasks)}
    average = result_records(grids)[-1]
    assert (average["task"], average["metric"]) == ("glue", "average")
    assert average["values"] == pytest.approx([expected / 8, expected / 8 + 0.01])
    # Matthews and Spearman 0, F1 2/3 twice, accuracy 1/2 four times
    assert average["chance"] == pytest.approx((2 * 2 / 3 + 4 * 0.5) / 8)
    del grids["m", "rte"]  # seven tasks have no GLUE average
    assert all(r["task"] != "glue" for r in result_records(grids))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        # by hand: means 0.2 and 0.4; what is left of each part is (0.1, 0.3) - 0.5 * (0.2, 0.6) = 0
        ([0.1, 0.3], [0.2, 0.6], "50 % ± 0"),
        # parts that go against the ways: (0.3, 0.1) - 0.5 * (0.2, 0.6) = (0.2, -0.2), by 0.4
        ([0.3, 0.1], [0.2, 0.6], "50 % ± 71"),
        ([0.3], [0.6], "50 %"),
        ([0.1, 0.1], [-0.1, 0.2], None),  # 0.05 above, with a deviation of 0.21
        ([0.1], [-0.1], None),
        ([None, 0.1], [0.2, 0.6], None),
    ],
)
def test_a_share_is_of_means_and_its_spread_pairs_the_seeds(student, teacher, expected):
    means = [record("m", "t", "accuracy", values, 0.5) for values in (student, teacher)]
    assert share(*means, [0.0] * len(student)) == expected


def test_table_says_what_was_kept_from_chance():
    task = make_task("t")
    grids = {("big", "t"): fake_grid(task, 0.9), ("small", "t"): fake_grid(task, 0.7)}
    measured = {"method": "mha", "loss": 1.5, "start_loss": 2.0, "agreement": 0.625}
    measured |= {"sentence_cosine": 0.5, "neighbour_kept": 0.25}
    models = [make_model("big"), make_model("small", "big", **measured)]
    cells = table(models, result_records(grids), {"t": "accuracy"})
    found = {line[0].strip(): line[1:] for line in cells}
    assert found["t accuracy (chance 0.500)"] == ["0.905 ± 0.007", "0.705 ± 0.007"]
    assert found["kept, from chance"] == ["", "51 % ± 1"]  # 0.205 of 0.405
    assert found["parameters"] == ["1.5 M", "1.5 M"]
    assert found["latency 1 x 128, ms (p95)"] == ["1.2 (2.5)"] * 2
    assert found["held-out loss of its start"] == ["", "2.0000"]
    assert found["top-1 agreement"] == ["", "62.5%"]
    assert found["nearest neighbour kept"] == ["", "25.0%"]
    assert "MLM perplexity" not in found  # nobody has one


def test_doubtful_scores_are_marked():
    task = make_task("t", ("pearson",))
    grids = {
        ("big", "t"): fake_grid(task, 0.4),
        ("one", "t"): fake_grid(task, 0.5, distinct=1),
        ("none", "t"): fake_grid(task, None, distinct=1),
        ("burst", "t"): fake_grid(task, 0.5),
    }
    grids["burst", "t"].best = lambda: Cell(1e-4, 3, [None, None])
    names = ["big", "one", "none", "burst"]
    rows = result_records(grids)
    models = [make_model("big"), *(make_model(name, "big") for name in names[1:])]
    cells = table(models, rows, {"t": "pearson"})
    assert cells[-2][2:] == ["0.505 ± 0.007, one class (2 of 2 seeds)", "undefined", "diverged"]
    assert cells[-1][3:] == ["-", "-"]
    assert rows[2]["undefined"] == "a correlation with constant predictions"
    assert tables.score(record("m", "glue", "average", [None], 0.0)) == "undefined"


def test_how_far_the_student_came_is_said_in_words():
    start, teacher = (SimpleNamespace(name=name, start=None) for name in ("start", "teacher"))
    run = SimpleNamespace(name="run", start=start, teacher=teacher)

    def words(**means):
        rows = [record(name, "t", "f1", [m - 0.01, m + 0.01], 0.5) for name, m in means.items()]
        models = {model.name: model for model in (start, run, teacher)}
        return closing_lines(models, rows, {"t": "f1"})

    assert words(start=0.5, run=0.6, teacher=0.7) == [
        "t: run recovered 50 % ± 0 of the way from its start to its teacher"
        " (start 0.500 ± 0.014, student 0.600 ± 0.014, teacher 0.700 ± 0.014)"
    ]
    assert "t: run has no way to recover" in words(start=0.5, run=0.6, teacher=0.5)[0]


def test_many_models_stand_below_each_other():
    models = [make_model(f"m{i}") for i in range(7)]
    wide, tall = table(models[:6], [], {"t": "f1"}), table(models, [], {"t": "f1"})
    assert wide[0] == ["", *(f"m{i}" for i in range(6))]
    assert [line[0] for line in tall] == ["", *(f"m{i}" for i in range(7))]


def test_markdown_is_aligned():
    text = markdown([["", "a", "long name"], ["loss", "1.5", "20"]])
    assert text.splitlines() == [
        "|      |    a | long name |",
        "| ---  | ---: |      ---: |",
        "| loss |  1.5 |        20 |",
    ]
