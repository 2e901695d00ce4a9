"""The page: docs/study/page.md, which is written by hand, with tables and pictures of the records.

A student's score is held against that of the teacher cut off at its depth (of a narrower student:
its untrained start), task by task on the same fine-tuning seeds. With S training seeds, F
fine-tuning seeds and d[s, f] the difference, a mean over tasks,

    error = sqrt(variance over s of mean_f d / S  +  variance over f of mean_s d / F)
"""

import math
import re
from pathlib import Path

import numpy as np

from distill.evaluation.table import markdown
from distill.study import figures
from distill.study.languages import KEPT_OUT
from distill.study.rows import ENGLISH, MULTILINGUAL
from distill.study.run import read_records
from minitransformer.files import UserError, atomic

TEMPLATE = Path(__file__).resolve().parents[2] / "docs" / "study" / "page.md"
AS_IS = {"neighbour_kept": "nearest neighbour kept", "sentence_cosine": "cosine"}


class Section:
    """The rows of one student at one budget, each a method from a start with its training seeds."""

    def __init__(self, records: list[dict], student: str, tokens: float):
        self.student, self.tokens = student, tokens
        references = {r["method"]: r["models"] for r in records if "seed" not in r}
        self.rows: dict[str, list[dict]] = {}
        for record in records:
            if record.get("tokens") == tokens:
                label = f"{record['method']} from {record['start']}"
                self.rows.setdefault(label, []).append(record)
        some = next(iter(self.rows.values()))[0]
        self.teacher = references["teacher"]["teacher"]
        base = references.get("cut-off", {}).get("cut-off")
        self.base, self.base_name = base or some["models"].get("start"), "teacher cut off"
        if base is None:
            self.base_name = "untrained start"
        keys = list(self.teacher["scores"])
        tasks = dict.fromkeys(key.split()[0] for key in keys)
        self.tasks = {task: next(k for k in keys if k.split()[0] == task) for task in tasks}
        self.rows = dict(sorted(self.rows.items(), key=lambda row: -self.scores(row[1]).mean()))

    @property
    def title(self) -> str:
        return f"{self.student}, {self.tokens / 1e6:g} million tokens"

    def scores(self, seeds: list[dict]) -> np.ndarray:
        """Percent (S, T, F) of training seeds, tasks, fine-tuning seeds; nan where undefined."""
        return np.stack([self.of_model(record["models"]["student"]) for record in seeds])

    def of_model(self, model: dict) -> np.ndarray:
        scores = [model["scores"][key] for key in self.tasks.values()]
        return 100 * np.array(scores, dtype=float)  # (T, F)

    def difference(self, seeds: list[dict], model: dict) -> tuple[float, float]:
        """Return the mean over tasks of student - model, and its standard error."""
        d = (self.scores(seeds) - self.of_model(model)).mean(axis=1)  # (S, F)
        return d.mean(), math.sqrt(error(d.mean(axis=1)) ** 2 + error(d.mean(axis=0)) ** 2)

    def as_is(self, seeds: list[dict], name: str) -> np.ndarray:
        found = [record["models"]["student"]["measures"].get(name) for record in seeds]
        return 100 * np.array(found, dtype=float)

    def table(self) -> str:
        measures = {k: title for k, title in AS_IS.items() if k in self.base["measures"]}
        head = ["", *self.tasks, "mean", f"above the {self.base_name}", *measures.values()]
        lines = [[*head, "own held-out loss", "seeds"]]
        for name, model in (("teacher", self.teacher), (self.base_name, self.base)):
            scores = self.of_model(model)
            cells = [plus_minus(task.mean(), error(task)) for task in scores]
            known = [100 * model["measures"].get(key, 1) for key in measures]
            lines.append([name, *cells, f"{scores.mean():.1f}", "", *map("{:.1f}".format, known)])
            lines[-1] += ["", ""]
        for name, seeds in self.rows.items():
            scores = self.scores(seeds)
            cells = [
                plus_minus(task.mean(), error(task.mean(axis=1))) for task in scores.swapaxes(0, 1)
            ]
            known = [self.as_is(seeds, key) for key in measures]
            curve = seeds[0]["curve"]
            line = [f"`{name}`", *cells, f"{scores.mean():.1f}"]
            line += [plus_minus(*self.difference(seeds, self.base), "+")]
            line += [plus_minus(values.mean(), error(values)) for values in known]
            lines.append([*line, f"{curve[0][1]:.3f} → {curve[-1][1]:.3f}", str(len(seeds))])
        return markdown(lines)

    def above_teacher(self) -> str:
        """Return a sentence about the students above their teacher; "" where there is none."""
        above = {name: self.difference(seeds, self.teacher) for name, seeds in self.rows.items()}
        above = {name: found for name, found in above.items() if found[0] > 0}
        if not above:
            return ""
        named = ", ".join(f"`{name}` by {plus_minus(*found)}" for name, found in above.items())
        return f"Above the teacher in the mean: {named} ([why](#students-above-their-teacher))."

    def text(self) -> str:
        first = next(iter(self.rows.values()))[0]
        settings = first["settings"]
        sequences = first["tokens_read"] // settings["seq_len"] // settings["steps"]
        command = f"python -m distill.study run --only '{self.student}/*/{self.tokens / 1e6:g}M'"
        facts = (
            f"{settings['steps']:,} steps of {sequences} x {settings['seq_len']} tokens out of"
            f" {first['text_tokens'] / 1e6:.1f} million, {settings['precision']},"
            f" on {first['machine']}. `{command}`"
        )
        return "\n\n".join(
            filter(None, [f"### {self.title}", facts, self.table(), self.above_teacher()])
        )


def error(values: np.ndarray) -> float:
    """Return the standard error of a mean; 0 of a single value."""
    return values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def plus_minus(mean: float, deviation: float, sign: str = "") -> str:
    return f"{mean:{sign}.1f}" + (f" ± {deviation:.1f}" if deviation else "")


# ---- languages -----------------------------------------------------------------------------------


def by_language(model: dict, what: str) -> dict[str, float]:
    """Return {language: percent} of translation retrieval, or of a task's first metric."""
    if what == "retrieval":
        return {name: 100 * share for name, share in model.get("retrieval", {}).items()}
    split = re.compile(rf"{what} \S+ ([a-z-]+)")
    found = {split.fullmatch(key): values for key, values in model["scores"].items()}
    return {
        match[1]: 100 * float(np.mean(v)) for match, v in found.items() if match and None not in v
    }


def languages(section: Section, what: str) -> dict[str, dict[str, float]]:
    """Return {model: {language: percent}}, students as means over their training seeds."""
    scores = {"teacher": by_language(section.teacher, what)}
    scores[section.base_name] = by_language(section.base, what)
    for name, seeds in section.rows.items():
        found = [by_language(record["models"]["student"], what) for record in seeds]
        scores[name] = {key: float(np.mean([f[key] for f in found])) for key in found[0]}
    return scores


def language_table(scores: dict[str, dict[str, float]]) -> str:
    names = sorted(scores["teacher"], key=lambda name: (name in KEPT_OUT, name))
    groups = {"distilled on": [n for n in names if n not in KEPT_OUT]}
    groups["kept out"] = [n for n in names if n in KEPT_OUT]
    groups = {name: members for name, members in groups.items() if members}
    lines = [["", *groups, *names]]
    for model, found in scores.items():
        means = [np.mean([found[n] for n in members]) for members in groups.values()]
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
    parts = [section.text() for section in found]
    english = [section for section in found if section.student == ENGLISH]
    main = max(english or found, key=lambda s: (min(map(len, s.rows.values())), s.tokens))
    figures.draw_ranking(folder / "ranking.png", main)
    figures.draw_tokens(folder / "tokens.png", english or found)
    for section in found:
        if section.student == MULTILINGUAL:
            tables = {what: languages(section, what) for what in ("retrieval", "reviews")}
            figures.draw_languages(folder / "languages.png", tables)
            for what, scores in tables.items():
                parts.append(f"### {section.title}: {what} by language")
                parts.append(language_table(scores))
    commits = sorted({record["commit"][:12] for record in records})
    values = {"table": main.table(), "sections": "\n\n".join(parts), "commits": ", ".join(commits)}
    text = TEMPLATE.read_text("utf-8")
    for name, value in values.items():
        text = text.replace(f"<!-- {name} -->", value)
    with atomic(page) as unfinished:
        unfinished.write_text(text, "utf-8")
    print(f"written: {page}")
    return 0
