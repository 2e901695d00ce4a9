"""Results as records, as one table, as Markdown, and in words.

A record says {model, task, metric, mean, sd, seeds, values, chance}, `values` being one score a
seed; where a score is undefined (None), also why. The table has a measure a line and a model a
column, or the other way round where there are many models.

Shares are counted on the way between two scores, never from 0:

    kept        (score - chance) / (teacher - chance)
    recovered   (student - start) / (teacher - start)
"""

import statistics

from distill.evaluation.finetune import Cell, Grid
from distill.evaluation.glue import GLUE
from distill.evaluation.metrics import chance
from distill.evaluation.models import Model
from distill.evaluation.tasks import Task
from distill.program.table import columns

WIDEST = 6  # up to so many models: one a column; more: one a row


# ---- records -------------------------------------------------------------------------------------


def record(
    model: str, task: str, metric: str, values: list[float | None], by_chance: float, **more
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
        **more,
    }


def result_records(grids: dict[tuple[str, str], Grid], tasks: list[Task], models) -> list[dict]:
    """Return the best cells' scores. Where several splits are scored, their mean and then each;
    where all of GLUE was done, its average over one number a task.
    """
    records = []
    for model in models:
        headlines = {}
        for task in tasks:
            best = grids[model, task.name].best()
            for metric in task.metrics:
                splits = {metric: list(task.scored)}
                if len(task.scored) > 1:
                    splits |= {f"{metric} {split}": [split] for split in task.scored}
                for name, scored in splits.items():
                    parts = [chance(metric, task.scored[split].labels) for split in scored]
                    facts = doubts(best, best.values(metric, scored), scored)
                    values, by_chance = best.values(metric, scored), statistics.fmean(parts)
                    records.append(record(model, task.name, name, values, by_chance, **facts))
                    headlines.setdefault(task.name, records[-1])
        if GLUE.keys() <= headlines.keys():
            parts = [headlines[name] for name in GLUE]
            seeds = zip(*(part["values"] for part in parts), strict=True)
            values = [None if None in seed else statistics.fmean(seed) for seed in seeds]
            by_chance = statistics.fmean(part["chance"] for part in parts)
            records.append(record(model, "glue", "average", values, by_chance))
    return records


def doubts(cell: Cell, values: list[float | None], splits: list[str]) -> dict:
    """Return what a reader must know of a score: that it is undefined, or of a constant answer."""
    facts = {}
    if None in cell.scores:
        facts["undefined"] = "the loss diverged; give a lower --lrs"
    elif None in values:
        facts["undefined"] = "a correlation with constant predictions"
    if cell.one_answer(splits):
        facts["one_answer"] = cell.one_answer(splits)  # for so many seeds
    return facts


def cell_records(grids: dict[tuple[str, str], Grid]) -> list[dict]:
    """Return every cell of every grid, with each seed's scores."""
    records = []
    for (model, task), grid in grids.items():
        best = grid.best()
        for cell in grid.cells():
            records.append({"model": model, "task": task, **vars(cell), "best": cell == best})
    return records


# ---- shares --------------------------------------------------------------------------------------


def share(parts: list[float], wholes: list[float]) -> tuple[float, float | None] | None:
    """Return mean(parts) / mean(wholes) and its standard deviation over seeds; pairs by seed.

    The deviation is that of (part - share * whole) / mean(wholes), the ratio's first-order term:
    what teacher and student have in common in a seed does not count twice. None where the wholes
    are not above 0 by more than their own deviation: there is no way to be a share of.
    """
    whole = statistics.fmean(wholes)
    if whole <= (statistics.stdev(wholes) if len(wholes) > 1 else 0.0):
        return None
    ratio = statistics.fmean(parts) / whole
    rest = [(part - ratio * own) / whole for part, own in zip(parts, wholes, strict=True)]
    return ratio, statistics.stdev(rest) if len(rest) > 1 else None


def differences(values: list[float], base: list[float]) -> list[float]:
    return [value - other for value, other in zip(values, base, strict=True)]


def kept(score: dict, teacher: dict) -> str:
    """Return the share of the teacher's way up from chance; "-" where the teacher has none."""
    if score["mean"] is None or teacher["mean"] is None:
        return "-"
    base = [score["chance"]] * score["seeds"]
    result = share(differences(score["values"], base), differences(teacher["values"], base))
    return "-" if result is None else percent(*result)


def percent(ratio: float, spread: float | None) -> str:
    return f"{100 * ratio:.0f} %" + ("" if spread is None else f" ± {100 * spread:.0f}")


def recovered(task: str, who: str, start: dict, student: dict, teacher: dict) -> str:
    """Say in one line how far training took the student from its start to its teacher."""
    if None in (start["mean"], student["mean"], teacher["mean"]):
        return f"{task}: {who} cannot be compared with its start, a score is undefined"
    scores = f"start {start['mean']:.3f}, student {student['mean']:.3f}"
    scores += f", teacher {teacher['mean']:.3f}"
    gain = differences(student["values"], start["values"])
    way = share(gain, differences(teacher["values"], start["values"]))
    if way is None:
        return f"{task}: no way to recover, the teacher is not clearly above the start ({scores})"
    if way[0] < 0:
        return f"{task}: {who} is not above its start ({scores})"
    spread = "" if way[1] is None else f" (± {100 * way[1]:.0f})"
    return (
        f"{task}: {who} recovered {100 * way[0]:.0f} %{spread} of the way"
        f" from its start to its teacher ({scores})"
    )


def closing_lines(models: dict[str, Model], records: list[dict], headlines: dict) -> list[str]:
    """Return for each task and each run that has a start and a teacher how far it came."""
    by_key = {(r["model"], r["task"], r["metric"]): r for r in records}
    runs = [model for model in models.values() if model.start and model.teacher]
    lines = []
    for task, metric in headlines.items():
        for run in runs:
            names = (run.start.name, run.name, run.teacher.name)
            scores = [by_key.get((name, task, metric)) for name in names]
            who = "the student" if len(runs) == 1 else run.name
            if None not in scores:
                lines.append(recovered(task, who, *scores))
    return lines


# ---- table ---------------------------------------------------------------------------------------


def table(facts: list[dict], records: list[dict], headlines: dict[str, str]) -> list[list[str]]:
    """Return cells, with a first row and a first column that name them.

    facts       {model, teacher or None, and what was measured} in the order of the columns
    headlines   {task: its first metric}; other metrics stand in the records alone
    """
    names = [model["model"] for model in facts]
    lines = [["", *names]]

    def add(name: str, form: str, key: str, scale: float = 1) -> None:
        cells = []
        for model in facts:
            value = model.get(key)
            value = value * scale if isinstance(value, (int, float)) else value
            cells.append("" if value is None else form.format(value))
        if any(cells):
            lines.append([name, *cells])

    lines.append(["layers x width", *(f"{m['layers']} x {m['hidden']}" for m in facts)])
    add("parameters", "{:.1f} M", "parameters", 1e-6)
    add("without embeddings", "{:.1f} M", "parameters_without_embeddings", 1e-6)
    add("size, float32", "{:.0f} MB", "megabytes")
    add("FLOPs a token", "{:.1f} M", "flops_per_token", 1e-6)
    for shape in facts[0]["latency_ms"]:
        times = [model["latency_ms"][shape] for model in facts]
        cells = [f"{time['median']:.1f} ({time['p95']:.1f})" for time in times]
        lines.append([f"latency {shape}, ms (p95)", *cells])
    add(f"inputs/s, {next(iter(headlines), None)}", "{:.0f}", "inputs_per_s")
    add("method", "{}", "method")
    add("held-out loss of its start", "{:.4f}", "start_loss")
    add("held-out loss", "{:.4f}", "loss")
    add("MLM perplexity", "{:.1f}", "perplexity")
    add("top-1 agreement", "{:.1f} %", "agreement", 100)
    add("sentence vectors: cosine", "{:.3f}", "sentence_cosine")
    add("nearest neighbour kept", "{:.1f} %", "neighbour_kept", 100)
    for task, metric in dict.fromkeys((r["task"], r["metric"]) for r in records):
        if metric.split()[0] != headlines[task]:
            continue
        scores = {r["model"]: r for r in records if (r["task"], r["metric"]) == (task, metric)}
        by_chance = scores[names[0]]["chance"]
        title = f"{task} {metric} (chance {by_chance:.3f})"
        lines.append([title, *(score(scores[name]) for name in names)])
        if metric == headlines[task]:
            cells = []
            for model in facts:
                teacher = model["teacher"]
                cells.append(kept(scores[model["model"]], scores[teacher]) if teacher else "")
            lines.append(["  kept, from chance", *cells])
    return lines if len(names) <= WIDEST else [list(line) for line in zip(*lines, strict=True)]


def score(record: dict) -> str:
    """Return mean ± deviation, marked where all predictions were the same."""
    if record["mean"] is None:
        return "diverged" if "diverged" in record["undefined"] else "undefined"
    text = f"{record['mean']:.3f}"
    if record["sd"] is not None:
        text += f" ± {record['sd']:.3f}"
    answers = record.get("one_answer", 0)
    if answers:
        text += ", one class"
        if answers < record["seeds"]:
            text += f" ({answers} of {record['seeds']} seeds)"
    return text


def plain(lines: list[list[str]]) -> str:
    """Return the table for a terminal."""
    return columns(lines)


def markdown(lines: list[list[str]]) -> str:
    rows = ["| " + " | ".join(cell.strip() for cell in line) + " |" for line in lines]
    rule = "| --- " + "| ---: " * (len(lines[0]) - 1) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])
