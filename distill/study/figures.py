"""The report's pictures: ranking, scores over tokens, languages."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from distill.study.languages import KEPT_OUT

matplotlib.use("agg")  # files only; a window needs a screen


def draw_ranking(file: Path, section) -> None:
    """Fine-tuned and as it is, side by side: each row's mean with two standard errors; lines for
    the teacher and the baseline.
    """
    names = list(section.rows)[::-1]
    size = {"figsize": (10, 1.5 + 0.3 * len(names)), "layout": "constrained"}
    figure, (tuned, as_is) = plt.subplots(1, 2, sharey=True, **size)
    for place, name in enumerate(names):
        seeds = section.rows[name]
        _, error = section.difference(seeds, section.base)
        tuned.errorbar(section.scores(seeds).mean(), place, xerr=2 * error, fmt="o", color="C0")
        kept = section.as_is(seeds, "neighbour_kept")
        as_is.plot(kept, [place] * len(kept), "o", color="C0")
    for number, (name, model) in enumerate(references(section).items(), 1):
        style = {"ls": "--", "lw": 1, "color": f"C{number}", "label": name}
        tuned.axvline(section.of_model(model).mean(), **style)
        if "neighbour_kept" in model["measures"]:
            as_is.axvline(100 * model["measures"]["neighbour_kept"], **style)
    tuned.set_yticks(range(len(names)), names)
    tuned.set_xlabel(f"fine-tuned: mean of {', '.join(section.tasks)} (percent); bars: 2 SE")
    as_is.set_xlabel("as it is: nearest neighbours kept (percent)")
    tuned.legend(fontsize=8)
    figure.suptitle(section.title, fontsize=10)
    save(figure, file, (tuned, as_is))


def draw_tokens(file: Path, sections: list) -> None:
    """Scores over the tokens that were read; only rows with more than one budget."""
    figure, (tuned, as_is) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    names = dict.fromkeys(name for section in sections for name in section.rows)
    number = 0
    for name in names:
        points = [section for section in sections if name in section.rows]
        if len(points) < 2:
            continue
        tokens = [section.tokens / 1e6 for section in points]
        style = {"marker": "osD^"[number // 10], "color": f"C{number % 10}", "label": name}
        tuned.plot(tokens, [s.scores(s.rows[name]).mean() for s in points], **style)
        kept = [s.as_is(s.rows[name], "neighbour_kept").mean() for s in points]
        as_is.plot(tokens, kept, **style)
        number += 1
    for name, model in references(sections[0]).items():
        style = {"ls": "--" if name == "teacher" else ":", "color": "black", "label": name}
        tuned.axhline(sections[0].of_model(model).mean(), **style)
        if "neighbour_kept" in model["measures"]:
            as_is.axhline(100 * model["measures"]["neighbour_kept"], **style)
    tuned.set_ylabel(f"fine-tuned: mean of {', '.join(sections[0].tasks)} (percent)")
    as_is.set_ylabel("as it is: nearest neighbours kept (percent)")
    for axes in (tuned, as_is):
        axes.set_xscale("log")
        axes.set_xlabel("million tokens read")
    as_is.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, file, (tuned, as_is))


def draw_languages(file: Path, tables: dict[str, dict[str, dict[str, float]]]) -> None:
    """Each model's score in each language; those that no student was distilled on come last."""
    figure, panels = plt.subplots(len(tables), figsize=(9, 7), layout="constrained")
    for axes, (what, scores) in zip(panels, tables.items(), strict=True):
        names = sorted(scores["teacher"], key=lambda name: (name in KEPT_OUT, name))
        for number, (model, found) in enumerate(scores.items()):
            marker = "osD^"[number // 10] + ":"
            axes.plot(names, [found[name] for name in names], marker, lw=0.7, label=model)
        unseen = sum(name in KEPT_OUT for name in names)
        if unseen:
            axes.axvspan(len(names) - unseen - 0.5, len(names) - 0.5, alpha=0.1)
        axes.set_ylabel(f"{what} (percent)")
    panels[-1].set_xlabel("language; shaded: not in the distillation text")
    panels[0].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, file, panels)


def references(section) -> dict[str, dict]:
    return {"teacher": section.teacher, section.base_name: section.base}


def save(figure, file: Path, panels) -> None:
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
    plt.close(figure)
