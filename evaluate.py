"""What did distillation bring, and what does the student cost?

    python evaluate.py runs/mha-1                          beside its teacher, on movies and topics
    python evaluate.py runs/mha-1 runs/hs-1 --out results  several runs; JSON, Markdown, pictures
    python evaluate.py RUN --tasks glue --data-dir GLUE    GLUE's eight tasks from files
    python evaluate.py RUN --tasks my/task --seeds 5       your own: my/task/train.* and dev.*

RUN is a run folder of train.py, or any folder or hub id with an encoder. A student stands beside
its teacher and beside what costs no training: the teacher cut off after the student's number of
layers or, where their widths differ, the student's untrained start. One table is printed:

    cost         parameters, size, arithmetic, latency; each run's loss on held-out text
    fine-tuned   by one recipe (distill/evaluation/finetune.py): mean ± standard deviation over
                 seeds
    as it is     without fine-tuning: a linear probe on the sentence vectors, nearest neighbours
                 kept, translations found

and then, in words, how far each student came from that baseline to its teacher.

Results are cached under ~/.cache/minitransformer/evaluation by weights, task and recipe, so a
killed call can be repeated and a second one computes only what is new.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from distill.evaluation.as_is import (
    SENTENCES,
    compare_vectors,
    held_out_batches,
    on_held_out_text,
    probe_scores,
    sentence_vectors,
)
from distill.evaluation.columns import Model, load_columns
from distill.evaluation.cost import measure_costs
from distill.evaluation.finetune import Grid, Recipe
from distill.evaluation.glue import GLUE, LANGUAGES, glue_task, xnli_task
from distill.evaluation.named_tasks import NAMED
from distill.evaluation.table import (
    as_is_records,
    closing_lines,
    markdown,
    record,
    short_names,
    table,
    tuned_records,
)
from distill.evaluation.tasks import Task, folder_task
from distill.training import cli
from distill.training.device import autocast, choose_device, choose_precision, provenance
from distill.training.processes import world
from minitransformer.files import UserError, atomic, obstacle

KNOWN = (*NAMED, "glue", *GLUE, "xnli")


# ---- settings ------------------------------------------------------------------------------------


def parse_config(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    task_help = (
        f"{', '.join(KNOWN)}, a folder with train.* and dev.*, or none (default: movies topics)"
    )
    precision_help = "of all but latencies; auto: bf16 where the hardware multiplies it, else fp32"
    add("runs", nargs="+", metavar="RUN", help="run folders, other folders, or hub ids")
    add("--teacher", help="what to compare with (default: each run's own teacher)")
    add("--data", action="append", help="held-out text, as in train.py (default: each run's own)")
    add("--tasks", nargs="+", default=["movies", "topics"], metavar="T", help=task_help)
    add("--data-dir", help="GLUE and XNLI offline: a folder with one folder a task")
    add("--languages", nargs="+", choices=LANGUAGES, metavar="L", help="of xnli (default: all)")
    add("--seeds", type=int, default=3, help="fine-tuned models a task (default: 3)")
    add("--lrs", nargs="+", type=float, default=[], help="learning rates (default: the task's)")
    add("--epochs", nargs="+", type=int, default=[], help="of fine-tuning (default: the task's)")
    add("--batch-size", type=int, default=0, help="of fine-tuning (default: the task's)")
    add("--max-tokens", type=int, default=128, help="longer inputs are cut (default: 128)")
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help=precision_help)
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto is cuda where there is one")
    add("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    add("--out", type=Path, help="folder for results.json, results.md and pictures")
    config = parser.parse_args(argv)
    for name, least in {"seeds": 1, "batch_size": 0, "max_tokens": 8, "threads": 0}.items():
        cli.check_number(name, getattr(config, name), least)
    for value in config.lrs:
        cli.check_number("lrs", value, least=1e-12)
    for value in config.epochs:
        cli.check_number("epochs", value, least=1)
    return config


# ---- tasks ---------------------------------------------------------------------------------------


def load_tasks(config: argparse.Namespace) -> list[Task]:
    groups = {"glue": list(GLUE), "none": []}
    names = [name for given in config.tasks for name in groups.get(given, [given])]
    for name in names:  # all names before any file
        if name not in (*NAMED, *GLUE, "xnli") and not Path(name).is_dir():
            known = ", ".join(KNOWN)
            raise UserError(f"--tasks {name}: neither a folder nor one of {known}, none")
    tasks = {}
    for name in dict.fromkeys(names):
        if name in NAMED:
            task = NAMED[name]()
        elif name in GLUE:
            task = glue_task(name, config.data_dir)
        elif name == "xnli":
            task = xnli_task(config.data_dir, config.languages)
        else:
            task = folder_task(name)
        if task.name in tasks or task.name == "glue":  # the average has this name
            raise UserError(f"--tasks {name}: there is another task called {task.name}; rename one")
        tasks[task.name] = task
        for note in task.notes:
            print(f"note: {note}")
    return list(tasks.values())


def make_grids(
    models: dict[str, Model], tasks: list[Task], config: argparse.Namespace, recipe: Recipe
) -> dict[tuple[str, str], Grid]:
    """Return {(model, task): its grid}, task by task."""
    grids = {}
    for task in tasks:
        lrs, epochs = config.lrs or task.lrs, config.epochs or task.epochs
        own_recipe = replace(recipe, batch_size=config.batch_size or task.batch_size)
        for name, model in models.items():
            grids[name, task.name] = Grid(model, task, own_recipe, lrs, epochs, config.seeds)
    return grids


def fine_tune(grids: dict[tuple[str, str], Grid]) -> None:
    """Compute every cell that is not in the cache."""
    steps = sum(grid.steps() for grid in grids.values())
    bar = tqdm(desc="fine-tuning", total=steps, unit="step", disable=None, mininterval=1)
    for (name, task), grid in grids.items():
        if grid.missing():
            bar.set_postfix_str(f"{name} on {task}")
            grid.compute(bar.update)
    bar.close()


def notes_on(grids: dict[tuple[str, str], Grid]) -> list[str]:
    """Return what a reader of the scores must know: the grid, and the inputs that were cut."""
    settings, cut = {}, []
    for (model, task), grid in grids.items():
        points = ", ".join(f"{lr:g} x {epochs}" for lr, epochs in grid.points)
        settings[task] = (
            f"{task}: mean ± standard deviation of the best cell of {points} (learning rate x"
            f" epochs), {grid.seeds} seeds, batches of {grid.recipe.batch_size}"
        )
        if grid.cut():
            cut.append(f"{task}: {grid.cut()} inputs are too long for {model}, cut")
    return [*settings.values(), *cut]


def as_they_are(
    models: dict[str, Model], tasks: list[Task], device: torch.device, precision: str
) -> list[dict]:
    """Return the records of all that needs no fine-tuning."""
    records = []
    for task in tasks:
        for name, model in models.items():
            records += as_is_records(name, task, probe_scores(model, task, device, precision))
    if tasks:
        split = next(iter(tasks[0].scored.values()))
        sentences = list(dict.fromkeys(split.texts))[:SENTENCES]
        vectors = {
            name: sentence_vectors(model, sentences, device, precision)
            for name, model in models.items()
        }
        for name, model in models.items():
            if model.teacher:
                compared = compare_vectors(vectors[name], vectors[model.teacher.name])
                for metric, value in compared.items():
                    records.append(record(name, "vectors", metric, [value]))
    return records


def headlines_of(tasks: list[Task], records: list[dict]) -> dict[tuple[str, str], str]:
    """Return {(task, metric): how it is called} of what is said in words."""
    headlines = {(task.name, task.metrics[0]): f"{task.name}, fine-tuned" for task in tasks}
    if any(record["task"] == "glue" for record in records):
        headlines["glue", "average"] = "glue, fine-tuned"
    for task in tasks:
        headlines[task.name, f"probe {task.metrics[0]}"] = f"{task.name}, as it is"
        if task.aligned:
            headlines[task.name, "retrieval accuracy"] = f"{task.name}, translations found"
    return headlines


def shown(records: list[dict], headlines: dict[tuple[str, str], str]) -> list[dict]:
    """Return the records of the headlines and of their single splits, and those of vectors."""
    chosen = []
    for row in records:
        names = (metric for task, metric in headlines if task == row["task"])
        if row["task"] == "vectors" or any(
            row["metric"] == name or row["metric"].startswith(f"{name} ") for name in names
        ):
            chosen.append(row)
    return chosen


# ---- all of it -----------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    config = parse_config(argv)
    if world() > 1:
        raise UserError("evaluate.py works in one process; start it with python, not torchrun")
    if config.out and (path := obstacle(config.out)) is not None:  # before hours of work
        raise UserError(f"--out {config.out}: {path} is no folder that can be written to")
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    if config.threads:
        torch.set_num_threads(config.threads)

    # ---- load: all that can be refused is refused here
    tasks = load_tasks(config)
    models = load_columns(config.runs, config.teacher)
    for model in models.values():
        model.encoder.to(device)
    measured_by = provenance()
    where = f"{device}, {precision} (latencies float32), {measured_by['machine']}"
    print(f"evaluating {', '.join(models)} on {where}", flush=True)
    facts = {}
    for name, model in models.items():
        facts[name] = {"model": name, "teacher": model.teacher and model.teacher.name}

    # ---- held-out text
    batches = held_out_batches(models, config.data, device)
    for name, model in models.items():
        facts[name] |= on_held_out_text(model, batches[name], autocast(device, precision))
        if model.loss_before is not None and not config.data:
            facts[name]["loss_before"] = model.loss_before

    # ---- tasks
    recipe = Recipe(max_tokens=config.max_tokens, precision=precision, device=str(device))
    grids = make_grids(models, tasks, config, recipe)
    fine_tune(grids)
    tuned, as_is = tuned_records(grids), as_they_are(models, tasks, device, precision)
    records = tuned + as_is

    # ---- cost
    for name, costs in measure_costs(models).items():
        facts[name] |= costs

    # ---- table
    rows, labels = list(facts.values()), short_names(list(models))
    headlines = headlines_of(tasks, records)
    blocks = {"fine-tuned": shown(tuned, headlines), "as it is": shown(as_is, headlines)}
    lines = markdown(table(rows, blocks, labels))
    closing = closing_lines(models, records, headlines, labels)
    notes = [f"measured on {where}", *notes_on(grids)]
    print("", lines, "", *notes, *([""] if closing else []), *closing, sep="\n")

    # ---- files and pictures
    if config.out:
        from distill.evaluation import figures  # here: matplotlib takes a second

        recipes = {}
        for (_, task), grid in grids.items():
            recipes[task] = {"lr, epochs": grid.points, **asdict(grid.recipe)}
        results = {
            **measured_by,
            "settings": {"seeds": config.seeds, "recipes": recipes},
            "models": rows,
            "rows": records,
            "notes": [*(note for task in tasks for note in task.notes), *notes, *closing],
        }
        text = "\n\n".join([lines, "  \n".join(notes), "  \n".join(closing)])
        files = {
            "results.json": json.dumps(results, indent=1, allow_nan=False),
            "results.md": text.strip() + "\n",
        }
        config.out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with atomic(config.out / name) as unfinished:
                unfinished.write_text(content, "utf-8")
        figures.draw(config.out, models, labels)
        print(f"written to {config.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
