"""The report's pictures."""

import statistics
from collections.abc import Container
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from distill.study.compare import Comparison

matplotlib.use("agg")  # files only; a window needs a screen


def draw_ranking(file: Path, title: str, comparison: Comparison, references: dict) -> None:
    """Each method's mean over seeds and tasks; the bar is two standard errors, the strokes are
    single seeds; dashed lines for the teacher and the untrained starts.
    """
    ranking = comparison.ranking()[::-1]
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.35 * len(ranking)), layout="constrained")
    for place, method in enumerate(ranking):
        mean, error = comparison.mean_and_error(method)
        by_seed = comparison.by_seed(method, comparison.tasks).values()
        seeds = [100 * score for score in by_seed]
        bar = None if error is None else 200 * error
        axes.errorbar(100 * mean, place, xerr=bar, fmt="o", color="C0", capsize=3)
        axes.plot(seeds, [place] * len(seeds), "|", color="black", markersize=9)
    for number, (name, scores) in enumerate(references.items()):
        mean = 100 * statistics.fmean(scores[task] for task in comparison.tasks)
        axes.axvline(mean, ls="--", lw=1, color=f"C{number + 1}", label=name)
    axes.set_yticks(range(len(ranking)), ranking)
    axes.set_xlabel(f"mean of {', '.join(comparison.tasks)} (percent); bars: 2 standard errors")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, file)


def draw_curves(file: Path, title: str, curves: dict[str, list[list]]) -> None:
    """Each method's own held-out loss as a share of its first value; a line for each seed."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (method, runs) in enumerate(curves.items()):
        for place, run in enumerate(runs):
            steps, losses = zip(*run, strict=True)
            shares = [loss / (losses[0] or 1) for loss in losses]
            label = method if place == 0 else None
            style = {"color": f"C{number % 10}", "ls": "-" if number < 10 else "--"}
            axes.plot(steps, shares, lw=1.2, label=label, **style)
    axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("held-out loss / its value at the start")
    axes.set_title(f"{title}: each method's own loss", fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, file)


def draw_languages(file: Path, title: str, scores: dict, trained: Container[str]) -> None:
    """Each model's score in each language; languages that no student was distilled on come last."""
    languages = sorted(next(iter(scores.values())), key=lambda name: (name not in trained, name))
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for number, (name, by_language) in enumerate(scores.items()):
        values = [100 * by_language[language] for language in languages]
        axes.plot(languages, values, "osD^v"[number // 10] + ":", lw=0.7, label=name)
    unseen = [language for language in languages if language not in trained]
    if unseen:
        axes.axvspan(len(languages) - len(unseen) - 0.5, len(languages) - 0.5, alpha=0.1)
    axes.set_ylabel("accuracy (percent)")
    axes.set_xlabel("language; shaded: not in the distillation text")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, file)


def draw_latency(file: Path, points: dict[str, tuple[float, dict[str, float]]]) -> None:
    """Each student or teacher at its latency, a dot for each method; the best one is named."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (name, (latency, means)) in enumerate(points.items()):
        scores = [100 * mean for mean in means.values()]
        axes.plot([latency] * len(scores), scores, "o", color=f"C{number}", label=name, alpha=0.7)
        best = max(means, key=means.get)
        axes.annotate(f" {best}", (latency, 100 * means[best]), fontsize=8, va="center")
    axes.set_xlabel("median latency of one input of 128 tokens (ms)")
    axes.set_ylabel("mean score of the student's tasks (percent)")
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, file)


def save(figure, file: Path) -> None:
    figure.savefig(file, dpi=110)
    plt.close(figure)
