"""Which differences between methods are real: paired by seed, with a standard error of their own.

A score is one number for a method, a training seed and a task (the mean over fine-tuning seeds).
Seeds pair methods: equal seeds mean equal text, masks and random weights. With n seeds in common
and T tasks,

    difference  mean over tasks and seeds of  score[a] - score[b]
    its SE      sqrt(sum over tasks of  var over seeds of (score[a] - score[b]) / n) / T
    pooled SE   the same from all methods at once: the residual of score = method + seed, per task

Two seeds give a variance by chance nearly 0 now and then; a difference is therefore held against
the larger of both. Less than twice that is a tie. Where one seed is shared there is the pooled one
alone, which takes all methods to vary alike.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

Scores = dict[str, dict[int, dict[str, float]]]  # method -> seed -> task -> score


@dataclass(frozen=True)
class Difference:
    """`error` is None where no seed is shared, or one while no other methods tell the spread."""

    mean: float
    error: float | None

    @property
    def verdict(self) -> str:
        if self.error is None:
            return "one seed"
        if abs(self.mean) <= 2 * self.error:
            return "tie"
        return "ahead" if self.mean > 0 else "behind"

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {100 * self.error:.1f}"
        return f"{100 * self.mean:+.1f}{error}"


class Comparison:
    """The methods of one student at one budget, on the tasks that all of them have."""

    def __init__(self, scores: Scores):
        runs = [run for seeds in scores.values() for run in seeds.values()]
        self.tasks = [task for task in runs[0] if all(task in run for run in runs)]
        self.scores = scores

    def by_seed(self, method: str, tasks: list[str]) -> dict[int, float]:
        """Return {seed: mean over the tasks}."""
        seeds = self.scores[method].items()
        return {seed: statistics.fmean(run[task] for task in tasks) for seed, run in seeds}

    def mean_and_error(
        self, method: str, tasks: list[str] | None = None
    ) -> tuple[float, float | None]:
        """Return the mean over seeds and tasks, and its standard error over seeds."""
        means = list(self.by_seed(method, tasks or self.tasks).values())
        error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
        return statistics.fmean(means), error

    def ranking(self) -> list[str]:
        return sorted(self.scores, key=lambda method: -self.mean_and_error(method)[0])

    def best(self, methods: Iterable[str]) -> str | None:
        """Return the one with the highest mean among those that were run."""
        return next((method for method in self.ranking() if method in methods), None)

    def difference(self, a: str, b: str) -> Difference:
        seeds = sorted(self.scores[a].keys() & self.scores[b].keys())
        if not seeds:
            means = [self.mean_and_error(method)[0] for method in (a, b)]
            return Difference(means[0] - means[1], None)
        differences, variance = [], 0.0
        for task in self.tasks:
            left, right = self.by_seed(a, [task]), self.by_seed(b, [task])
            by_seed = [left[seed] - right[seed] for seed in seeds]
            differences += by_seed
            if len(seeds) > 1:
                variance += statistics.variance(by_seed) / len(seeds)
        pooled = self.pooled_error(len(seeds), self.tasks)
        if pooled is None and len(seeds) < 2:
            return Difference(statistics.fmean(differences), None)
        own_error = math.sqrt(variance) / len(self.tasks)
        return Difference(statistics.fmean(differences), max(own_error, pooled or 0.0))

    def pooled_error(self, seeds: int, tasks: list[str]) -> float | None:
        """Return the standard error of a difference over that many seeds; None where fewer than
        two methods share two seeds.
        """
        variances = [self.residual_variance(task) for task in tasks]
        if None in variances:
            return None
        return math.sqrt(2 * sum(variances) / seeds) / len(tasks)

    def residual_variance(self, task: str) -> float | None:
        """Return the variance in score = method + seed + residual, from the methods with two or
        more seeds and the seeds that all of these share.
        """
        repeated = [self.by_seed(m, [task]) for m, seeds in self.scores.items() if len(seeds) > 1]
        shared = set.intersection(*map(set, repeated)) if repeated else set()
        if len(repeated) < 2 or len(shared) < 2:
            return None
        table = [[by_seed[seed] for seed in sorted(shared)] for by_seed in repeated]
        rows = [statistics.fmean(row) for row in table]
        columns = [statistics.fmean(column) for column in zip(*table, strict=True)]
        mean = statistics.fmean(rows)
        squares = 0.0
        for i, row in enumerate(table):
            for j, score in enumerate(row):
                squares += (score - rows[i] - columns[j] + mean) ** 2
        return squares / ((len(rows) - 1) * (len(columns) - 1))
