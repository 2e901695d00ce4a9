"""The report's pictures: ranking, scores over tokens, languages."""

from pathlib import Path

from matplotlib.figure import Figure

from distill.study.rows import KEPT_OUT


def draw_ranking(file: Path, section) -> None:
    """Each row's mean with two standard errors; lines for the teacher and the baseline."""
    names = list(section.rows)[::-1]
    figure, views = Figure((11, 1.5 + 0.3 * len(names)), layout="constrained"), section.views
    panels = figure.subplots(1, len(views), sharey=True)
    for axes, (title, view) in zip(panels, views.items(), strict=True):
        for place, name in enumerate(names):
            mean, error = section.view(name, view)
            axes.errorbar(mean, place, xerr=2 * error, fmt="o", color="C0")
        for number, name in enumerate(section.lines, 1):
            axes.axvline(section.view(name, view)[0], ls="--", lw=1, color=f"C{number}", label=name)
        axes.set_xlabel(title, fontsize=9)
    panels[0].set_yticks(range(len(names)), names)
    bars = "bars: two standard errors (fine-tuned: of the difference to the baseline)"
    figure.suptitle(f"{section.title}; {bars}", fontsize=10)
    save(figure, file, panels)


def draw_tokens(file: Path, sections: list) -> None:
    """Scores over the tokens that were read, of the rows that have more than one budget."""
    names = [name for section in sections for name in section.rows]
    names = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    figure, views = Figure((11, 4.5), layout="constrained"), sections[0].views
    panels = figure.subplots(1, len(views))
    ticks = [section.tokens / 1e6 for section in sections]
    for axes, (title, view) in zip(panels, views.items(), strict=True):
        for number, name in enumerate(names):
            found = [section for section in sections if name in section.rows]
            means = [section.view(name, view)[0] for section in found]
            tokens = [section.tokens / 1e6 for section in found]
            axes.plot(tokens, means, "osD^"[number // 10] + "-", label=name)
        for number, name in enumerate(sections[0].lines, len(names)):
            axes.axhline(sections[0].view(name, view)[0], ls="--", color=f"C{number}", label=name)
        axes.set(xscale="log", xlabel="million tokens read", ylabel=title)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    save(figure, file, panels)


def draw_languages(file: Path, tables: dict[str, tuple[list, dict]]) -> None:
    """Each model's score in each language; those that no student was distilled on come last."""
    figure = Figure((9, 7), layout="constrained")
    panels = figure.subplots(len(tables))
    for axes, (what, (names, scores)) in zip(panels, tables.items(), strict=True):
        for number, (model, found) in enumerate(scores.items()):
            axes.plot(names, found, "osD^"[number // 10] + ":", lw=0.7, label=model)
        seen = sum(name not in KEPT_OUT for name in names)
        axes.axvspan(seen - 0.5, len(names) - 0.5, alpha=0.1)
        axes.set(xlabel="language; shaded: kept out of the text", ylabel=f"{what} (percent)")
    save(figure, file, panels, legend=0)


def save(figure, file: Path, panels, legend: int = -1) -> None:
    panels[legend].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
