"""The report's pictures: ranking, scores over tokens, languages."""

from pathlib import Path

from matplotlib.figure import Figure

from distill.study.rows import KEPT_OUT


def draw_ranking(file: Path, section) -> None:
    """Each row's mean with two standard errors, and its start; lines: teacher and baseline."""
    names = list(section.rows)[::-1]
    figure, views = Figure((11, 1.5 + 0.3 * len(names)), layout="constrained"), section.views
    panels = figure.subplots(1, len(views), sharey=True)
    for axes, (title, view) in zip(panels, views.items(), strict=True):
        means, errors = zip(*(section.view(name, view) for name in names), strict=True)
        bars = [2 * error for error in errors]
        axes.errorbar(means, range(len(names)), xerr=bars, fmt="o", label="student")
        starts = [section.view(section.start(name), view)[0] for name in names]
        axes.plot(starts, range(len(names)), "x", label="its start, untrained")
        for name, style in section.lines.items():
            axes.axvline(section.view(name, view)[0], ls=style, lw=1, color="black", label=name)
        axes.set_xlabel(title, fontsize=9)
    panels[0].set_yticks(range(len(names)), names)
    figure.suptitle(f"{section.title}; bars: 2 standard errors of the difference to the baseline")
    save(figure, file, panels)


def draw_tokens(file: Path, sections: list) -> None:
    """Scores over the tokens that were read, from the start on, of rows with several budgets."""
    names = [name for section in sections for name in section.rows]
    names = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    figure, views = Figure((11, 4.5), layout="constrained"), sections[0].views
    panels = figure.subplots(1, len(views))
    ticks = [0, *(section.tokens / 1e6 for section in sections)]
    for axes, (title, view) in zip(panels, views.items(), strict=True):
        for number, name in enumerate(names):
            points = [(sections[0], sections[0].start(name)), *((s, name) for s in sections)]
            found = [section.view(model, view)[0] for section, model in points]
            axes.plot(ticks, found, "osD^"[number // 10] + "-", label=name)
        for name, style in sections[0].lines.items():
            axes.axhline(sections[0].view(name, view)[0], ls=style, color="black", label=name)
        axes.set_xscale("symlog", linthresh=ticks[1], linscale=0.5)
        axes.set(xlabel="million tokens read", ylabel=title, xlim=(-ticks[1] / 5, 1.5 * ticks[-1]))
        axes.set_xticks(ticks, ["start", *map("{:g}".format, ticks[1:])])
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
