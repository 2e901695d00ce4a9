"""Results as records, as one table, as Markdown, and in words.

A record says {model, task, metric, mean, sd, seeds, values, chance}, `values` being one score a
seed; where a score is undefined (None), also why. The table has a measure a line and a model a
column, or the other way round where there are many models.

Shares are counted on the way between two scores, never from 0:

    kept        (score - chance) / (teacher - chance)
    recovered   (student - start) / (teacher - start)
"""

import statistics
from collections.abc import Callable

import numpy as np

from distill.evaluation.columns import Model
from distill.evaluation.finetune import DISTINCT, Grid
from distill.evaluation.glue import GLUE
from distill.evaluation.metrics import chance

WIDEST = 6  # up to so many models: one a column; more: one a row


# ---- records -------------------------------------------------------------------------------------


def record(
    model: str, task: str, metric: str, values: list[float | None], by_chance: float
) -> dict:
    """The mean of values with an undefined one is None; so is the deviation of a single one."""
    known = None not in values
    return {
        "model": model,
        "task": task,
        "metric": metric,
        "mean": statistics.fmean(values) if known else None,
        "sd": statistics.stdev(values) if known and len(values) > 1 else None,
        "seeds": len(values),
        "values": values,
        "chance": by_chance,
    }


def result_records(grids: dict[tuple[str, str], Grid]) -> list[dict]:
    """Return the best cells' scores, by (model, task). Where several splits are scored, their mean
    and then each; where all of GLUE was done, its average over one number a task.
    """
    records, headlines = [], {}
    for (model, task_name), grid in grids.items():
        task, best = grid.task, grid.best()
        for metric in task.metrics:
            splits = {metric: list(task.scored)}
            if len(task.scored) > 1:
                splits |= {f"{metric} {split}": [split] for split in task.scored}
            for name, scored in splits.items():
                values = best.values(metric, scored)
                parts = [chance(metric, task.scored[split].labels) for split in scored]
                row = record(model, task_name, name, values, statistics.fmean(parts))
                row |= {"lr": best.lr, "epochs": best.epochs}
                row["one_answer"] = best.values(DISTINCT, scored).count(1)  # for so many seeds
                if None in best.scores:
                    row["undefined"] = "the loss diverged; give a lower --lrs"
                elif None in values:
                    row["undefined"] = "a correlation with constant predictions"
                records.append(row)
                headlines.setdefault(model, {}).setdefault(task_name, row)
    for model, rows in headlines.items():
        if GLUE.keys() <= rows.keys():
            parts = [rows[name] for name in GLUE]
            seeds = zip(*(part["values"] for part in parts), strict=True)
            values = [None if None in seed else statistics.fmean(seed) for seed in seeds]
            by_chance = statistics.fmean(part["chance"] for part in parts)
            records.append(record(model, "glue", "average", values, by_chance))
    return records


# ---- shares --------------------------------------------------------------------------------------


def share(student: dict, teacher: dict, base: list[float]) -> str | None:
    """Return how far the student came on the way from `base` (a score a seed) to the teacher, in
    percent with its standard deviation over seeds. None where a score is undefined, or where the
    teacher is not above the base by more than the deviation of the difference.

    The deviation is that of (part - share * way) / mean(way), the ratio's first-order term: what
    teacher and student have in common in a seed does not count twice.
    """
    if None in (*base, *student["values"], *teacher["values"]):
        return None
    parts, ways = np.subtract(student["values"], base), np.subtract(teacher["values"], base)
    way, seeds = ways.mean(), len(ways)
    if way <= (ways.std(ddof=1) if seeds > 1 else 0.0):
        return None
    ratio = parts.mean() / way
    text = f"{100 * ratio:.0f} %"
    if seeds > 1:
        text += f" ± {100 * (parts - ratio * ways).std(ddof=1) / way:.0f}"
    return text


def closing_lines(models: dict[str, Model], records: list[dict], headlines: dict) -> list[str]:
    """Say for each task and each run with a start and a teacher how far training took it."""
    by_key = {(r["model"], r["task"], r["metric"]): r for r in records}
    runs = [model for model in models.values() if model.start and model.teacher]
    lines = []
    for task, metric in headlines.items():
        for run in runs:
            start, student, teacher = (
                by_key[model.name, task, metric] for model in (run.start, run, run.teacher)
            )
            way = share(student, teacher, start["values"])
            said = f"recovered {way} of the way from its start to its teacher"
            if way is None:
                said = "has no way to recover that is clear of the noise"
            scores = f"start {score(start)}, student {score(student)}, teacher {score(teacher)}"
            lines.append(f"{task}: {run.name} {said} ({scores})")
    return lines


# ---- table ---------------------------------------------------------------------------------------


def table(facts: list[dict], records: list[dict], headlines: dict[str, str]) -> list[list[str]]:
    """Return cells, with a first row and a first column that name them.

    facts       {model, teacher or None, and what was measured} in the order of the columns
    headlines   {task: its first metric}; other metrics stand in the records alone
    """
    names = [model["model"] for model in facts]
    lines = [["", *names]]

    def add(name: str, show: Callable[..., str], key: str) -> None:
        values = [model.get(key) for model in facts]
        if any(value is not None for value in values):
            lines.append([name, *("" if value is None else show(value) for value in values)])

    def millions(number: int) -> str:
        return f"{number / 1e6:.1f} M"

    lines.append(["layers x width", *(f"{m['layers']} x {m['hidden']}" for m in facts)])
    add("parameters", millions, "parameters")
    add("without embeddings", millions, "parameters_without_embeddings")
    add("size, float32", "{:.0f} MB".format, "megabytes")
    add("FLOPs a token", millions, "flops_per_token")
    for shape in facts[0]["latency_ms"]:
        times = [model["latency_ms"][shape] for model in facts]
        cells = [f"{time['median']:.1f} ({time['p95']:.1f})" for time in times]
        lines.append([f"latency {shape}, ms (p95)", *cells])
    add("method", str, "method")
    add("held-out loss of its start", "{:.4f}".format, "start_loss")
    add("held-out loss", "{:.4f}".format, "loss")
    add("MLM perplexity", "{:.1f}".format, "perplexity")
    add("top-1 agreement", "{:.1%}".format, "agreement")
    add("sentence vectors: cosine", "{:.3f}".format, "sentence_cosine")
    add("nearest neighbour kept", "{:.1%}".format, "neighbour_kept")
    for task, metric in dict.fromkeys((r["task"], r["metric"]) for r in records):
        if metric.split()[0] != headlines[task]:
            continue
        scores = {r["model"]: r for r in records if (r["task"], r["metric"]) == (task, metric)}
        by_chance = scores[names[0]]["chance"]
        title = f"{task} {metric} (chance {by_chance:.3f})"
        lines.append([title, *(score(scores[name]) for name in names)])
        if metric == headlines[task]:
            kept = ["kept, from chance"]
            for model in facts:
                row, teacher = scores[model["model"]], scores.get(model["teacher"])
                base = [by_chance] * row["seeds"]
                kept.append((share(row, teacher, base) or "-") if teacher else "")
            lines.append(kept)
    return lines if len(names) <= WIDEST else [list(line) for line in zip(*lines, strict=True)]


def score(record: dict) -> str:
    """Return mean ± deviation, marked where all predictions were the same."""
    if record["mean"] is None:
        return "diverged" if "diverged" in record.get("undefined", "") else "undefined"
    text = f"{record['mean']:.3f}"
    if record["sd"] is not None:
        text += f" ± {record['sd']:.3f}"
    if record.get("one_answer"):
        text += f", one class ({record['one_answer']} of {record['seeds']} seeds)"
    return text


def markdown(lines: list[list[str]]) -> str:
    """Return a Markdown table with aligned columns, so that it can be read as it is, too."""
    rows = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    text = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        text.append(" | ".join(["| " + first.ljust(widths[0]), *cells]) + " |")
    return "\n".join(text)
