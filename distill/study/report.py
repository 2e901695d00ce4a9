"""The page: tables and pictures of the records, in the text that stands in FOLDER/page.md.

A student is held against the teacher cut off at its depth (a narrower one: against its untrained
start), task by task on the same fine-tuning seeds. With S training seeds, F fine-tuning seeds and
d[s, f] the difference, a mean over tasks,

    error = sqrt(variance over s of mean_f d / S  +  variance over f of mean_s d / F)
"""

import math
from pathlib import Path

import numpy as np

from distill.evaluation.table import markdown
from distill.study import figures
from distill.study.help_text import KEPT_OUT
from distill.study.rows import ENGLISH
from distill.study.run import read_records
from minitransformer.files import UserError, atomic

KEPT = "vectors neighbours kept"
REFERENCES = ("teacher", "teacher with MLM head", "start", "cut-off")
TEMPLATE = "# Study\n\n<!-- table -->\n\n<!-- sections -->\n"
Scores = dict[str, list[float]]  # {"TASK METRIC [SPLIT]": a value for each fine-tuning seed}


class Section:
    """The rows of one student at one budget; a row is a method from a start, in all its seeds.

    references   {teacher and, last, the baseline: scores}
    rows         {row: records of its seeds}, the best first
    views        {row or reference: {"tuned": (mean, error), "kept": (mean, error)}}, percent
    """

    def __init__(self, records: list[dict], student: str, tokens: float):
        self.student, self.tokens, rows = student, tokens, {}
        shared = {r["method"]: r["scores"] for r in records if "seed" not in r}
        records = [record for record in records if record.get("tokens") == tokens]
        self.first = records[0]
        for record in records:
            start = ",".join(map(str, record["layers"])) or record["start"]
            rows.setdefault(f"{record['method']} from {start}", []).append(record)
        self.references = {name: shared[name] for name in REFERENCES if name in shared}
        self.base_name, self.base = list(self.references.items())[-1]
        tasks: dict[str, str] = {}
        for key in self.base:
            tasks.setdefault(key.split()[0], key)
        self.tasks = {
            name: tasks[name] for name in tasks if name not in ("vectors", "help", "glue")
        }
        probes = (f"{name} probe {key.split()[1]}" for name, key in self.tasks.items())
        self.as_is = [key for key in (*probes, KEPT, "help retrieval") if key in self.base]
        self.rows = dict(sorted(rows.items(), key=lambda row: -self.tuned(*row[1]).mean()))
        self.views = {}
        for name, scores in self.references.items():
            kept = 100 * scores.get(KEPT, [1])[0]  # the teacher keeps all
            self.views[name] = {"tuned": (self.of_model(scores).mean(), 0), "kept": (kept, 0)}
        for name, seeds in self.rows.items():
            tuned = (self.tuned(*seeds).mean(), self.difference(seeds, self.base)[1])
            self.views[name] = {"tuned": tuned, "kept": mean_and_error(values(seeds, KEPT))}

    @property
    def title(self) -> str:
        return f"{self.student}, {self.tokens / 1e6:g} million tokens"

    def of_model(self, scores: Scores) -> np.ndarray:
        """Percent (T, F) of tasks and fine-tuning seeds; nan where a score is undefined."""
        return 100 * np.array([scores[key] for key in self.tasks.values()], dtype=float)

    def tuned(self, *seeds: dict) -> np.ndarray:
        """Percent (S, T, F) of these records."""
        return np.stack([self.of_model(record["scores"]) for record in seeds])

    def difference(self, seeds: list[dict], scores: Scores) -> tuple[float, float]:
        """Return the mean over tasks of student - model, and its standard error."""
        d = (self.tuned(*seeds) - self.of_model(scores)).mean(axis=1)  # (S, F)
        parts = [mean_and_error(d.mean(axis=axis))[1] for axis in (0, 1)]
        return d.mean(), math.hypot(*parts)

    def table(self) -> str:
        names = {key: key.replace("vectors ", "").replace(" accuracy", "") for key in self.as_is}
        head = ["", *self.tasks, "mean", f"above the {self.base_name}", *names.values()]
        lines = [[*head, "own held-out loss", "seeds"]]
        for name, scores in self.references.items():
            cells = [plus_minus(*mean_and_error(task)) for task in self.of_model(scores)]
            found = [f"{100 * scores.get(key, [1])[0]:.1f}" for key in self.as_is]
            mean = f"{self.views[name]['tuned'][0]:.1f}"
            lines.append([name, *cells, mean, "", *found, "", ""])
        for name, seeds in self.rows.items():
            tasks = self.tuned(*seeds).mean(axis=2).T  # (T, S)
            cells = [plus_minus(*mean_and_error(task)) for task in tasks]
            cells += [f"{tasks.mean():.1f}", plus_minus(*self.difference(seeds, self.base), "+")]
            cells += [plus_minus(*mean_and_error(values(seeds, key))) for key in self.as_is]
            before, after = seeds[0]["curve"][0][1], seeds[0]["curve"][-1][1]
            lines.append([f"`{name}`", *cells, f"{before:.3f} → {after:.3f}", str(len(seeds))])
        return markdown(lines)

    def text(self) -> str:
        settings = self.first["settings"]
        sequences = self.first["tokens_read"] // settings["seq_len"] // settings["steps"]
        facts = (
            f"{settings['steps']:,} steps of {sequences} x {settings['seq_len']} tokens out of"
            f" {self.first['text_tokens'] / 1e6:.1f} million, {settings['precision']} on"
            f" {self.first['machine']}:"
            f" `python -m distill.study run --only '{self.student}/*/{self.tokens / 1e6:g}M'`"
        )
        teacher = self.references["teacher"]
        above = {name: self.difference(seeds, teacher) for name, seeds in self.rows.items()}
        named = [f"`{name}` by {plus_minus(*d)}" for name, d in above.items() if d[0] > 0]
        why = f"Above the teacher in the mean: {', '.join(named)}." if named else ""
        return "\n\n".join(filter(None, [f"### {self.title}", facts, self.table(), why]))


def values(seeds: list[dict], key: str) -> np.ndarray:
    """Percent (S,) of a score that has one value a student."""
    found = [record["scores"].get(key, [None])[0] for record in seeds]
    return 100 * np.array(found, dtype=float)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean and its standard error, 0 of a single value."""
    number = len(values)
    return values.mean(), values.std(ddof=1) / math.sqrt(number) if number > 1 else 0.0


def plus_minus(mean: float, error: float, sign: str = "") -> str:
    return f"{mean:{sign}.1f}" + (f" ± {error:.1f}" if error else "")


# ---- languages -----------------------------------------------------------------------------------


def by_language(section: Section, what: str) -> dict[str, dict[str, float]]:
    """Return {model: {language: percent}} of what has a score in each, kept-out ones last."""
    models = {name: [scores] for name, scores in section.references.items()}
    for name, seeds in section.rows.items():
        models[name] = [record["scores"] for record in seeds]
    keys = [key for key in section.base if key.startswith(f"{what} ")]
    keys.sort(key=lambda key: (key.split()[-1] in KEPT_OUT, key))
    return {
        name: {key.split()[-1]: 100 * float(np.mean([s[key] for s in seeds])) for key in keys}
        for name, seeds in models.items()
    }


def language_table(what: str, scores: dict[str, dict[str, float]]) -> str:
    names = list(scores["teacher"])
    groups = {"distilled on": [name for name in names if name not in KEPT_OUT]}
    if kept_out := [name for name in names if name in KEPT_OUT]:
        groups["kept out"] = kept_out
    lines = [[what, *groups, *names]]
    for model, found in scores.items():
        means = [np.mean([found[name] for name in group]) for group in groups.values()]
        lines.append([model, *map("{:.1f}".format, means), *(f"{found[n]:.0f}" for n in names)])
    return markdown(lines)


# ---- the page ------------------------------------------------------------------------------------


def sections(records: list[dict]) -> list[Section]:
    """Return them by student, in the order of the records, and by tokens."""
    found = []
    for student in dict.fromkeys(record["student"] for record in records):
        own = [record for record in records if record["student"] == student]
        budgets = sorted({record["tokens"] for record in own if "tokens" in record})
        found += [Section(own, student, tokens) for tokens in budgets]
    return found


def write_report(results: Path, page: Path) -> int:
    """Write the page, and its pictures into the folder beside it that has its name."""
    records = read_records(results)
    if not records:
        raise UserError(f"{results}: no record; make some with `python -m distill.study run`")
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    found = sections(records)
    english = [section for section in found if section.student == ENGLISH] or found
    main = max(english, key=lambda s: (sum(map(len, s.rows.values())), s.tokens))
    figures.draw_ranking(folder / "ranking.png", main)
    figures.draw_tokens(folder / "tokens.png", english)
    parts = []
    for section in found:
        parts.append(section.text())
        if "help retrieval" in section.base:
            tables = {
                what: by_language(section, what) for what in ("help retrieval", "reviews accuracy")
            }
            figures.draw_languages(folder / "languages.png", tables)
            parts += [language_table(what, scores) for what, scores in tables.items()]
    commits = sorted({record["commit"][:12] for record in records})
    text = template.read_text("utf-8") if (template := folder / "page.md").exists() else TEMPLATE
    filled = {"table": main.table(), "sections": "\n\n".join(parts), "commits": ", ".join(commits)}
    for name, value in filled.items():
        text = text.replace(f"<!-- {name} -->", value)
    with atomic(page) as unfinished:
        unfinished.write_text(text, "utf-8")
    print(f"written: {page}")
    return 0
