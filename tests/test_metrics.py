"""Each metric against scikit-learn or scipy, to 1e-12."""

import itertools

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from distill.evaluation.metrics import METRICS, chance

REFERENCES = {
    "accuracy": lambda p, y: sklearn.metrics.accuracy_score(y, p),
    "f1": lambda p, y: sklearn.metrics.f1_score(y, p, zero_division=0),
    "matthews": lambda p, y: sklearn.metrics.matthews_corrcoef(y, p),
    "pearson": lambda p, y: scipy.stats.pearsonr(p, y).statistic,
    "spearman": lambda p, y: scipy.stats.spearmanr(p, y).statistic,
}


def cases(numbers):
    rng = np.random.default_rng(0)
    for size, scale in itertools.product((3, 10, 1000), (1.0, 1e-3, 1e6) if numbers else (1, 2)):
        labels = rng.normal(size=size) * scale + 3 if numbers else rng.integers(scale, size=size)
        yield from ((rng.permutation(labels), labels), (labels, labels))
        if not numbers:
            yield from ((0 * labels, labels), (0 * labels, 0 * labels + 1))
    yield rng.integers(2, size=500), rng.integers(2, size=500)  # ties


@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn warns of what is meant here
@pytest.mark.parametrize("name", REFERENCES)
def test_scores_are_those_of_scikit_learn_and_scipy(name):
    for predictions, labels in cases(numbers=name in ("pearson", "spearman")):
        theirs = REFERENCES[name](predictions, labels)
        assert METRICS[name](predictions, labels) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_correlation_with_a_constant_is_undefined(name):
    constant = np.full(7, 0.1)  # the mean of seven of them is not 0.1 exactly
    assert METRICS[name](np.arange(7.0), constant) is None
    assert METRICS[name](constant, np.arange(7.0)) is None


def test_chance_is_the_best_constant_answer():
    labels = [0, 0, 0, 1]
    assert chance("accuracy", labels) == 0.75
    assert chance("f1", labels) == pytest.approx(2 * 1 / (4 + 1))  # "positive" for everything
    assert [chance(name, labels) for name in ("matthews", "pearson", "spearman")] == [0, 0, 0]
