"""Each metric against scikit-learn or scipy, to 1e-12, on random and on degenerate input."""

import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from distill.evaluation import metrics

SKLEARN = {
    "accuracy": lambda p, y: sklearn.metrics.accuracy_score(y, p),
    "f1": lambda p, y: sklearn.metrics.f1_score(y, p, zero_division=0),
    "macro-f1": lambda p, y: sklearn.metrics.f1_score(y, p, average="macro", zero_division=0),
    "matthews": lambda p, y: sklearn.metrics.matthews_corrcoef(y, p),
}
SCIPY = {
    "pearson": lambda p, y: scipy.stats.pearsonr(p, y).statistic,
    "spearman": lambda p, y: scipy.stats.spearmanr(p, y).statistic,
}


def binary_and_more():
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 10, 1000):
        for classes in (1, 2, 3, 20):
            labels = rng.integers(classes, size=size)
            noisy = np.where(rng.random(size) < 0.6, labels, rng.integers(classes, size=size))
            yield noisy, labels
            yield labels, labels
            yield np.zeros_like(labels), labels  # a constant prediction
            yield noisy, np.ones_like(labels)  # one class only
            yield np.zeros_like(labels), np.ones_like(labels)


@pytest.mark.parametrize("name", SKLEARN)
def test_classes_equal_scikit_learn(name):
    compared = 0
    for predictions, labels in binary_and_more():
        if name == "f1" and max(predictions.max(), labels.max()) > 1:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours = metrics.METRICS[name](predictions, labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns of what is meant here
            theirs = SKLEARN[name](predictions, labels)
        assert abs(ours - theirs) <= 1e-12, (name, ours, theirs, predictions[:10], labels[:10])
        compared += 1
    assert compared >= 40


@pytest.mark.parametrize("name", SCIPY)
def test_numbers_equal_scipy(name):
    rng = np.random.default_rng(1)
    for size in (2, 3, 10, 1000):
        for scale in (1.0, 1e-3, 1e6):
            labels = rng.normal(size=size) * scale + 3
            noisy = labels + rng.normal(size=size) * scale
            for predictions in (noisy, -labels, labels**3, np.round(labels / scale)):
                if np.ptp(predictions) == 0:
                    continue
                ours = metrics.METRICS[name](predictions, labels)
                assert abs(ours - SCIPY[name](predictions, labels)) <= 1e-12, (name, size, scale)
    ties, labels = rng.integers(4, size=500), rng.integers(5, size=500)
    assert abs(metrics.METRICS[name](ties, labels) - SCIPY[name](ties, labels)) <= 1e-12


@pytest.mark.parametrize("name", SCIPY)
@pytest.mark.parametrize("predictions", [[0.1] * 7, np.arange(7.0)])
def test_a_constant_is_zero_and_not_nan(name, predictions):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # 0.1, because the mean of seven of them is not 0.1 exactly
        assert metrics.METRICS[name](predictions, [0.1] * 7) == 0.0
        assert metrics.METRICS[name]([0.3] * 7, np.arange(7.0)) == 0.0
        assert metrics.METRICS[name]([5.0], [1.0]) == 0.0


def test_by_hand():
    # 4 of 6 right; class 1: TP 2, FP 1, FN 1, so 4/6; class 0 the same;
    # Matthews (4*6 - (3*3+3*3)) / (36-18) = 6/18
    predictions, labels = [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]
    scores = {name: metrics.METRICS[name](predictions, labels) for name in SKLEARN}
    expected = {"accuracy": 4 / 6, "f1": 4 / 6, "macro-f1": 4 / 6, "matthews": 1 / 3}
    assert scores == pytest.approx(expected)
    assert metrics.ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [3.5, 1.0, 3.5, 2.0]
    # 2 TP / (predicted + labelled): 2*1 / (1 + 2) for class 1, 2*2 / (3 + 2) for class 0
    assert metrics.f1([0, 0, 0, 1], [0, 0, 1, 1]) == pytest.approx(2 / 3)
    assert metrics.f1([0, 0, 0, 1], [0, 0, 1, 1], positive=0) == pytest.approx(4 / 5)


def test_huge_numbers_do_not_overflow():
    assert metrics.pearson([1e300, -1e300, 5e299], [1.0, -1.0, 0.5]) == pytest.approx(1.0)
    many = np.repeat([0, 1], 200_000)  # squared counts leave 64 bits
    assert metrics.matthews(many, many) == pytest.approx(1.0)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_what_has_no_score_is_an_error(name):
    with pytest.raises(ValueError, match="not two equally long"):
        metrics.METRICS[name]([1, 2], [1])
    with pytest.raises(ValueError, match="0 predictions"):
        metrics.METRICS[name]([], [])
    if name in SCIPY:
        with pytest.raises(ValueError, match="not finite"):
            metrics.METRICS[name]([1.0, float("nan")], [1.0, 2.0])
