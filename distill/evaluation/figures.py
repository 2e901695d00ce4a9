"""A picture of what MHA transfer matches: which tokens resemble which, in teacher and student."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from distill.evaluation.columns import Model
from distill.method import Batch, choose_heads, choose_teacher_layer, qkv_of
from minitransformer.attention import attention_map, split_heads

matplotlib.use("agg")  # files only; a window needs a screen
SENTENCE = "The bank refused the loan because it had lent too much money already."


def relation_map(states: Tensor, heads: int) -> np.ndarray:
    """softmax(X X^T / sqrt(d)), X one of Q, K, V, mean over relation heads: (1, N, D) -> (N, N).

    A token's relation to itself is most of every row: it is left out.
    """
    parts = split_heads(states, heads)  # (1, R, N, d)
    values = attention_map(parts, parts).mean(dim=1)[0].float().cpu().numpy()
    np.fill_diagonal(values, np.nan)
    return values


@torch.inference_mode()
def draw_relations(file: Path, model: Model, labels: dict[str, str]) -> None:
    """Draw teacher (above) and student with the layer and relation heads of the run, or of MHA."""
    teacher, student, settings = model.teacher.encoder, model.encoder, model.settings or {}
    if not settings.get("relation_heads"):
        settings = {}  # of another method, which reads another layer
    widths = (student.config.hidden_size, teacher.config.hidden_size)
    heads = choose_heads(*widths, settings.get("relation_heads"))
    layer = choose_teacher_layer(len(teacher.blocks), settings.get("teacher_layer"))
    last = len(student.blocks)
    [(row, _)] = model.tokenizer.encode_pairs([SENTENCE], max_tokens=24)
    tokens = [model.tokenizer.pipeline.id_to_token(i) for i in row]
    ids = torch.tensor([row], device=student.embeddings.word.weight.device)  # (1, N)
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
    states = qkv_of(teacher, batch, layer), qkv_of(student, batch, last)

    figure, grid = plt.subplots(2, 3, figsize=(10, 8), layout="constrained", sharex=True)
    colours = matplotlib.colormaps["Blues"].with_extremes(bad="0.85")
    for column, name in zip(grid.T, ("query", "key", "value"), strict=True):
        maps = [relation_map(side[name], heads) for side in states]
        for axes, values in zip(column, maps, strict=True):
            image = axes.imshow(values, vmin=0, vmax=np.nanmax(maps), cmap=colours)
            axes.set_yticks([])
        column[0].set_title(f"{name}-{name}", fontsize=11)
        column[1].set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=9)
        bar = figure.colorbar(image, ax=list(column), location="bottom", shrink=0.9, aspect=30)
        bar.set_label("share of the row", fontsize=9)
    sides = f"teacher: layer {layer} of {labels[model.teacher.name]}", f"student: layer {last}"
    for axes, label in zip(grid[:, 0], sides, strict=True):
        axes.set_ylabel(label, fontsize=10)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=9)
    figure.suptitle(f"How much each token (row) resembles the others, mean over {heads} heads")
    figure.savefig(file, dpi=150)
    plt.close(figure)
