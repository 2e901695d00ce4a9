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
import os
from pathlib import Path

import torch

from distill.data.corpus import unknown_share
from distill.evaluation.as_is import (
    SENTENCES,
    compare_vectors,
    held_out_loss_of,
    probe_scores,
    sentence_vectors,
)
from distill.evaluation.columns import Model, load_columns
from distill.evaluation.cost import measure_costs
from distill.evaluation.finetune import Recipe, fine_tune
from distill.evaluation.glue import GLUE, glue_task, xnli_task
from distill.evaluation.named_tasks import NAMED
from distill.evaluation.table import (
    closing_lines,
    markdown,
    record,
    short_names,
    table,
    task_records,
)
from distill.evaluation.tasks import Task, folder_task
from distill.training import cli
from distill.training.device import autocast, choose_device, choose_precision, provenance
from distill.training.processes import world
from minitransformer.files import UserError, atomic, printable

KNOWN = (*NAMED, "glue", *GLUE, "xnli")
TUNING = ("lr", "epochs", "batch_size")  # a task says them, the command line may differ
UNKNOWN = 0.05  # the share of a task's letters from which a warning says that they are not read


# ---- settings ------------------------------------------------------------------------------------


def parse_config(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add, path = parser.add_argument, os.path.expanduser
    names = ", ".join(KNOWN)
    task_help = f"{names}, a folder with train.* and dev.*, or none (default: movies topics)"
    precision_help = "of all but latencies; auto: bf16 where the hardware multiplies it, else fp32"
    usual = "of fine-tuning (default: the task's)"
    add("runs", nargs="+", type=path, metavar="RUN", help="run folders, other folders, or hub ids")
    add("--teacher", type=path, help="what to compare with (default: each run's own teacher)")
    add("--data", action="append", help="held-out text, as in train.py (default: each run's own)")
    tasks = ["movies", "topics"]
    add("--tasks", nargs="+", type=path, default=tasks, metavar="T", help=task_help)
    add("--data-dir", type=path, help="GLUE and XNLI offline: a folder with one folder a task")
    add("--seeds", type=int, default=3, help="fine-tuned models a task (default: 3)")
    add("--lr", type=float, help=f"learning rate {usual}")
    add("--epochs", type=int, help=usual)
    add("--batch-size", type=int, help=usual)
    add("--max-tokens", type=int, default=128, help="longer inputs are cut (default: 128)")
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help=precision_help)
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto is cuda where there is one")
    add("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    add("--out", type=path, help="folder for results.json, results.md and pictures")
    config = parser.parse_args(argv)
    least = {"seeds": 1, "lr": 1e-12, "epochs": 1, "batch_size": 1, "max_tokens": 8, "threads": 0}
    for name, bound in least.items():
        if getattr(config, name) is not None:
            cli.check_number(name, getattr(config, name), bound)
    return config


def load_tasks(names: list[str], data_dir: str | None) -> list[Task]:
    groups = {"glue": list(GLUE), "none": []}
    names = [name for given in names for name in groups.get(given, [given])]
    for name in names:  # all names before any file
        if name not in KNOWN and not Path(name).is_dir():
            known = ", ".join(KNOWN)
            raise UserError(f"--tasks {name}: neither a folder nor one of {known}, none")
    tasks = {}
    for name in dict.fromkeys(names):
        if name in NAMED:
            task = NAMED[name]()
        elif name in GLUE:
            task = glue_task(name, data_dir)
        else:
            task = xnli_task(data_dir) if name == "xnli" else folder_task(name)
        if task.name in tasks:
            raise UserError(f"--tasks {name}: there is another task called {task.name}; rename one")
        tasks[task.name] = task
        show(str(task), *(f"note: {note}" for note in task.notes))
    return list(tasks.values())


# ---- tasks ---------------------------------------------------------------------------------------


def warn_of_unknown_letters(models: dict[str, Model], tasks: list[Task]) -> None:
    """Say which texts a tokenizer cannot read: their scores say little of the model."""
    by_tokenizer = {model.tokenizer.hash: model for model in models.values()}
    for model in by_tokenizer.values():
        for task in tasks:
            for name, split in {"train": task.train, **task.scored}.items():
                share = unknown_share(model.tokenizer, split.texts[:SENTENCES])
                if share >= UNKNOWN:
                    what = f"{share:.0%} of the letters of {task.name} {name} are unknown to"
                    show(f"warning: {what} the tokenizer of {model.name}")


def fine_tuned(
    models: dict[str, Model], tasks: list[Task], config: argparse.Namespace, **where
) -> tuple[list[dict], list[str]]:
    """Return the records of fine-tuning, and notes: the recipes, and the inputs that were cut."""
    records, notes = [], []
    for task in tasks:
        given = {name: getattr(config, name) or getattr(task, name) for name in TUNING}
        recipe = Recipe(**given, max_tokens=config.max_tokens, **where)
        notes.append(
            f"{task.name}: mean ± standard deviation over {config.seeds} seeds; learning rate"
            f" {recipe.lr:g}, {recipe.epochs} epochs, batches of {recipe.batch_size}"
        )
        for name, model in models.items():
            results = fine_tune(model, task, recipe, config.seeds)
            records += task_records(name, task, [result["scores"] for result in results])
            if cut := results[0]["cut"]:
                notes.append(f"{task.name}: {cut} inputs are too long for {name}, cut")
    return records, notes


def as_they_are(models: dict[str, Model], tasks: list[Task], **where) -> list[dict]:
    """Return the records of all that needs no fine-tuning."""
    records, vectors = [], {}
    for task in tasks:
        for name, model in models.items():
            records += task_records(name, task, [probe_scores(model, task, **where)])
    for name, model in models.items() if tasks else ():
        texts = next(iter(tasks[0].scored.values())).texts
        vectors[name] = sentence_vectors(model, list(dict.fromkeys(texts))[:SENTENCES], **where)
        if model.teacher:
            compared = compare_vectors(vectors[name], vectors[model.teacher.name])
            for metric, value in compared.items():
                records.append(record(name, "vectors", metric, [value]))
    return records


def show(*lines: str) -> None:
    """Print lines; names and labels come from files, and a terminal must not obey them."""
    print(*map(printable, lines), sep="\n", flush=True)


# ---- all of it -----------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    config = parse_config(argv)
    if world() > 1:
        raise UserError("evaluate.py works in one process; start it with python, not torchrun")
    out = config.out and Path(config.out)
    if out:  # before hours of work
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {out} cannot be made: {error.strerror}") from None
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    if config.threads:
        torch.set_num_threads(config.threads)

    # ---- load: all that can be refused is refused here
    tasks = load_tasks(config.tasks, config.data_dir)
    models = load_columns(config.runs, config.teacher)
    for model in models.values():
        model.encoder.to(device)
    measured_by = provenance()
    where = f"{device}, {precision} (latencies float32), {measured_by['machine']}"
    show(f"evaluating {', '.join(models)} on {where}")
    warn_of_unknown_letters(models, tasks)

    # ---- held-out text
    facts = {name: {"model": name} for name in models}
    for name, model in models.items():
        loss = held_out_loss_of(model, config.data, autocast(device, precision))
        if loss is not None:
            facts[name] |= {"method": model.settings["method"], "loss": loss}
        if not config.data:
            facts[name]["loss_before"] = model.loss_before

    # ---- tasks, cost
    tuned, notes = fine_tuned(models, tasks, config, precision=precision, device=str(device))
    as_is = as_they_are(models, tasks, precision=precision, device=device)
    for name, costs in measure_costs(models).items():
        facts[name] |= costs

    # ---- results
    records, labels = tuned + as_is, short_names(list(models))
    lines = table(list(facts.values()), {"fine-tuned": tuned, "as it is": as_is}, labels)
    closing = closing_lines(models, tasks, records, labels)
    notes = [f"measured on {where}", *notes]
    if out:
        from distill.evaluation import figures  # here: matplotlib takes a second

        results = {
            **measured_by,
            "settings": vars(config),
            "models": list(facts.values()),
            "rows": records,
            "notes": [*(note for task in tasks for note in task.notes), *notes, *closing],
        }
        text = "\n\n".join([markdown(lines), "  \n".join(notes), "  \n".join(closing)])
        files = {
            "results.json": json.dumps(results, indent=1, allow_nan=False),
            "results.md": text.strip() + "\n",
        }
        for name, content in files.items():
            with atomic(out / name) as unfinished:
                unfinished.write_text(content, "utf-8")
        figures.draw(out, models, labels)
    show("", *markdown(lines).split("\n"), "", *notes, "", *closing)
    if out:
        show(f"written to {out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
