"""Results as records, as one table, and as Markdown.

A record says {model, task, metric, mean, sd, seeds, values}. The table has a measure a line and a
model a column, or the other way round where there are many models.
"""

import statistics

from distill.evaluation.glue import GLUE

WIDEST = 4  # models that stand beside each other; more stand below each other


def record(model: str, task: str, metric: str, values: list[float]) -> dict:
    """`values` is one score a seed; the standard deviation of a single one is not known: None."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    facts = {"mean": statistics.fmean(values), "sd": spread, "seeds": len(values), "values": values}
    return {"model": model, "task": task, "metric": metric, **facts}


def result_records(grids: dict, tasks: list, models) -> list[dict]:
    """The best cells' scores. Where several splits are scored, their mean and then each of them;
    where all of GLUE was done, its average over one number a task."""
    records = []
    for model in models:
        headlines = {}
        for task in tasks:
            best = grids[model, task.name].best()
            for metric in task.metrics:
                splits = {metric: list(task.scored)}
                if len(task.scored) > 1:
                    splits |= {f"{metric} {split}": [split] for split in task.scored}
                for name, of in splits.items():
                    records.append(record(model, task.name, name, best.values(metric, of)))
            headlines[task.name] = best.values(task.metrics[0], task.scored)
        if GLUE.keys() <= headlines.keys():
            seeds = zip(*(headlines[name] for name in GLUE), strict=True)
            records.append(record(model, "glue", "average", [statistics.fmean(s) for s in seeds]))
    return records


def cell_records(grids: dict) -> list[dict]:
    """Every cell of every grid, with each seed's scores."""
    return [
        {"model": model, "task": task, **vars(cell), "best": cell == grid.best()}
        for (model, task), grid in grids.items()
        for cell in grid.cells()
    ]


def table(models: list[dict], records: list[dict], headlines: dict[str, str]) -> list[list[str]]:
    """Cells, with a first row and a first column that name them.

    `models`: {model, teacher or None, and what was measured}, in order. `headlines`: {task: its
    first metric}; other metrics stand in the records alone.
    """
    lines = [["", *(m["model"] for m in models)]]

    def add(name: str, form: str, key: str, scale: float | None = None) -> None:
        known = [m.get(key) for m in models]
        known = [v if v is None or scale is None else v * scale for v in known]
        cells = ["" if v is None else form.format(v) for v in known]
        if any(cells):
            lines.append([name, *cells])

    lines.append(["layers x width", *(f"{m['layers']} x {m['hidden']}" for m in models)])
    add("parameters", "{:.1f} M", "parameters", 1e-6)
    add("without embeddings", "{:.1f} M", "parameters_without_embeddings", 1e-6)
    add("size, float32", "{:.0f} MB", "megabytes")
    add("FLOPs a token", "{:.1f} M", "flops_per_token", 1e-6)
    for shape in models[0]["latency_ms"]:
        times = [m["latency_ms"][shape] for m in models]
        cells = [f"{t['median']:.1f} ({t['p95']:.1f})" for t in times]
        lines.append([f"latency {shape}, ms (p95)", *cells])
    add(f"inputs/s, {next(iter(headlines), None)}", "{:.0f}", "inputs_per_s")
    add("method", "{}", "method")
    add("its held-out loss", "{:.4f}", "loss")
    add("MLM perplexity", "{:.1f}", "perplexity")
    add("top-1 agreement", "{:.1f} %", "agreement", 100)
    for task, metric in dict.fromkeys((r["task"], r["metric"]) for r in records):
        if metric.split()[0] == headlines[task]:
            of = {r["model"]: r for r in records if (r["task"], r["metric"]) == (task, metric)}
            lines.append([f"{task} {metric}", *(score(of[m["model"]]) for m in models)])
            if metric == headlines[task]:
                lines.append(["  kept", *(kept(of, m["model"], m["teacher"]) for m in models)])
    return lines if len(models) <= WIDEST else [list(column) for column in zip(*lines, strict=True)]


def score(record: dict) -> str:
    return f"{record['mean']:.3f}" + ("" if record["sd"] is None else f" ± {record['sd']:.3f}")


def kept(records: dict[str, dict], model: str, teacher: str | None) -> str:
    """The share of its teacher's score; a score of 0 or below has no shares."""
    if teacher is None or records[teacher]["mean"] <= 0:
        return ""
    return f"{100 * records[model]['mean'] / records[teacher]['mean']:.0f} %"


def plain(lines: list[list[str]]) -> str:
    """The table for a terminal, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        [cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(pairs)]
        for pairs in (zip(line, widths, strict=True) for line in lines)
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def markdown(lines: list[list[str]]) -> str:
    rows = ["| " + " | ".join(cell.strip() for cell in line) + " |" for line in lines]
    rule = "| --- " + "| ---: " * (len(lines[0]) - 1) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])
