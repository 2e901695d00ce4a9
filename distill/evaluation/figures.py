"""A picture of what MHA transfer matches: which tokens resemble which, in teacher and student."""

import re
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
from minitransformer.attention import attention_map, split_heads

matplotlib.use("agg")  # files only; a window needs a screen
SENTENCE = "The bank refused the loan because it had lent too much money already."
MOST_TOKENS = 24  # of the sentence whose relations are drawn; more have no legible names


def draw(folder: Path, models: dict[str, Model], labels: dict[str, str]) -> None:
    """Draw the relations of each student and its teacher."""
    baselines = {model.baseline.name for model in models.values() if model.baseline}
    for model in models.values():
        if model.reads_like_teacher and model.name not in baselines:
            stem = re.sub(r"[^A-Za-z0-9.-]+", "-", labels[model.name]).strip("-.")
            draw_relations(folder / f"relations-{stem}.png", model, labels)


def relation_map(states: Tensor, heads: int) -> Tensor:
    """softmax(X X^T / sqrt(d)), X one of Q, K, V, mean over relation heads: (1, N, D) -> (N, N).

    What MHA transfer matches: how much each token (row) resembles each other one (column).
    """
    parts = split_heads(states, heads)  # (1, R, N, d)
    return attention_map(parts, parts).mean(dim=1)[0]


@torch.inference_mode()
def draw_relations(file: Path, model: Model, labels: dict[str, str]) -> None:
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
    row, _ = model.tokenizer.encode_pairs([SENTENCE], max_tokens=MOST_TOKENS)[0]
    tokens = [model.tokenizer.pipeline.id_to_token(i) for i in row]
    ids = torch.tensor([row], device=student.embeddings.word.weight.device)  # (1, N)
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
    targets, states = qkv_of(teacher, batch, layer), qkv_of(student, batch, last)
    compared = {"MHA loss": states}
    if model.baseline:
        compared["untrained"] = qkv_of(model.baseline.encoder, batch, last)

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
    sides = (
        f"teacher: layer {layer} of {labels[model.teacher.name]}",
        f"student: layer {last} of {labels[model.name]}",
    )
    for axes, label in zip(grid[:, 0], sides, strict=True):
        axes.set_ylabel(label, fontsize=10)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=9)
    title = f"How much each token (row) resembles the others, mean over {heads} relation heads"
    figure.suptitle(title, fontsize=11)
    figure.get_layout_engine().set(h_pad=0.08)
    figure.savefig(file, dpi=150)
    plt.close(figure)
