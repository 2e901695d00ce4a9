"""Pictures: what a student relates, how like its teacher's its layers are, score against latency.

relations    Q-Q, K-K and V-V relation maps of teacher and student for one sentence
similarity   CKA of every teacher layer with every student layer
frontier     score against latency for all models, with the best trade-offs joined
"""

import re
import statistics
import textwrap
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from distill.evaluation.models import Model
from distill.method import Batch, choose_heads, choose_teacher_layer
from distill.mha import relation_loss
from distill.program.machine import machine
from minitransformer.attention import attention_map, split_heads
from minitransformer.model import Encoder

matplotlib.use("agg")  # files only; a window needs a screen
MOST_TOKENS = 24  # of the sentence whose relations are drawn; more have no legible names


def draw_pairs(
    folder: Path, models: dict[str, Model], batches: dict[str, list[Batch]], sentence: str
) -> list[Path]:
    """Draw relations and similarity of each run and its teacher; return the files."""
    files = []
    for name, model in models.items():
        if not model.reads_like_teacher or model.name.endswith(" (start)"):
            continue
        short = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")
        files += [folder / f"relations-{short}.png", folder / f"similarity-{short}.png"]
        ids, _ = model.tokenizer.encode_pairs([sentence], max_tokens=MOST_TOKENS)[0]
        draw_relations(files[-2], model, torch.tensor([ids], device=batches[name][0].ids.device))
        draw_similarity(files[-1], model, batches[name][0])
    return files


def relation_map(states: Tensor, heads: int) -> Tensor:
    """softmax(X X^T / sqrt(d)), X one of Q, K, V, mean over relation heads: (1, N, D) -> (N, N).

    What MHA transfer matches: how much each token (row) resembles each other one (column).
    """
    parts = split_heads(states, heads)  # (1, R, N, d)
    return attention_map(parts, parts).mean(dim=1)[0]


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two sets of vectors for the same M tokens: 1 = alike up to rotation and scale.

    Equation   |Y^T X|² / (|X^T X| |Y^T Y|), Frobenius norms, columns centred
    Shapes     x (M, D_x), y (M, D_y)
    Invariant  rotating or scaling either side changes nothing; a side without any variance gives 0
    Source     Kornblith et al. 2019 (arXiv 1905.00414), equation 4 with linear kernels
    """
    x, y = (side.double() - side.double().mean(dim=0) for side in (x, y))
    norm = torch.linalg.matrix_norm
    scale = norm(x.T @ x) * norm(y.T @ y)
    return float(norm(y.T @ x) ** 2 / scale) if scale > 0 else 0.0


@torch.inference_mode()
def draw_relations(file: Path, model: Model, ids: Tensor) -> None:
    """Teacher above, student below, for the sentence `ids` (1, N). Layers and relation heads are
    those that the run was trained with, else as mha chooses them.

    A token's relation to itself is most of every row: it is left grey. Both sides of a column have
    one scale. A student's title has the loss that MHA transfer would count for this sentence.
    """
    settings, teacher, student = model.settings or {}, model.teacher.encoder, model.encoder
    widths = student.config.hidden_size, teacher.config.hidden_size
    heads = choose_heads(*widths, settings.get("relation_heads"))
    layer = choose_teacher_layer(len(teacher.blocks), settings.get("teacher_layer"))
    outputs = [qkv(teacher, ids, layer), qkv(student, ids, len(student.blocks))]
    start = qkv(model.start.encoder, ids, len(student.blocks)) if model.start else None
    labels = (
        f"teacher: layer {layer} of {shortened(model.teacher.name)}",
        f"student: layer {len(student.blocks)} of {shortened(model.name)}",
    )
    tokens = [model.tokenizer.pipeline.id_to_token(i) for i in ids[0].tolist()]
    size = {"figsize": (10, 8), "layout": "constrained"}
    figure, grid = plt.subplots(2, 3, sharex=True, sharey=True, **size)
    colours = matplotlib.colormaps["Blues"].with_extremes(bad="0.85")
    for column, letter in zip(grid.T, "QKV", strict=True):
        maps = [relation_map(output[letter], heads).float().cpu().numpy() for output in outputs]
        for values in maps:
            np.fill_diagonal(values, np.nan)
        highest = max(float(np.nanmax(values)) for values in maps) if len(tokens) > 1 else 1.0
        for axes, values, label in zip(column, maps, labels, strict=True):
            image = axes.imshow(values, vmin=0, vmax=highest, cmap=colours)
            axes.tick_params(length=0)
            if letter == "Q":
                axes.set_ylabel(label, fontsize=10)
                axes.set_yticks(range(len(tokens)), tokens, fontsize=9)
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=9)
        loss = f"MHA loss {sentence_loss(outputs[1], outputs[0], letter, heads):.3f}"
        if start:
            loss += f", untrained {sentence_loss(start, outputs[0], letter, heads):.3f}"
        column[0].set_title(f"{letter}-{letter}", fontsize=11)
        column[1].set_title(loss, fontsize=9.5)
        bar = figure.colorbar(image, ax=list(column), location="bottom", shrink=0.9, aspect=30)
        bar.set_label("share of the row", fontsize=9)
        bar.ax.locator_params(nbins=4)
    title = f"How much each token (row) resembles the others, mean over {heads} relation heads"
    figure.suptitle(title, fontsize=11)
    figure.get_layout_engine().set(h_pad=0.08)
    save(figure, file)


def qkv(encoder: Encoder, ids: Tensor, layer: int) -> dict[str, Tensor]:
    """Return {"Q", "K", "V": (1, N, D)} of that layer."""
    output = encoder(ids, stop=(layer, "qkv"), keep="last")
    return {"Q": output.queries[-1], "K": output.keys[-1], "V": output.values[-1]}


def sentence_loss(student: dict, teacher: dict, letter: str, heads: int) -> float:
    mask = torch.ones(student[letter].shape[:2], dtype=torch.bool, device=student[letter].device)
    total, count = relation_loss(student[letter], teacher[letter], mask, heads)
    return float(total / count)


@torch.inference_mode()
def draw_similarity(file: Path, model: Model, batch: Batch) -> None:
    """A cell is the CKA of a teacher layer (row) and a student layer (column) on the batch."""
    layers = []
    for encoder in (model.teacher.encoder, model.encoder):
        hidden = encoder(batch.ids, batch.mask).hidden
        layers.append([states[batch.mask].cpu() for states in hidden])  # (tokens, D) each
    values = [[cka(student, teacher) for student in layers[1]] for teacher in layers[0]]
    size = (max(6, 0.6 * len(layers[1]) + 3), max(4, 0.5 * len(layers[0]) + 1.5))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    image = axes.imshow(values, origin="lower", vmin=0, vmax=1, aspect="auto", cmap="Blues")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            colour = "white" if value > 0.6 else "black"
            text = f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(layers[1])))
    axes.set_yticks(range(len(layers[0])))
    axes.set_xlabel(f"layer of {shortened(model.name)} (0 = embeddings)")
    axes.set_ylabel(f"layer of {shortened(model.teacher.name)} (0 = embeddings)")
    tokens = len(layers[0][0])
    axes.set_title(f"How alike the layers are, on {tokens:,} tokens of held-out text", fontsize=10)
    figure.colorbar(image, label="linear CKA (1 = alike up to rotation)")
    save(figure, file)


def frontier(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats in both: x as low, y as high; by rising x."""
    best, kept = -float("inf"), []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept


def draw_frontier(file: Path, models: list[dict], records: list[dict], headlines: dict) -> None:
    """Draw each model at its latency and its mean headline score, with the spread over seeds.

    An untrained start is a hollow point from which an arrow leads to its student. A model with an
    undefined score is left out.
    """
    headlines = {task: metric for task, metric in headlines.items() if task != "glue"}
    points, spreads = {}, {}
    for model in models:
        name, scores = model["model"], []
        for record in records:
            if record["model"] == name and record["metric"] == headlines.get(record["task"]):
                scores.append(record["values"])
        if any(None in values for values in scores):
            continue
        seeds = [statistics.fmean(values) for values in zip(*scores, strict=True)]
        shape, times = next(iter(model["latency_ms"].items()))
        points[name] = (times["median"], statistics.fmean(seeds))
        spreads[name] = statistics.stdev(seeds) if len(seeds) > 1 else 0.0
    if not points:
        return
    starts = {model["start"] for model in models}
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    trained = [model for model in models if model["model"] in points.keys() - starts]
    candidates = [points[model["model"]] for model in trained]
    best = [candidates[i] for i in frontier(candidates)]
    if len(best) > 1:
        x, y = zip(*best, strict=True)
        axes.step(x, y, "--", where="post", color="0.6", label="best within its latency")
    for number, model in enumerate(trained):
        name, start = model["model"], model["start"]
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
