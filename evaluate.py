"""What did the student keep, and what does it cost?

    python evaluate.py runs/mha-1                          beside its teacher, on the docs tasks
    python evaluate.py runs/mha-1 runs/hs-1 --out results  several runs; JSON, Markdown, pictures
    python evaluate.py RUN --tasks glue --data-dir GLUE    GLUE's eight tasks from files
    python evaluate.py RUN --tasks my/task --seeds 5       your own: my/task/train.* and dev.*

RUN is a run folder of train.py, or any folder or hub id with an encoder. One table is printed:

    held-out   each run's own distillation loss; perplexity and agreement with the teacher where
               there are MLM heads
    cost       parameters, megabytes, arithmetic, latency, sentences/s, all models in turns
    tasks      fine-tuned by one recipe (distill/evaluation/finetune.py) over a grid of learning rates
               and epochs with K seeds; the best cell's mean ± standard deviation, and the share of
               the teacher's score that was kept

Fine-tuning results are cached under ~/.cache/minitransformer/finetune by weights, task and recipe,
so a killed call goes on and a second one computes only what is new.
"""

import argparse
import json
import math
import os
import re
import statistics
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from distill import build_method
from distill.data.batches import Text
from distill.evaluation.docs_tasks import DOCS
from distill.evaluation.finetune import Examples, Grid, Recipe, fingerprint
from distill.evaluation.glue import GLUE, glue_task, xnli_task
from distill.evaluation.table import cell_records, markdown, plain, result_records, table
from distill.evaluation.tasks import Task, folder_task
from distill.method import Batch
from distill.program import cli, cost
from distill.program.machine import choose_device, native_bfloat16, provenance
from distill.training.run import Run
from minitransformer.errors import UserError
from minitransformer.files import cache_folder
from minitransformer.model import Encoder
from minitransformer.pretrained import load_pretrained, read_weight_file
from minitransformer.tokenizer import Tokenizer

DOCS_RATES, RATES = (2e-4,), (3e-5, 1e-4, 3e-4)  # learning rates unless --lrs says otherwise
LENGTH = 128  # tokens, of the latencies
SENTENCE = "The bank refused the loan because it had lent too much money already."


# ---- settings ------------------------------------------------------------------------------------


def parse_config(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    names = ", ".join(("docs", *DOCS, "glue", *GLUE, "xnli"))
    add("runs", nargs="+", metavar="RUN", help="run folders, other folders, or hub ids")
    add("--teacher", help="what to compare with (default: each run's own teacher)")
    add("--data", action="append", help="held-out text, as in train.py (default: each run's own)")
    add(
        "--tasks",
        nargs="+",
        default=["docs"],
        metavar="T",
        help=f"{names}, a folder with train.* and dev.*, or none (default: docs)",
    )
    add("--data-dir", help="GLUE and XNLI offline: a folder with one folder a task")
    add("--regression", action="store_true", help="own tasks: integers are numbers, not classes")
    add("--seeds", type=int, default=2, help="fine-tuned models a cell of the grid (default: 2)")
    add(
        "--lrs",
        type=float,
        nargs="+",
        metavar="LR",
        help="learning rates of the grid (default: 2e-4 for docs, else 3e-5 1e-4 3e-4)",
    )
    add("--epochs", type=int, nargs="+", default=[3], metavar="N", help="of the grid (default: 3)")
    add("--batch-size", type=int, default=16, help="of fine-tuning (default: 16)")
    add("--max-tokens", type=int, default=128, help="longer inputs are cut (default: 128)")
    add("--sentence", default=SENTENCE, help="whose relation maps are drawn")
    add(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help="auto: bf16 where the hardware multiplies it, else fp32 (default: auto)",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1; auto is cuda where there is one")
    add("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    add("--out", type=Path, help="folder for results.json, results.md and pictures")
    config = parser.parse_args(argv)
    for name, least in (("seeds", 1), ("batch_size", 1), ("max_tokens", 8), ("threads", 0)):
        at_least(name, getattr(config, name), least)
    for epochs in config.epochs:
        at_least("epochs", epochs, 1)
    for lr in config.lrs or ():
        if not 0 < lr < math.inf:
            raise UserError(f"--lrs {lr} must be above 0 and finite")
    for name in ("runs", "tasks", "lrs", "epochs"):
        setattr(config, name, list(dict.fromkeys(getattr(config, name) or ())))
    return config


def at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"--{name.replace('_', '-')} is {value}, must be at least {least}")


# ---- models --------------------------------------------------------------------------------------


@dataclass
class Model:
    """One row of the table. `start` is the start record of a run of train.py, else None."""

    name: str
    encoder: Encoder
    tokenizer: Tokenizer
    start: dict | None = None
    teacher: "Model | None" = None

    @property
    def reads_like_teacher(self) -> bool:
        return self.teacher is not None and self.tokenizer.hash == self.teacher.tokenizer.hash

    @cached_property
    def fingerprint(self) -> dict:
        return fingerprint(self.encoder, self.tokenizer)


def load_models(config) -> dict[str, Model]:
    """All models by name: teachers first, then the runs in the order given."""
    starts = {name: start_record(name) for name in config.runs}
    noted = {name: start and start["teacher"] for name, start in starts.items()}
    teachers = {name: config.teacher or (note and note["name"]) for name, note in noted.items()}
    models = {}
    for name in dict.fromkeys([*filter(None, teachers.values()), *config.runs]):
        try:
            models[name] = Model(name, *load_pretrained(name), starts.get(name))
        except UserError as error:
            if starts.get(name) and not Path(name, "config.json").exists():
                hint = f"it is unfinished: python train.py --out {name} --resume"
            elif name not in config.runs and not config.teacher:
                hint = "it taught a run; name where it is now with --teacher"
            else:
                raise
            raise UserError(f"{error}; {hint}") from None
    for name, teacher in teachers.items():
        model = models[name]
        if teacher is None or teacher == name:
            continue
        model.teacher = models[teacher]
        if model.start and not model.reads_like_teacher:
            raise UserError(f"{name} and its teacher {teacher} have different tokenizers")
        if noted[name] and noted[name]["hash"] != model.teacher.fingerprint["weights"]:
            print(f"note: {name} learned from a teacher with other weights than {teacher}")
    return models


def start_record(name: str) -> dict | None:
    return Run(name).records()[0] if Path(name, "log.jsonl").exists() else None


# ---- held-out text -------------------------------------------------------------------------------


def held_out_batches(models: dict[str, Model], config, device) -> dict[str, list[Batch]]:
    """For each model the text that its run kept from training, or --data's. Models that no run of
    train.py made are measured on the text of the first that one made."""
    settings = {m.name: m.start["settings"] for m in models.values() if m.start}
    usual = next(iter(settings.values()), {"data": ["docs"], "seq_len": LENGTH, "alpha": 0.3})
    made, found = {}, {}
    for model in models.values():
        own = settings.get(model.name, usual)
        length = min(own["seq_len"], model.encoder.config.max_tokens)
        of = (tuple(config.data or own["data"]), length, own["alpha"], model.tokenizer.hash)
        if of not in made:
            text = Text(list(of[0]), model.tokenizer, length, alpha=own["alpha"])
            made[of] = [batch.to(device) for batch in text.held_out(16, masked=True)]
        found[model.name] = made[of]
    return found


@torch.inference_mode()
def held_out_loss(method, student: Encoder, teacher: Encoder | None, batches, autocast) -> float:
    total = count = 0.0
    for batch in batches:
        with autocast():
            part, number = method(student, teacher, batch)
        total, count = total + float(part), count + float(number)
    return total / count


def own_method(model: Model, device):
    """The method that the run was trained with, with the maps that it learned."""
    settings, teacher = model.start["settings"], model.teacher
    names = ("mapping", "teacher_layer", "relation_heads", "temperature", "positions")
    chosen = {name: settings[name] for name in names}
    method = build_method(
        settings["method"], model.encoder.config, teacher and teacher.encoder.config, **chosen
    )
    method.check_models(model.encoder, teacher and teacher.encoder)
    maps = Path(model.name, "projections.safetensors")
    try:
        method.load_state_dict(read_weight_file(maps) if maps.exists() else {})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{model.name}: its maps do not fit this teacher ({reason})") from None
    return method.to(device)


@torch.inference_mode()
def agreement(student: Encoder, teacher: Encoder, batches, autocast) -> float:
    """Share of the masked positions at which both predict the same word first."""
    same = count = 0
    for batch in batches:
        guesses = []
        for encoder in (student, teacher):
            with autocast():
                hidden = encoder(batch.masked_ids, batch.mask, keep="last").hidden[-1]  # (B, N, D)
                hidden = hidden.flatten(0, 1)[batch.positions]  # (M, D)
                guesses.append(encoder.mlm_logits(hidden).argmax(dim=-1))
        same, count = same + int((guesses[0] == guesses[1]).sum()), count + len(guesses[0])
    return same / count


def on_held_out_text(model: Model, batches, autocast, device) -> dict:
    """What can be said of this model: its own loss, perplexity, agreement with the teacher."""
    teacher, found = model.teacher if model.reads_like_teacher else None, {}
    if model.start and (teacher or model.start["settings"]["method"] == "mlm"):
        method = own_method(model, device)
        loss = held_out_loss(method, model.encoder, teacher and teacher.encoder, batches, autocast)
        found |= {"method": model.start["settings"]["method"], "loss": loss}
    if model.encoder.mlm_head is not None:
        mlm = build_method("mlm", model.encoder.config, None)
        found["perplexity"] = math.exp(held_out_loss(mlm, model.encoder, None, batches, autocast))
        if teacher and teacher.encoder.mlm_head is not None:
            found["agreement"] = agreement(model.encoder, teacher.encoder, batches, autocast)
    return found


# ---- cost ----------------------------------------------------------------------------------------


def costs(models: dict[str, Model], tasks: list[Task], device) -> list[dict]:
    """What each model takes; in everything that is timed the models take turns."""
    encoders = [model.encoder for model in models.values()]
    length = min(LENGTH, *(encoder.config.max_tokens for encoder in encoders))
    found = []
    for encoder in encoders:
        total, embeddings = cost.parameter_counts(encoder)
        found.append(
            {
                "layers": encoder.config.num_hidden_layers,
                "hidden": encoder.config.hidden_size,
                "parameters": total,
                "parameters_without_embeddings": total - embeddings,
                "megabytes": cost.megabytes(encoder),
                "flops_per_token": cost.flops_per_token(encoder, length),
                "latency_ms": {},
            }
        )
    for batch in (1, 32):
        for row, seconds in zip(found, cost.latencies(encoders, batch, length), strict=True):
            times = {"median": statistics.median(seconds), "p95": cost.percentile(seconds, 0.95)}
            row["latency_ms"][f"{batch} x {length}"] = {n: 1e3 * s for n, s in times.items()}
    rates = sentence_rates(models, tasks[0], device) if tasks else [None] * len(found)
    for row, rate in zip(found, rates, strict=True):
        row["inputs_per_s"] = rate
    return found


@torch.inference_mode()
def sentence_rates(models: dict[str, Model], task: Task, device) -> list[float]:
    """Inputs/s of the task's scored split (640 at most), 32 of like length at a time."""
    split = next(iter(task.scored.values()))
    size = min(640, len(split.texts))
    inputs = [Examples(split, m.tokenizer, m.encoder.config.max_tokens) for m in models.values()]
    seconds = [[] for _ in models]
    for turn in range(4):
        for model, examples, times in zip(models.values(), inputs, seconds, strict=True):
            start = time.perf_counter()
            for rows in examples.by_length(np.arange(size), 32):
                batch = examples.batch(rows, model.encoder.config.pad_token_id)
                model.encoder(*(part.to(device) for part in batch)).hidden[-1].cpu()
            if turn:  # the first round warms up
                times.append(time.perf_counter() - start)
    return [size / statistics.median(times) for times in seconds]


# ---- tasks ---------------------------------------------------------------------------------------


def load_tasks(config) -> list[Task]:
    groups = {"docs": list(DOCS), "glue": list(GLUE), "none": []}
    names = [name for given in config.tasks for name in groups.get(given, [given])]
    for name in names:  # all names before any file
        if name not in (*DOCS, *GLUE, "xnli") and not Path(name).is_dir():
            known = ", ".join(("docs", *DOCS, "glue", *GLUE, "xnli", "none"))
            raise UserError(f"--tasks {name}: neither a folder nor one of {known}")
    if config.data_dir and not Path(config.data_dir).is_dir():
        raise UserError(f"--data-dir {config.data_dir}: no such folder")
    tasks = {}
    for name in dict.fromkeys(names):
        if name in DOCS:
            task = DOCS[name]()
        elif name in GLUE:
            task = glue_task(name, config.data_dir)
        elif name == "xnli":
            task = xnli_task(config.data_dir)
        else:
            task = folder_task(name, config.regression)
        if task.name in tasks:
            raise UserError(f"--tasks {name}: there is another task called {task.name}; rename one")
        tasks[task.name] = task
        print(*task.notes, sep="\n", end="\n" * bool(task.notes))
    return list(tasks.values())


def fine_tune_all(models, tasks, config, recipe) -> dict[tuple[str, str], Grid]:
    """{(model, task): its grid}, with every cell computed or found in the cache."""
    cache = cache_folder() / "finetune"
    cache.mkdir(exist_ok=True)
    grids = {}
    for task in tasks:
        for model in models.values():
            of = (rates(task, config), config.epochs, config.seeds, cache)
            grids[model.name, task.name] = Grid(model.fingerprint, task, recipe, *of)
    total = sum(grid.steps(*point) for grid in grids.values() for point in grid.missing())
    bar = tqdm(total=total, unit="step", desc="fine-tuning", disable=None)
    began = time.monotonic()
    for (name, task), grid in grids.items():
        if grid.missing():
            bar.set_postfix_str(f"{name} on {task}")
            grid.compute(models[name].encoder, models[name].tokenizer, bar.update)
            if bar.disable:
                seconds = time.monotonic() - began
                print(f"fine-tuned {name} on {task}, {seconds:.0f} s so far", flush=True)
    bar.close()
    return grids


def rates(task: Task, config) -> list[float]:
    """The learning rates of the task's grid."""
    return config.lrs or list(DOCS_RATES if task.name in DOCS else RATES)


# ---- pictures ------------------------------------------------------------------------------------


def draw(models, facts, batches, records, headlines, config, device) -> list[Path]:
    """All pictures; those that need two models are drawn for each run and its teacher."""
    from distill.evaluation import figures

    files = []
    for name, model in models.items():
        if model.reads_like_teacher:
            slug = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")
            names = (model.teacher.name, name)
            encoders = (model.teacher.encoder, model.encoder)
            settings = model.start["settings"] if model.start else {}
            ids, _ = model.tokenizer.encode_pairs([config.sentence], max_tokens=40)[0]
            tokens = [model.tokenizer.pipeline.id_to_token(i) for i in ids]
            files.append(config.out / f"relations-{slug}.png")
            ids = torch.tensor([ids], device=device)
            figures.draw_relations(files[-1], names, encoders, ids, tokens, settings)
            files.append(config.out / f"similarity-{slug}.png")
            figures.draw_similarity(files[-1], names, encoders, batches[name][0])
    if records:
        files.append(config.out / "score-latency.png")
        figures.draw_frontier(files[-1], facts, records, headlines)
    return files


# ---- all of it -----------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    config = parse_config(argv)
    if config.out:
        check_folder(config.out)
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    bf16 = config.precision == "bf16"
    if config.precision == "auto":
        bf16 = native_bfloat16(device)

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    tasks = load_tasks(config)
    models = load_models(config)
    recipe = Recipe(
        batch_size=config.batch_size,
        max_tokens=config.max_tokens,
        precision="bf16" if bf16 else "fp32",
        device=str(device),
    )
    for model in models.values():
        model.fingerprint  # noqa: B018 - of the weights before they move to a GPU
        model.encoder.to(device)
    measured_by = provenance()
    where = f"{device}, {recipe.precision} (latencies float32), {measured_by['machine']}"
    print(f"evaluating {', '.join(models)} on {where}", flush=True)

    batches = held_out_batches(models, config, device)
    held_out = [on_held_out_text(m, batches[m.name], autocast, device) for m in models.values()]
    grids = fine_tune_all(models, tasks, config, recipe)
    records = result_records(grids, tasks, models)
    spent = costs(models, tasks, device)
    facts = [
        {"model": m.name, "teacher": m.teacher and m.teacher.name, **taken, **losses}
        for m, taken, losses in zip(models.values(), spent, held_out, strict=True)
    ]
    headlines = {task.name: task.metrics[0] for task in tasks} | {"glue": "average"}
    lines = table(facts, records, headlines)
    lrs = {task.name: rates(task, config) for task in tasks}
    settings = {"seeds": config.seeds, "epochs": config.epochs, "lrs": lrs}
    results = {
        **measured_by,
        "settings": {**settings, "recipe": asdict(recipe)},
        "models": facts,
        "rows": records,
        "cells": cell_records(grids),
    }
    notes = [f"measured on {where}"]
    if tasks:
        of = "; ".join(f"{n} {', '.join(f'{lr:g}' for lr in rates)}" for n, rates in lrs.items())
        notes.append(
            f"scores: mean ± standard deviation over {config.seeds} seeds, the best cell of epochs"
            f" {', '.join(map(str, config.epochs))} x learning rates {of}"
        )
    print("", plain(lines), "", *notes, sep="\n")
    if config.out:
        text = markdown(lines) + "\n\n" + "  \n".join(notes) + "\n"
        write(config.out / "results.json", json.dumps(results, indent=1))
        write(config.out / "results.md", text)
        files = draw(models, facts, batches, records, headlines, config, device)
        print("written:", *(config.out / "results.json", config.out / "results.md", *files))
    return 0


def check_folder(folder: Path) -> None:
    """Before hours of work: can its results be written? Those of an earlier call are replaced."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--out {folder}: nothing can be written to {above}")


def write(file: Path, text: str) -> None:
    unfinished = file.with_suffix(".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, "utf-8")
        os.replace(unfinished, file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from None


if __name__ == "__main__":
    cli.run(main)
