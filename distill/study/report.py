"""The page: tables and pictures of the records, in the text that stands in FOLDER/page.md.

A student is compared with the teacher cut off at its depth, task by task on the same fine-tuning
seeds; a student that is narrower, with the untrained start of one seed. With S training seeds, F
fine-tuning seeds and d[s, f] the difference, a mean over tasks,

    error = sqrt(variance over s of mean_f d / S  +  variance over f of mean_s d / F)
"""

import math
from pathlib import Path

import numpy as np

from distill.evaluation.table import markdown
from distill.study import figures
from distill.study.rows import KEPT_OUT
from distill.study.run import read_records, start_label
from minitransformer.files import UserError

KEPT, RETRIEVAL = "vectors neighbours kept", "reviews retrieval accuracy"
HEADED = " with MLM head"  # the teacher that od has where the others' has none, and its copies
KINDS = ("teacher", "untrained start", "cut-off teacher")
REFERENCES = [kind + head for kind in KINDS for head in (HEADED, "")]  # last: the baseline
TEMPLATE = "# Study\n\n![](<!-- folder -->/ranking.png)\n\n<!-- sections -->"


class Section:
    """The rows of one student at one budget.

    models   {name: records, one a training seed}: teachers and starts of the rows, then the rows,
             best first; a row is a method and the teacher layers that its start copies
    """

    def __init__(self, records: list[dict], student: str, tokens: float):
        self.title = f"{student}, {tokens / 1e6:g} million tokens"
        command = f"`python -m distill.study run --only '{student}/*/{tokens / 1e6:g}M'`"
        self.command = "" if student.startswith("own-") else command
        shared = {r["method"]: [r] for r in records if "seed" not in r}
        references = sorted(shared, key=lambda n: (REFERENCES.index(n.split(" from ")[0]), n))
        self.base_name, self.headed = references[-1], f"teacher{HEADED}" in shared
        self.base = shared[self.base_name][0]["scores"]
        probes = {key: " probe ".join(key.rpartition(" ")[::2]) for key in self.base}
        self.tasks = [key for key, probe in probes.items() if probe in self.base]
        self.as_is = [probes[key] for key in self.tasks]
        self.as_is += [key for key in (KEPT, RETRIEVAL) if key in self.base]
        self.student, self.tokens, rows = student, tokens, {}
        for record in records:
            if record.get("tokens") == tokens:
                name = f"{record['method']} from {start_label(record)}"
                rows.setdefault(name, []).append(record)
        best_first = sorted(rows, key=lambda name: -np.nan_to_num(self.tuned(rows[name]).mean()))
        self.rows = {name: rows[name] for name in best_first}
        self.lines = {"teacher": "--", self.base_name: ":"}  # of pictures, and their styles
        used = {k + self._head(n) for k in ("teacher", "cut-off teacher") for n in ("", *rows)}
        used |= {self.base_name, *map(self.start, rows)}
        self.models = {name: shared[name] for name in references if name in used} | self.rows

    def tuned(self, seeds: list[dict]) -> np.ndarray:
        """Percent (T, S, F) of tasks, training seeds, fine-tuning seeds; nan where undefined."""
        scores = [[record["scores"][key] for record in seeds] for key in self.tasks]
        return 100 * np.array(scores, dtype=float)

    def _head(self, name: str) -> str:
        """Return what the name of a model's teacher ends with."""
        return HEADED if self.headed and (HEADED in name or name.startswith("od")) else ""

    def start(self, name: str) -> str:
        """Return the name of what a row starts from: a copy of its teacher's layers."""
        copied = name.rpartition(" from ")[2]
        if copied == ",".join(map(str, range(1, copied.count(",") + 2))):
            return f"cut-off teacher{self._head(name)}"
        return f"untrained start{self._head(name)} from {copied}"

    def baseline(self, name: str) -> str:
        """Return the cut-off teacher or, where there is none, the start of that row."""
        own = self.start(name) if "start" in self.base_name else ""
        return own if own in self.models else self.base_name

    def above_baseline(self, name: str, tasks: slice) -> tuple[float, float]:
        """Return the difference to the baseline and its standard error, in the mean of tasks."""
        d = self.tuned(self.models[name]) - self.tuned(self.models[self.baseline(name)])
        d = d[tasks].mean(axis=0)
        parts = [mean_and_error(d.mean(axis=axis))[1] for axis in (0, 1)]
        return d.mean(), math.hypot(*parts)

    @property
    def views(self) -> dict:
        """What the pictures show, {title: argument of `view`}: up to three tasks, or their mean."""
        tasks = {f"{key}, fine-tuned (%)": slice(n, n + 1) for n, key in enumerate(self.tasks)}
        if len(tasks) > 3:
            tasks = {"fine-tuned: mean of the tasks (%)": slice(None)}
        return tasks | {"nearest neighbours kept (%)": KEPT}

    def view(self, name: str, which: slice | str) -> tuple[float, float]:
        """Return mean and standard error in the mean of tasks or of neighbours kept, or nan."""
        if name not in self.models:
            return math.nan, math.nan
        if which == KEPT:
            return mean_and_error(values(self.models[name], KEPT))
        return self.tuned(self.models[name])[which].mean(), self.above_baseline(name, which)[1]

    def table(self) -> str:
        keys = self.tasks + self.as_is
        titles = [key.replace("vectors ", "").replace(" accuracy", "") for key in keys]
        lines = [["", *titles, "held-out loss", "seeds"]]
        for name, seeds in self.models.items():
            tasks = self.tuned(seeds)
            tasks = tasks.mean(axis=2) if len(seeds) > 1 else tasks[:, 0]
            cells = [plus_minus(*mean_and_error(task)) for task in tasks]
            if name != self.baseline(name):
                gains = [self.above_baseline(name, slice(n, n + 1)) for n in range(len(cells))]
                cells = [f"{c} ({plus_minus(*g, '+')})" for c, g in zip(cells, gains, strict=True)]
            cells += [plus_minus(*mean_and_error(values(seeds, key))) for key in self.as_is]
            curves = [record["curve"] for record in seeds if "curve" in record]
            ends = (np.mean([curve[end][1] for curve in curves]) for end in (0, -1) if curves)
            cells += [" → ".join(map("{:.3f}".format, ends)), str(len(curves) or "")]
            lines.append([f"`{name}`", *cells])
        return markdown(lines)

    def text(self) -> str:
        records = [record for seeds in self.rows.values() for record in seeds]
        where = {f"{r['settings']['precision']} on {r['machine']}": None for r in records}
        facts = f"{records[0]['settings']['steps']:,} steps; {'; '.join(where)}. "
        facts += f"In parentheses: the difference to `{self.base_name}`. "
        parts = [f"### {self.title}", facts + self.command, self.table()]
        if above := self._above_teacher():
            parts.append(f"Above the teacher in {'; in '.join(above)}.")
        return "\n\n".join(parts)

    def _above_teacher(self) -> list[str]:
        """Return for each score the models that have more than the teacher they copy or learn."""
        found = []
        for key in [key for key in self.tasks + self.as_is if key != KEPT]:
            percent = {name: values(seeds, key).mean() for name, seeds in self.models.items()}
            teachers = {n: percent[f"teacher{self._head(n)}"] for n in percent}
            gains = {n: round(percent[n] - teachers[n], 1) for n in percent}
            names = [f"`{name}` by {gain}" for name, gain in gains.items() if gain > 0]
            if names:
                found.append(f"{key.removesuffix(' accuracy')}: {', '.join(names)}")
        return found


def values(seeds: list[dict], key: str) -> np.ndarray:
    """Percent (S,) of a score, a mean over its values; the teacher has 100 % of itself."""
    missing = [1 if seeds[0]["method"].startswith("teacher") else math.nan]
    found = [np.array(record["scores"].get(key, missing), dtype=float) for record in seeds]
    return 100 * np.array([part.mean() for part in found])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean and its standard error, 0 of a single value."""
    number = len(values)
    return values.mean(), values.std(ddof=1) / math.sqrt(number) if number > 1 else 0.0


def plus_minus(mean: float, error: float, sign: str = "") -> str:
    text = f"{mean:{sign}.1f}" + (f" ± {error:.1f}" if error else "")
    return "undefined" if math.isnan(mean) else text


def by_language(section: Section, what: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the languages, kept-out ones last, and each model's percent in them."""
    keys = [key for key in section.base if key.startswith(f"{what} ")]
    keys.sort(key=lambda key: (key.split()[-1] in KEPT_OUT, key))
    found = {}
    for name, seeds in section.models.items():
        found[name] = np.array([values(seeds, key).mean() for key in keys])
    return [key.split()[-1] for key in keys], found


def language_table(what: str, names: list[str], scores: dict[str, np.ndarray]) -> str:
    unseen = np.array([name in KEPT_OUT for name in names])
    lines = [[what, "distilled on", "kept out", *names]]
    for model, found in scores.items():
        means = [f"{part.mean():.1f}" for part in (found[~unseen], found[unseen])]
        lines.append([f"`{model}`", *means, *map("{:.0f}".format, found)])
    return markdown(lines)


def write_report(results: Path, page: Path) -> int:
    """Write the page, and its pictures into the folder beside it that has its name."""
    records = list({record["row"]: record for record in read_records(results)}.values())
    if {"tokens" in record for record in records} != {True, False}:  # students and references
        raise UserError(f"{results}: no record; make some with `python -m distill.study run`")
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for student in dict.fromkeys(record["student"] for record in records):
        own = [record for record in records if record["student"] == student]
        for tokens in sorted({record["tokens"] for record in own if "tokens" in record}):
            found.append(Section(own, student, tokens))
    first = [section for section in found if section.student == found[0].student]
    main = max(first, key=lambda s: (sum(map(len, s.rows.values())), s.tokens))
    figures.draw_ranking(folder / "ranking.png", main)
    if len(first) > 1:  # budgets
        figures.draw_tokens(folder / "tokens.png", first)
    parts = []
    for section in found:
        parts.append(section.text())
        if section.student.startswith("multilingual-"):
            tables = {w: by_language(section, w) for w in (RETRIEVAL, "reviews accuracy")}
            figures.draw_languages(folder / f"languages-{section.tokens / 1e6:g}M.png", tables)
            parts += [language_table(what, *found) for what, found in tables.items()]
    commits = {record["commit"] or "no commit" for record in records}
    commits = sorted(commit[:12] + commit[40:] for commit in commits)  # -dirty
    text = template.read_text("utf-8") if (template := folder / "page.md").exists() else TEMPLATE
    filled = {"sections": "\n\n".join(parts), "commits": ", ".join(commits), "folder": folder.name}
    for name, value in filled.items():
        text = text.replace(f"<!-- {name} -->", value)
    page.write_text(text, "utf-8")
    print(f"written: {page}")
    return 0
