"""Pictures: which tokens resemble which for teacher and student, and score against latency."""

import re
import statistics
import textwrap
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from distill import METHODS
from distill.evaluation.columns import Model
from distill.method import (
    Batch,
    Method,
    QKVMethod,
    choose_heads,
    choose_teacher_layer,
    qkv_of,
)
from distill.mha import relation_loss
from distill.training.device import machine
from minitransformer.attention import attention_map, split_heads

matplotlib.use("agg")  # files only; a window needs a screen
MOST_TOKENS = 24  # of the sentence whose relations are drawn; more have no legible names


def draw(
    folder: Path,
    models: dict[str, Model],
    sentence: str,
    facts: list[dict],
    records: list[dict],
    headlines: dict[str, str],
) -> None:
    """Draw the relations of each run and its teacher, and all scores against latency.

    facts, records, headlines   as distill/evaluation/table.py has them
    """
    for name, model in models.items():
        if model.reads_like_teacher and not name.endswith(" (start)"):
            short = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")
            draw_relations(folder / f"relations-{short}.png", model, sentence)
    if records:
        draw_scores(folder / "score-latency.png", models, facts, records, headlines)


def relation_map(states: Tensor, heads: int) -> Tensor:
    """softmax(X X^T / sqrt(d)), X one of Q, K, V, mean over relation heads: (1, N, D) -> (N, N).

    What MHA transfer matches: how much each token (row) resembles each other one (column).
    """
    parts = split_heads(states, heads)  # (1, R, N, d)
    return attention_map(parts, parts).mean(dim=1)[0]


@torch.inference_mode()
def draw_relations(file: Path, model: Model, sentence: str) -> None:
    """Teacher above, student below. Layers and relation heads are those that a run of mha or
    direct-minilm was trained with, else as mha chooses them.

    A token's relation to itself is most of every row: it is left grey. Both sides of a column have
    one scale. A student's title has the loss that MHA transfer would count for this sentence.
    """
    teacher, student, settings = model.teacher.encoder, model.encoder, model.settings or {}
    if not issubclass(METHODS.get(settings.get("method"), Method), QKVMethod):
        settings = {}  # the others read another layer, and no heads
    widths = (student.config.hidden_size, teacher.config.hidden_size)
    heads = choose_heads(*widths, settings.get("relation_heads"))
    layer = choose_teacher_layer(len(teacher.blocks), settings.get("teacher_layer"))
    last = len(student.blocks)
    row, _ = model.tokenizer.encode_pairs([sentence], max_tokens=MOST_TOKENS)[0]
    tokens = [model.tokenizer.pipeline.id_to_token(i) for i in row]
    ids = torch.tensor([row], device=student.embeddings.word.weight.device)  # (1, N)
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
    targets, states = qkv_of(teacher, batch, layer), qkv_of(student, batch, last)
    compared = {"MHA loss": states}
    if model.start:
        compared["untrained"] = qkv_of(model.start.encoder, batch, last)

    size = {"figsize": (10, 8), "layout": "constrained"}
    figure, grid = plt.subplots(2, 3, sharex=True, sharey=True, **size)
    colours = matplotlib.colormaps["Blues"].with_extremes(bad="0.85")
    for column, name in zip(grid.T, ("query", "key", "value"), strict=True):
        maps = [relation_map(side[name], heads).float().cpu().numpy() for side in (targets, states)]
        for values in maps:
            np.fill_diagonal(values, np.nan)
        for axes, values in zip(column, maps, strict=True):
            image = axes.imshow(values, vmin=0, vmax=np.nanmax(maps), cmap=colours)
            axes.tick_params(length=0)
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=9)
        losses = []
        for label, side in compared.items():
            total, count = relation_loss(side[name], targets[name], batch.mask, heads)
            losses.append(f"{label} {total / count:.3f}")
        column[0].set_title("-".join(2 * name[0].upper()), fontsize=11)
        column[1].set_title(", ".join(losses), fontsize=9.5)
        bar = figure.colorbar(image, ax=list(column), location="bottom", shrink=0.9, aspect=30)
        bar.set_label("share of the row", fontsize=9)
        bar.ax.locator_params(nbins=4)
    labels = (
        f"teacher: layer {layer} of {shortened(model.teacher.name)}",
        f"student: layer {last} of {shortened(model.name)}",
    )
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label, fontsize=10)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=9)
    title = f"How much each token (row) resembles the others, mean over {heads} relation heads"
    figure.suptitle(title, fontsize=11)
    figure.get_layout_engine().set(h_pad=0.08)
    save(figure, file)


def draw_scores(
    file: Path,
    models: dict[str, Model],
    facts: list[dict],
    records: list[dict],
    headlines: dict[str, str],
) -> None:
    """Draw each model at its latency and its mean headline score, with the spread over seeds.

    An untrained start is a hollow point from which an arrow leads to its student. A model with an
    undefined score is left out.
    """
    headlines = {task: metric for task, metric in headlines.items() if task != "glue"}
    shape = next(iter(facts[0]["latency_ms"]))
    points, spreads = {}, {}
    for model in facts:
        name, scores = model["model"], []
        for record in records:
            if record["model"] == name and record["metric"] == headlines.get(record["task"]):
                scores.append(record["values"])
        if any(None in values for values in scores):
            continue
        seeds = [statistics.fmean(values) for values in zip(*scores, strict=True)]
        points[name] = (model["latency_ms"][shape]["median"], statistics.fmean(seeds))
        spreads[name] = statistics.stdev(seeds) if len(seeds) > 1 else 0.0
    if not points:
        return
    start_of = {name: model.start.name for name, model in models.items() if model.start}
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for number, name in enumerate(models):
        if name in start_of.values() or name not in points:
            continue
        start = start_of.get(name)
        form = {"fmt": "o", "color": f"C{number % 10}", "capsize": 3}
        axes.errorbar(*points[name], spreads[name], label=shortened(name), **form)
        if start in points:
            form |= {"markerfacecolor": "white", "label": shortened(start)}
            axes.errorbar(*points[start], spreads[start], **form)
            arrow = {"arrowstyle": "->", "color": "0.4", "shrinkA": 4, "shrinkB": 4}
            axes.annotate("", points[name], points[start], arrowprops=arrow)
    # a longer line does not fit beside the axis
    names = textwrap.fill(", ".join(headlines), 40, break_on_hyphens=False)
    axes.set_ylabel(f"mean headline score\n{names}")
    axes.set_xlabel(f"latency of a batch of {shape} tokens, median (ms)")
    axes.set_title(f"Score and time on {machine()}", fontsize=10)
    axes.margins(0.1)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    save(figure, file)


def shortened(name: str) -> str:
    """The end of a long name, which is what tells folders apart."""
    return name if len(name) <= 28 else "…" + name[-27:]


def save(figure, file: Path) -> None:
    figure.savefig(file, dpi=150)
    plt.close(figure)
