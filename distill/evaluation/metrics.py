"""Scores of a task: accuracy, F1, Matthews, Pearson, Spearman; equal to scikit-learn's or scipy's.

Every metric takes (predictions, labels), both (M,), and returns a float; 1.0 is perfect. Where its
formula divides 0 by 0 (one class only, a constant prediction) the score is 0.0: such a prediction
tells nothing. scikit-learn says the same with a warning; scipy gives NaN, which would spoil a mean.
"""

import numpy as np


def _checked(predictions, labels):
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1:
        shapes = f"predictions {predictions.shape} and labels {labels.shape}"
        raise ValueError(f"{shapes} are not two equally long lists")
    if not len(labels):
        raise ValueError("a score of 0 predictions is not defined")
    return predictions, labels


def accuracy(predictions, labels):
    """Share of equal entries."""
    predictions, labels = _checked(predictions, labels)
    return float(np.mean(predictions == labels))


def f1(predictions, labels, positive=1):
    """F1 of one class: 2 TP / (2 TP + FP + FN), as GLUE has it for class 1 of MRPC and QQP."""
    predictions, labels = _checked(predictions, labels)
    hits = np.sum((predictions == positive) & (labels == positive))
    named = np.sum(predictions == positive) + np.sum(labels == positive)
    return float(2 * hits / named) if named else 0.0


def macro_f1(predictions, labels):
    """Plain mean of `f1` over the classes that occur among predictions or labels: for any task."""
    predictions, labels = _checked(predictions, labels)
    return float(np.mean([f1(predictions, labels, c) for c in np.union1d(predictions, labels)]))


def matthews(predictions, labels):
    """Matthews' correlation for any number of classes: how the one-hot matrices correlate.

    With c right of M, and class k predicted p_k times and labelled t_k times:
        (c M - sum p_k t_k) / sqrt((M² - sum p_k²) (M² - sum t_k²))          [Gorodkin 2004]
    In Python's integers, which do not overflow.
    """
    predictions, labels = _checked(predictions, labels)
    classes = np.union1d(predictions, labels)
    p = [int(np.sum(predictions == c)) for c in classes]
    t = [int(np.sum(labels == c)) for c in classes]
    total, right = len(labels), int(np.sum(predictions == labels))
    spread = (total**2 - sum(n * n for n in p)) * (total**2 - sum(n * n for n in t))
    covariance = right * total - sum(a * b for a, b in zip(p, t, strict=True))
    return covariance / spread**0.5 if spread else 0.0


def pearson(predictions, labels):
    """Linear correlation of two lists of finite numbers."""
    predictions, labels = (np.asarray(x, np.float64) for x in _checked(predictions, labels))
    if not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
        raise ValueError("a correlation of numbers that are not finite is not defined")
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    centred = (predictions - predictions.mean(), labels - labels.mean())
    centred = [x / np.abs(x).max() for x in centred]  # so that the squares do not overflow
    unit = [x / np.linalg.norm(x) for x in centred]
    return float(np.clip(unit[0] @ unit[1], -1.0, 1.0))


def ranks(values):
    """Ranks from 1; equal values share the mean of the ranks they cover."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def spearman(predictions, labels):
    """`pearson` of the ranks."""
    predictions, labels = _checked(predictions, labels)
    if not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
        raise ValueError("a correlation of numbers that are not finite is not defined")
    return pearson(ranks(predictions), ranks(labels))


METRICS = {
    "accuracy": accuracy,
    "f1": f1,
    "macro-f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
