"""Pictures: what a student relates, how like its teacher's its layers are, what its time buys.

relations    Q-Q, K-K and V-V relation maps of teacher and student for one sentence
similarity   CKA of every teacher layer with every student layer
frontier     score against latency for all models, with the best trade-offs joined
"""

import statistics
import textwrap
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from distill.method import choose_heads, choose_teacher_layer
from distill.program.machine import machine
from minitransformer.attention import attention_map, split_heads

matplotlib.use("agg")  # files only; a window needs a screen


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
def draw_relations(file: Path, names, encoders, ids: Tensor, tokens: list[str], settings) -> None:
    """Teacher above, student below; `ids` (1, N) are the sentence, `tokens` its pieces. Layers and
    relation heads are those in the run's `settings`, else as mha chooses them.

    A token's relation to itself is most of every row: it is left white. Both sides of a column have
    one scale.
    """
    widths = [encoder.config.hidden_size for encoder in encoders]
    heads = choose_heads(widths[1], widths[0], settings.get("relation_heads"))
    top = choose_teacher_layer(len(encoders[0].blocks), settings.get("teacher_layer"))
    layers = (top, len(encoders[1].blocks))
    figure, grid = plt.subplots(2, 3, figsize=(14, 9), layout="constrained")
    outputs = [e(ids, stop=(layer, "qkv")) for e, layer in zip(encoders, layers, strict=True)]
    themselves = torch.eye(ids.shape[1], dtype=torch.bool)
    for column, part in zip(grid.T, ("queries", "keys", "values"), strict=True):
        maps = [relation_map(getattr(output, part)[-1], heads).cpu() for output in outputs]
        maps = [each.masked_fill(themselves, float("nan")) for each in maps]
        highest = max(float(each.nan_to_num().max()) for each in maps)
        letter = part[0].upper()
        for axes, each, side, layer in zip(column, maps, names, layers, strict=True):
            image = axes.imshow(each.numpy(), vmin=0, vmax=highest)
            axes.set_title(f"{letter}-{letter}, layer {layer} of {side}", fontsize=9)
            axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
            axes.set_yticks(range(len(tokens)), tokens, fontsize=7)
            axes.set(xlabel="token that it resembles", ylabel="token")
        figure.colorbar(image, ax=column, shrink=0.7, label="share of the token's row")
    figure.suptitle(f"Which tokens resemble which: mean over {heads} relation heads")
    save(figure, file)


@torch.inference_mode()
def draw_similarity(file: Path, names, encoders, batch) -> None:
    """A cell is the CKA of a teacher layer (row) and a student layer (column) on the batch."""
    sides = []
    for encoder in encoders:
        hidden = encoder(batch.ids, batch.mask).hidden
        sides.append([layer[batch.mask].cpu() for layer in hidden])  # (tokens, D) each
    values = [[cka(student, teacher) for student in sides[1]] for teacher in sides[0]]
    size = (max(6, 0.6 * len(sides[1]) + 3), max(4, 0.5 * len(sides[0]) + 1.5))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    image = axes.imshow(values, origin="lower", vmin=0, vmax=1, aspect="auto")
    for j, row in enumerate(values):
        for i, value in enumerate(row):
            colour = "white" if value < 0.6 else "black"
            axes.text(i, j, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(sides[1])))
    axes.set_yticks(range(len(sides[0])))
    axes.set_xlabel(f"layer of {names[1]} (0 = embeddings)")
    axes.set_ylabel(f"layer of {names[0]} (0 = embeddings)")
    tokens = len(sides[0][0])
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
    """Each model at its latency and its mean headline score; the bar is the spread over seeds."""
    headlines = {task: metric for task, metric in headlines.items() if task != "glue"}
    points, spreads = [], []
    for model in models:
        of = [r for r in records if r["model"] == model["model"]]
        of = [r["values"] for r in of if r["metric"] == headlines.get(r["task"])]
        seeds = [statistics.fmean(values) for values in zip(*of, strict=True)]
        shape, times = next(iter(model["latency_ms"].items()))
        points.append((times["median"], statistics.fmean(seeds)))
        spreads.append(statistics.stdev(seeds) if len(seeds) > 1 else 0.0)
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    best = [points[i] for i in frontier(points)]
    x, y = zip(*best, (1.05 * max(x for x, _ in points), best[-1][1]), strict=True)
    axes.plot(x, y, "--", drawstyle="steps-post", color="grey", label="best within its latency")
    for i, (model, (x, y), spread) in enumerate(zip(models, points, spreads, strict=True)):
        form = {"fmt": "osD^v"[i // 10 % 5], "color": f"C{i % 10}", "capsize": 3}
        axes.errorbar(x, y, spread, label=model["model"], **form)
    named = ", ".join(f"{task} {metric}" for task, metric in headlines.items())
    named = named if len(headlines) < 4 else f"the headline metrics of {len(headlines)} tasks"
    named = named if len(headlines) < 2 else f"mean of {named}"
    axes.set_ylabel(textwrap.fill(named, 45))  # a longer line does not fit beside the axis
    axes.set_xlabel(f"latency of a batch of {shape} tokens, median (ms)")
    axes.set_title(f"Score and time on {machine()}", fontsize=10)
    axes.margins(0.1)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    save(figure, file)


def save(figure, file: Path) -> None:
    figure.savefig(file, dpi=120)
    plt.close(figure)
