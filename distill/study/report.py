"""docs/study.md and its pictures, from the records alone."""

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from distill.evaluation.table import markdown
from distill.study import figures
from distill.study.compare import Comparison, Difference
from distill.study.help_text import ENGLISH, TRAINED
from distill.study.records import Records
from distill.study.units import METHODS, ORDER
from minitransformer.files import UserError, atomic

MHA = ("mha-L-1", "mha-L-2", "mha-L")
MAPS = ("hs-uniform", "hs-last", "hs-uniform-consecutive", "hs-uniform+last")
HS = (*MAPS, "hs-single")
OD = ("od", "od-after-hs")
# rows of the README's table, and the place that the paper's text gives the method
README_METHODS = {"mha-L-2": "best", "mha-L-1": "best", "direct-minilm": "", "hs-uniform": "second"}
README_METHODS |= {"od": "", "od-after-hs": "last", "mlm": ""}
MARGIN = 0.02  # who trails by less is competitive
LEARNED = 0.05  # who is less above chance has learned nothing
# (statement, methods on the left, on the right, what the difference left - right is then)
FINDINGS = (
    ("MHA transfer is generally best", MHA, (*HS, *OD, "direct-minilm", "mlm"), "ahead"),
    ("HS transfer stays competitive with MHA: within 2 points", HS, MHA, "competitive"),
    ("HS gains from its layer map: several layers over the last", MAPS, ("hs-single",), "ahead"),
    ("OD lags behind MHA", OD, MHA, "behind"),
    ("OD lags behind HS", OD, HS, "behind"),
    ("the same at equal cost: without the hs student as its start", OD[:1], HS, "behind"),
    ("MHA: an upper-middle layer, and its start, over the last", MHA[:2], MHA[2:], "ahead"),
)
QUESTIONS = (
    ("ours: a teacher over none", (*MHA, *HS, *OD, "direct-minilm"), ("mlm",), "ahead"),
    ("ours: relations over Q, K, V themselves", ("mha-L-1",), ("direct-minilm",), "ahead"),
    ("ours: od from the hs student over od alone, at twice the cost", OD[1:], OD[:1], "ahead"),
    ("ours: half hs, half mha over mha, at equal cost", ("mha-after-hs",), MHA[:1], "ahead"),
    ("start: 2,3,4 over 2,4,5, for mha", ("mha-L-1@2,3,4",), ("mha-L-1",), "ahead"),
    ("start: 3,4,5 over 2,4,5, for mha", ("mha-L-1@3,4,5",), ("mha-L-1",), "ahead"),
    ("start: 2,3,4 over 2,4,6, for hs", ("hs-uniform@2,3,4",), ("hs-uniform",), "ahead"),
    ("from the start 2,3,4 alike: m = L-2 over L-1", MHA[1:2], ("mha-L-1@2,3,4",), "ahead"),
    ("from the start 2,3,4 alike: mha over hs", MHA[1:2], ("hs-uniform@2,3,4",), "ahead"),
)


@dataclass(frozen=True)
class Group:
    """All records of one student at one budget."""

    student: str
    tokens: float
    records: list[dict]

    @property
    def name(self) -> str:
        return f"{self.student}, {self.tokens / 1e6:g} M tokens"

    @property
    def slug(self) -> str:
        return f"{self.student}-{self.tokens / 1e6:g}M"

    @property
    def comparison(self) -> Comparison:
        scores = defaultdict(dict)
        for record in self.records:
            scores[record["method"]][record["seed"]] = headlines(record["scores"]["student"])
        return Comparison(scores)

    def unlearned(self) -> list[str]:
        """Return the tasks in which no student is LEARNED above chance."""
        comparison, chance = self.comparison, {}
        for row in self.records[0]["scores"]["student"]:
            chance.setdefault(row["task"], row["chance"])
        return [
            task
            for task in comparison.tasks
            if all(
                comparison.mean_and_error(method, [task])[0] < chance[task] + LEARNED
                for method in comparison.scores
            )
        ]

    def rows(self) -> dict[str, list[list[dict]]]:
        """Return {teacher, start (by its copied layers) or method: the score rows of each run}."""
        found = defaultdict(list)
        for record in self.records:
            scores = record["scores"]
            found["teacher"].append(scores["teacher"])
            found[record["method"]].append(scores["student"])
            if "first" not in record:  # a second phase starts from a student, which is a row
                layers = ",".join(map(str, record.get("start", {}).get("layers", [])))
                found[f"start {layers}".strip()].append(scores["start"])
        return {name: [rows for rows in runs if rows] for name, runs in found.items() if any(runs)}

    def references(self) -> dict[str, dict[str, float]]:
        """Return {teacher or start: {task: score}}."""
        rows = {name: runs for name, runs in self.rows().items() if name not in METHODS}
        return {name: mean_of(headlines(run) for run in runs) for name, runs in rows.items()}

    def spread(self, name: str, task: str) -> str:
        """Return the least and the best of the fine-tuned models, as `51–79`: a teacher or a start
        has no training seeds, and fine-tuning may collapse.
        """
        values = []
        for run in self.rows()[name]:
            first = next(row for row in run if row["task"] == task)
            values += first["values"]
        return f"{100 * min(values):.0f}–{100 * max(values):.0f}"


def headlines(rows: list[dict]) -> dict[str, float]:
    """Return {task: mean over fine-tuning seeds of its first metric}."""
    found: dict[str, float] = {}
    for row in rows:
        if row["task"] != "glue":  # an average of other rows
            found.setdefault(row["task"], statistics.fmean(row["values"]))
    return found


def by_language(rows: list[dict], task: str) -> dict[str, float]:
    """Return {language: accuracy}, of the languages that are not English."""
    found = {}
    for row in rows:
        metric, _, language = row["metric"].partition(" ")
        if (row["task"], metric) == (task, "accuracy") and language not in ("", ENGLISH):
            found[language] = statistics.fmean(row["values"])
    return found


def mean_of(scores: Iterable[dict[str, float]]) -> dict[str, float]:
    scores = list(scores)
    return {name: statistics.fmean(score[name] for score in scores) for name in scores[0]}


def groups(records: list[dict]) -> list[Group]:
    """Return them in the plan's order, larger budgets first. Runs with an undefined score, as after
    a fine-tuning that diverged, are left out; the page counts them.
    """
    found = defaultdict(list)
    for record in records:
        if "scores" in record and is_defined(record):
            found[record["student"], record["tokens"]].append(record)
    names = [name for name, _, _ in ORDER]
    place = {name: names.index(name) for name in names}
    keys = sorted(found, key=lambda key: (place.get(key[0], len(names)), -key[1]))
    return [Group(*key, found[key]) for key in keys]


def is_defined(record: dict) -> bool:
    rows = [row for side in record["scores"].values() for row in side]
    losses = [loss for _, loss in record["curve"]]
    return None not in losses and not any(None in row["values"] for row in rows)


def measured_speeds(records: list[dict]) -> dict[str, float]:
    """Return tokens/s by student and by student/method, as the records have them."""
    found = defaultdict(list)
    for record in records:
        if record.get("tokens_read") and record.get("student"):
            speed = record["tokens_read"] / record["seconds"]
            found[record["student"]].append(speed)
            found[f"{record['student']}/{record['method']}"].append(speed)
    return {name: statistics.median(speeds) for name, speeds in found.items()}


# ---- the parts of the page -----------------------------------------------------------------------


def percent(score: float, error: float | None = None) -> str:
    return f"{100 * score:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def score_table(group: Group, references: dict, methods: Iterable[str], details: bool) -> str:
    """One line for the teacher, each start and each method, the best method first. Without details:
    the README's.
    """
    comparison = group.comparison
    ranking = [method for method in comparison.ranking() if method in methods]
    more = ["own held-out loss", "its start", "seeds", "lr", "hours"]
    if not details:
        more = ["its start", "in the paper"]
    lines = [["", *comparison.tasks, "mean", "to the best", *more]]
    for name, scores in references.items():
        cells = [f"{percent(scores[t])} ({group.spread(name, t)})" for t in comparison.tasks]
        mean = statistics.fmean(scores[task] for task in comparison.tasks)
        lines.append([name, *cells, percent(mean), "", *[""] * len(more)])
    for method in ranking:
        runs = [record for record in group.records if record["method"] == method]
        cells = [percent(*comparison.mean_and_error(method, [task])) for task in comparison.tasks]
        cells.append(percent(*comparison.mean_and_error(method)))
        difference = comparison.difference(method, ranking[0])
        cells.append("" if method == ranking[0] else f"{difference} ({difference.verdict})")
        if details:
            ends = (statistics.fmean(run["curve"][end][1] for run in runs) for end in (0, -1))
            rates = sorted({f"{run['settings']['lr']:g}" for run in runs})
            hours = statistics.fmean(map(training_seconds, runs)) / 3600
            cells += ["{:.3f} → {:.3f}".format(*ends), start_score(runs, comparison.tasks)]
            cells += [str(len(runs)), ", ".join(rates), f"{hours:.2f}"]
        else:
            cells += [start_score(runs, comparison.tasks), README_METHODS[method]]
        lines.append([f"`{method}`", *cells])
    return markdown(lines)


def start_score(runs: list[dict], tasks: list[str]) -> str:
    """The mean score of what the students started from."""
    starts = [headlines(run["scores"]["start"]) for run in runs]
    scores = [start[task] for start in starts for task in tasks if task in start]
    return percent(statistics.fmean(scores)) if scores else ""


def training_seconds(run: dict) -> float:
    """Of all its phases."""
    return run["seconds"] + run.get("first", {}).get("seconds", 0)


def budget(group: Group) -> str:
    """What every figure of the group rests on."""
    run = group.records[0]
    settings = run["settings"]
    machines = ", ".join(sorted({record["machine"] for record in group.records}))
    text = sum(corpus["tokens"] or 0 for corpus in run["text"])
    searched = any(record["rate_from"] != "defaults" for record in group.records)
    rates = "searched" if searched else "those of train.py"
    return (
        f"Each student read {group.tokens / 1e6:g} million tokens, {settings['batch_size']} x"
        f" {settings['seq_len']} a step, of a text of {text / 1e6:.1f} million, in"
        f" {settings['precision']} on {machines}; learning rates: {rates}."
    )


def command(group: Group) -> str:
    """What was typed for these runs; a setting of one's own needs its other flags, too."""
    run = group.records[0]
    words = ["python -m distill.study run --only", group.student]
    if run["scale"] != 1:
        words.append(f"--scale {run['scale']:g}")
    if run["rate_from"] == "defaults":
        words.append("--lr-from defaults")
    if group.student.startswith("multilingual"):
        words.append("--teacher " + Path(run["settings"]["teacher"]).name)
    return f"Command: `{' '.join(words)}`"


def time_taken(group: Group) -> str:
    """What all runs of the group took."""
    units = {record["unit"] for record in group.records}
    firsts = [record["first"] for record in group.records if "first" in record]
    counted_twice = sum(first["seconds"] for first in firsts if first["unit"] in units)
    training = sum(map(training_seconds, group.records)) - counted_twice
    evaluation = sum(record["evaluation_seconds"] for record in group.records)
    return (
        f"{len(group.records)} runs took {training / 3600:.1f} hours of training and"
        f" {evaluation / 3600:.1f} of evaluation ({group.records[0]['evaluation']['seeds']}"
        " fine-tuned models a run and task)."
    )


def resolution(comparison: Comparison) -> str:
    """The smallest differences that the design can see: twice the pooled standard error."""
    repeated = Counter(len(seeds) for seeds in comparison.scores.values() if len(seeds) > 1)
    seeds = repeated.most_common(1)[0][0] if repeated else 1
    error = comparison.pooled_error(seeds, comparison.tasks)
    if error is None:
        return "With one training seed no difference has a standard error."
    return (
        f"With {seeds} training seeds, differences of {200 * error:.1f} points in the mean can be"
        " told apart: twice the pooled standard error."
    )


def judge(difference: Difference, expected: str) -> str:
    if difference.verdict == "one seed":
        return "cannot say"
    if expected == "competitive":
        least, most = (difference.mean + side * difference.error for side in (-2, 2))
        return "agrees" if least > -MARGIN else "contradicts" if most < -MARGIN else "cannot say"
    if difference.verdict == "tie":
        return "cannot say"
    return "agrees" if difference.verdict == expected else "contradicts"


def findings_table(all_groups: list[Group]) -> str:
    """Each statement against the best method on its left and the best other one on its right."""
    lines = [["statement", "student", "verdict", "difference in points", "of all pairs"]]
    for statement, left, right, expected in FINDINGS + QUESTIONS:
        for group in all_groups:
            comparison = group.comparison
            a = comparison.best(left)
            b = comparison.best([method for method in right if method != a])
            if a and b:
                difference = comparison.difference(a, b)
                numbers = f"`{a}` − `{b}`: {difference} ({difference.verdict})"
                pairs = [(x, y) for x in left for y in right if {x, y} <= comparison.scores.keys()]
                judged = [judge(comparison.difference(*pair), expected) for pair in pairs]
                share = f"{judged.count('agrees')} of {len(pairs)} agree"
                lines.append([statement, group.name, judge(difference, expected), numbers, share])
    return markdown(lines)


def language_table(scores: dict[str, dict[str, float]], task: str) -> str:
    languages = list(next(iter(scores.values())))
    seen = [language for language in languages if language in TRAINED]
    unseen = [language for language in languages if language not in TRAINED]
    lines = [[task, "distilled on", "kept out", *languages]]
    for name in sorted(scores, key=lambda name: -statistics.fmean(scores[name].values())):
        cells = [
            percent(statistics.fmean(scores[name][language] for language in part))
            for part in (seen, unseen)
        ]
        lines.append([name, *cells, *(f"{100 * scores[name][name_]:.0f}" for name_ in languages)])
    return markdown(lines)


def rates_table(searches: list[dict]) -> str:
    lines = [["student, tokens", "method", "held-out loss at each learning rate", "taken", "hours"]]
    for search in searches:
        losses = [
            f"{rate:g}: " + ("diverged" if loss is None else f"{loss:.4f}")
            for rate, loss in search["rates"]
        ]
        hours = f"{search['seconds'] / 3600:.2f}"
        best, grid = f"{search['best']:g}", [rate for rate, _ in search["rates"]]
        if search["best"] in (min(grid), max(grid)):
            best += " (edge of the grid)"
        searched = f"{search['student']}, {search['tokens'] / 1e6:g} M"
        lines.append([searched, search["method"], ", ".join(losses), best, hours])
    return markdown(lines)


def readme_table(group: Group) -> str:
    """The README's "what we found", and the budget that it rests on."""
    teacher = {"teacher": group.references()["teacher"]}
    table = score_table(group, teacher, README_METHODS, details=False)
    return f"{table}\n\n{fill(f'{budget(group)} {resolution(group.comparison)}', 118)}"


# ---- the page ------------------------------------------------------------------------------------


INTRODUCTION = """\
Made by `python -m distill.study report` from [the records]({results}), one a run; nothing here is
typed by hand. How to read it:

- Scores are percent. ± is a standard error over training seeds; a teacher and a start have none,
  and (least–best) shows their fine-tuned models.
- A difference is paired by seed and has a standard error of its own
  ([compare.py](../distill/study/compare.py)). What twice that does not separate is a tie.
- Errors, ties and verdicts are of these dev examples. Others would move the scores, too: one
  accuracy of 60 % on 2,500 examples by a point, more in help-retrieval, whose languages share their
  200 paragraphs.
- Where a statement is about several methods, the one with the best mean stands for its side, which
  favours a side of many; "of all pairs" says how many pairs of methods, one of each side, agree.
- "mha-L-1" learns from the teacher's last layer but one, and so on, and starts from layers that end
  there; "@2,3,4": from these layers instead. "its start": the score of what it started from, before
  distillation; of `od-after-hs` and `mha-after-hs`, the `hs-uniform` student, whose tokens and
  hours come on top (of `mha-after-hs`, half and half).
- "own held-out loss": the method's loss on held-out text, before and after.
- In the multilingual tables help-part's mean includes English, help-retrieval's cannot. The teacher
  has no head for masked words there, so that of `mlm` starts at random.
- A commit is `-dirty` where a .py file differed from it; up to fd9ac6d the records themselves,
  which lie in the tree, counted as well.

Commits: {commits}."""


def page(records: list[dict], folder: Path, results: str) -> str:
    """Return the page's text, with a link to the records; its pictures are drawn into `folder`."""
    found = groups(records)
    found_commits = (record["commit"] for record in records if record.get("commit"))
    commits = {name[:12] + "-dirty" * name.endswith("-dirty") for name in found_commits}
    undefined = [r["unit"] for r in records if "scores" in r and not is_defined(r)]
    parts = [
        "# The study: which method of transfer is best?",
        INTRODUCTION.format(results=results, commits=", ".join(sorted(commits)) or "none yet"),
    ]
    if undefined:
        parts.append(f"Left out, a score is undefined: {', '.join(undefined)}.")
    for record in records:
        if "perplexity" in record:
            parts.append(
                f"English teacher: minilm after {record['settings']['steps']:,} steps of"
                f" masked-language modelling ({record['seconds'] / 3600:.2f} hours); held-out"
                f" perplexity {record['perplexity']:.1f}, {100 * record['accuracy']:.1f} % of the"
                " masked words right."
            )
    if not found:
        return "\n\n".join([*parts, "No student has been evaluated yet."]) + "\n"

    def picture(name: str, caption: str, function, *content) -> None:
        function(folder / f"{name}.png", *content)
        parts.append(f"![{caption}]({folder.name}/{name}.png)")

    unlearned = {group.name: group.unlearned() for group in found}
    judged = [group for group in found if not unlearned[group.name]]
    parts += ["## The study's findings, one by one", findings_table(judged)]
    for name, tasks in unlearned.items():
        if tasks:
            above = f"where no student is {100 * LEARNED:g} points above chance in"
            parts.append(f"Left out: {name}, {above} {', '.join(tasks)}.")
    picture("latency", "score against latency", figures.draw_latency, latencies(found))
    for group in found:
        comparison, references = group.comparison, group.references()
        facts = (budget(group), time_taken(group), resolution(comparison))
        parts += [f"## {group.name}", " ".join(facts), command(group)]
        parts.append(score_table(group, references, list(METHODS), details=True))
        content = (group.name, comparison, references)
        picture(f"ranking-{group.slug}", "mean scores", figures.draw_ranking, *content)
        curves = defaultdict(list)
        for record in group.records:
            curves[record["method"]].append(record["curve"])
        picture(f"curves-{group.slug}", "losses", figures.draw_curves, group.name, curves)
        for task in comparison.tasks:
            scores = {
                name: mean_of(by_language(rows, task) for rows in runs)
                for name, runs in group.rows().items()
            }
            if all(scores.values()):
                parts.append(language_table(scores, task))
                title = f"{group.name}: {task}"
                content = (title, scores, TRAINED)
                picture(f"{task}-{group.slug}", title, figures.draw_languages, *content)
    searches = [record for record in records if "rates" in record]
    if searches:
        parts += ["## Learning rates", rates_table(searches)]
    return "\n\n".join(parts) + "\n"


def latencies(all_groups: list[Group]) -> dict[str, tuple[float, dict[str, float]]]:
    """Return {student or teacher: (median milliseconds of one input, {method: mean score})}."""

    def milliseconds(group: Group, role: str) -> float:
        facts = [record["models"][role]["latency_ms"] for record in group.records]
        return statistics.median(next(iter(shapes.values()))["median"] for shapes in facts)

    points = {}
    for group in all_groups:
        comparison, references = group.comparison, group.references()
        means = {method: comparison.mean_and_error(method)[0] for method in comparison.scores}
        points[group.name] = (milliseconds(group, "student"), means)
        scores = [references["teacher"][task] for task in comparison.tasks]
        teacher = {"teacher": statistics.fmean(scores)}
        name = f"teacher, {group.student.partition('-')[0]}"
        points.setdefault(name, (milliseconds(group, "teacher"), teacher))
    return points


def write_report(source: Records, file: Path, readme: bool) -> int:
    records = source.read()
    if not records:
        raise UserError(f"--results {source.file} holds no record; name the file of a `run`")
    if readme:
        found = groups(records)
        if not found:
            raise UserError("no student has been evaluated yet; python -m distill.study run")
        main_student = [group for group in found if group.student == found[0].student]
        print(readme_table(max(main_student, key=lambda group: len(group.records))))
        return 0
    folder = file.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(file) as unfinished:
        results = Path(os.path.relpath(source.file, file.parent)).as_posix()
        unfinished.write_text(page(records, folder, results), "utf-8")
    print(f"written: {file}, its pictures in {folder}")
    return 0
