"""Results as records, as one table, as Markdown, and in words.

A record says {model, task, metric, mean, sd, seeds, values}, with one of `values` per seed; those
of a task also have `chance`, the score of the best constant answer.
"""

import itertools
import math
import re
import statistics

from distill.evaluation.columns import Model
from distill.evaluation.finetune import DISTINCT
from distill.evaluation.metrics import chance
from distill.evaluation.tasks import Task
from distill.training.report import short_count


def record(model: str, task: str, metric: str, values: list[float | None], **more) -> dict:
    """Return a record. Mean and sd are None if a value is; so is the sd of a single value."""
    known = None not in values
    return {
        "model": model,
        "task": task,
        "metric": metric,
        "mean": statistics.fmean(values) if known else None,
        "sd": statistics.stdev(values) if known and len(values) > 1 else None,
        "seeds": len(values),
        "values": values,
        **more,
    }


def task_records(model: str, task: Task, seeds: list[dict[str, dict]]) -> list[dict]:
    """Return the records of the scores, one {metric: {split: score}} for each seed: of each metric
    the mean over the splits and, where there are several, each split.
    """
    records = []
    varied = {name for name, split in task.scored.items() if len({*split.labels}) > 1}
    counts = [[n for name, n in seed.get(DISTINCT, {}).items() if name in varied] for seed in seeds]
    for metric in [name for name in seeds[0] if name != DISTINCT]:
        base, splits = metric.removeprefix("probe "), list(seeds[0][metric])
        parts = {f"{metric} {split}": [split] for split in splits} if len(splits) > 1 else {}
        for name, chosen in {metric: splits, **parts}.items():
            more = {"collapsed": sum(1 in n for n in counts)}  # seeds whose answers are all equal
            if base in task.metrics:
                best = [chance(base, task.scored[split].labels) for split in chosen]
                more["chance"] = statistics.fmean(best)
            scores = [[seed[metric][split] for split in chosen] for seed in seeds]
            values = [None if None in part else statistics.fmean(part) for part in scores]
            records.append(record(model, task.name, name, values, **more))
    return records


def closing_lines(models: dict[str, Model], tasks: list[Task], records, labels) -> list[str]:
    """Compare each student with its better baseline; ±: deviation of the difference over seeds."""
    by_key = {(r["model"], r["task"], r["metric"]): r for r in records}
    students, lines = [model for model in models.values() if model.baselines], []
    for task in tasks:
        headlines = task.metrics[0], f"probe {task.metrics[0]}", "retrieval accuracy"
        for metric, run in itertools.product(headlines, students):
            if (run.name, task.name, metric) not in by_key:
                continue
            sides = *(base.name for base in run.baselines), run.name, run.teacher.name
            *bases, student, teacher = (by_key[side, task.name, metric] for side in sides)
            base = max(bases, key=lambda r: -math.inf if r["mean"] is None else r["mean"])
            name, other = labels[run.name], labels[base["model"]]
            if None in (base["mean"], student["mean"]):
                said = f"{name} cannot be compared"
            else:
                gain = [a - b for a, b in zip(student["values"], base["values"], strict=True)]
                spread = f" ± {statistics.stdev(gain):.3f}" if len(gain) > 1 else ""
                side = "below" if student["mean"] < base["mean"] else "above"
                said = f"{name} is {abs(statistics.fmean(gain)):.3f}{spread} {side} {other}"
                said += ", so training it did not pay" if side == "below" else ""
            scores = f"baseline {score(base)}, student {score(student)}, teacher {score(teacher)}"
            lines.append(f"{task.name} {metric}: {said} ({scores})")
    return lines


def short_names(names: list[str]) -> dict[str, str]:
    """Return for each name its last part, or all of it where two would be the same."""
    # a hub id without its revision, then a folder without its parents
    ids = {n: re.sub(r"^([^/@ ]+/[^/@ ]+)@\S+", r"\1", n).replace("/ ", " ") for n in names}
    short = {name: part.rstrip("/").rpartition("/")[2] for name, part in ids.items()}
    return short if len(set(short.values())) == len(names) else {name: name for name in names}


def table(facts: list[dict], blocks: dict[str, list[dict]], labels: dict) -> list[list[str]]:
    """Return cells, with a first row and a first column that name them.

    facts     {model, and what was measured by title} in the order of the columns
    blocks    {title: records}
    """
    names = [model["model"] for model in facts]
    lines = [["", *(labels[name] for name in names)]]
    show = {str: str, int: short_count, float: "{:.4g}".format, type(None): lambda _: ""}
    for title in dict.fromkeys(title for model in facts for title in model if title != "model"):
        values = [model.get(title) for model in facts]
        lines.append([title, *(show[type(value)](value) for value in values)])
    for block, rows in blocks.items():
        if rows:
            lines.append([f"*{block}*", *("" for _ in names)])
        for task, metric in dict.fromkeys((r["task"], r["metric"]) for r in rows):
            found = {r["model"]: r for r in rows if (r["task"], r["metric"]) == (task, metric)}
            by_chance = next(iter(found.values())).get("chance")
            title = metric if metric == "neighbours kept" else f"{task} {metric}"
            title += "" if by_chance is None else f" (chance {by_chance:.3f})"
            lines.append([title, *(score(found[n]) if n in found else "" for n in names)])
    return lines


def score(record: dict) -> str:
    """Return mean ± deviation, marked where all predictions were the same."""
    if record["mean"] is None:
        return "undefined"
    text = f"{record['mean']:.3f}"
    text += "" if record["sd"] is None else f" ± {record['sd']:.3f}"
    if record.get("collapsed"):
        text += f", collapsed to one class in {record['collapsed']} of {record['seeds']} seeds"
    return text


def markdown(lines: list[list[str]]) -> str:
    """Return a Markdown table with aligned columns, so that it can be read as it is, too."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rows = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    text = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        text.append(" | ".join(["| " + first.ljust(widths[0]), *cells]) + " |")
    return "\n".join(text)
