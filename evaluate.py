"""What did distillation bring, and what does the student cost?

    python evaluate.py runs/mha-1                          beside its teacher, on movies and topics
    python evaluate.py runs/mha-1 runs/hs-1 --out results  several runs; also JSON and Markdown
    python evaluate.py RUN --tasks glue --data-dir GLUE    GLUE's eight tasks from files
    python evaluate.py RUN --tasks my/task --seeds 5       your own: my/task/train.* and dev.*

RUN is a run folder of train.py, or any folder or hub id with an encoder. A student is compared with
its teacher, with the teacher cut off after as many layers (where their widths agree), and with its
own untrained start (docs/evaluation.md). Results are cached: a second call computes what is new.
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from distill.data.corpus import unknown_share
from distill.evaluation import table
from distill.evaluation.as_is import SENTENCES, neighbours_kept, probe_scores, sentence_vectors
from distill.evaluation.columns import Model, load_columns
from distill.evaluation.cost import measure_costs
from distill.evaluation.finetune import Recipe, fine_tune
from distill.evaluation.glue import GLUE, glue_task, xnli_task
from distill.evaluation.named_tasks import NAMED
from distill.evaluation.tasks import Task, folder_task
from distill.training import cli
from distill.training.device import choose_device, choose_precision, provenance
from distill.training.processes import world
from minitransformer.files import UserError, atomic, printable
from minitransformer.pretrained import find_folder

KNOWN = ", ".join((*NAMED, "glue", *GLUE, "xnli", "none"))


def parse_config(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add, path, tasks = parser.add_argument, os.path.expanduser, ["movies", "topics"]
    task_help = f"{KNOWN}, or a folder with train.* and dev.* (default: movies topics)"
    precision_help = "auto: bf16 where the hardware multiplies it, else fp32"
    add("runs", nargs="+", type=path, metavar="RUN", help="run folders, other folders, or hub ids")
    add("--teacher", type=path, help="what to compare with (default: each run's own teacher)")
    add("--tasks", nargs="+", type=path, default=tasks, metavar="T", help=task_help)
    add("--data-dir", type=path, help="GLUE and XNLI offline: a folder with one folder per task")
    add("--seeds", type=int, default=3, help="fine-tuning seeds per task (default: 3)")
    add("--lr", type=float, help="learning rate of fine-tuning (default: the task's)")
    add("--epochs", type=int, help="epochs of fine-tuning (default: the task's)")
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help=precision_help)
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto is cuda where there is one")
    add("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    add("--out", type=path, help="folder for results.json, results.md (replaced)")
    config = parser.parse_args(argv)
    for name, least in {"seeds": 1, "lr": 1e-12, "epochs": 1, "threads": 0}.items():
        cli.check_number(name, getattr(config, name), least, most=1024)
    return config


def check_names(config: argparse.Namespace) -> list[str]:
    """Return the tasks; refuse unknown ones and a RUN that is not there, before other work."""
    groups = {"glue": list(GLUE), "none": []}
    names = dict.fromkeys(n for given in config.tasks for n in groups.get(given, [given]))
    for name in names:
        known, there = name in {*NAMED, *GLUE, "xnli"}, Path(name).is_dir()
        if known == there and not (known and config.data_dir):
            what = "both a folder and" if there else "neither a folder nor"
            raise UserError(f"--tasks {name}: {what} one of {KNOWN}; for a folder say ./{name}")
    for run in config.runs:
        find_folder(run)
    return list(names)


def load_tasks(config: argparse.Namespace) -> list[Task]:
    tasks = {}
    for name in check_names(config):
        if name in NAMED:
            task = NAMED[name]()
        elif name in GLUE:
            task = glue_task(name, config.data_dir)
        elif name == "xnli":
            task = xnli_task(config.data_dir)
        else:
            task = folder_task(name)
        if task.name in tasks:
            raise UserError(f"--tasks {name}: there is another task called {task.name}; rename one")
        lr, epochs = config.lr or task.lr, config.epochs or task.epochs
        tasks[task.name] = replace(task, lr=lr, epochs=epochs)
        show(str(task))
    return list(tasks.values())


def unknown_letters(models: dict[str, Model], tasks: list[Task]) -> Iterator[str]:
    """Yield which texts a tokenizer cannot read: their scores say little of the model."""
    for model in {model.tokenizer.hash: model for model in models.values()}.values():
        for task in tasks:
            for name, split in task.splits.items():
                texts = [*split.texts[:SENTENCES], *(split.text_pairs or [])[:SENTENCES]]
                share = unknown_share(model.tokenizer, texts)
                if share >= 0.05:
                    what = f"{share:.0%} of the letters of {task.name} {name}"
                    yield f"the tokenizer of {model.name} does not know {what}"


def score_all(models: dict[str, Model], tasks: list[Task], seeds: int, precision: str, device):
    """Return the records {block: rows}, and a note of each task's recipe."""
    tuned, as_is, notes, vectors = [], [], [], {}
    for task in tasks:
        how = task.lr, task.epochs, task.batch_size
        recipe = Recipe(*how, precision=precision, device=str(device))
        what = f"learning rate {how[0]:g}, {how[1]} epochs, batches of {how[2]}"
        notes.append(f"{task.name}: mean ± standard deviation over {seeds} seeds; {what}")
        results = fine_tune([*models.values()], task, recipe, seeds)
        for (name, model), found in zip(models.items(), results, strict=True):
            tuned += table.task_records(name, task, found)
            probed = probe_scores(model, task, device, precision)
            as_is += table.task_records(name, task, [probed])
    texts = [text for task in tasks[:1] for text in next(iter(task.scored.values())).texts]
    texts = list(dict.fromkeys(texts))[:SENTENCES]
    if len(texts) > 2:  # of two sentences each is the other's neighbour
        vectors = {n: sentence_vectors(m, texts, device, precision) for n, m in models.items()}
    for name, found in vectors.items():
        if teacher := models[name].teacher:
            kept = neighbours_kept(found, vectors[teacher.name])
            as_is.append(table.record(name, "vectors", "neighbours kept", [kept]))
    return {"fine-tuned": tuned, "as it is": as_is}, notes


def show(*lines: str) -> None:
    """Print lines; names and labels come from files, and a terminal must not obey them."""
    print(*map(printable, lines), sep="\n", flush=True)


def main(argv: list[str] | None = None) -> int:
    config = parse_config(argv)
    if world() > 1:
        raise UserError("evaluate.py works in one process; start it with python, not torchrun")
    if out := config.out and Path(config.out):  # before hours of work
        out.mkdir(parents=True, exist_ok=True)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    torch.set_num_threads(config.threads or torch.get_num_threads())

    tasks, models = load_tasks(config), load_columns(config.runs, config.teacher)
    for model in models.values():
        model.encoder.to(device)
    measured_by, labels = provenance(), table.short_names(list(models))
    where = f"{device}, {precision} (latencies float32), {measured_by['machine']}"
    notes = [f"note: {note}" for part in (*tasks, *models.values()) for note in part.notes]
    notes += [f"WARNING: {what}" for what in unknown_letters(models, tasks)]
    show(f"evaluating {', '.join(models)} on {where}", *notes)

    blocks, recipes = score_all(models, tasks, config.seeds, precision, device)
    costs = measure_costs(models)
    facts = [{"model": name, **model.logged, **costs[name]} for name, model in models.items()]

    rows = [row for block in blocks.values() for row in block]
    notes += [*recipes, f"measured on {where}; cached scores: on the machine that computed them"]
    lines = table.markdown(table.table(facts, blocks, labels))
    closing = table.closing_lines(models, tasks, rows, labels)
    show("", *lines.split("\n"), "", *notes, "", *closing)
    if out:
        results = {**measured_by, "settings": vars(config), "models": facts, "rows": rows}
        results["hashes"] = {name: model.hash for name, model in models.items()}
        results["tasks"] = {task.name: task.hash for task in tasks}
        results["notes"] = [*notes, *closing]
        with atomic(out / "results.json") as unfinished:
            unfinished.write_text(json.dumps(results, indent=1, allow_nan=False), "utf-8")
        with atomic(out / "results.md") as unfinished:
            unfinished.write_text("\n\n".join([lines, *notes, *closing]) + "\n", "utf-8")
        show(f"written to {out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
