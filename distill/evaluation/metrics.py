"""Scores of a task: accuracy, F1, Matthews, Pearson, Spearman; equal to scikit-learn's or scipy's.

Every metric takes (predictions, labels), both (M,), and returns a float; 1.0 is perfect. Where F1
or Matthews divide 0 by 0 the score is 0.0, as in scikit-learn and so in GLUE's own numbers. The
linear or rank correlation with a constant is not defined: None.
"""

import numpy as np


def accuracy(predictions, labels):
    """Share of equal entries."""
    return float(np.mean(predictions == labels))


def f1(predictions, labels, positive=1):
    """F1 of one class: 2 TP / (2 TP + FP + FN), as GLUE has it for class 1 of MRPC and QQP."""
    hits = np.sum((predictions == positive) & (labels == positive))
    named = np.sum(predictions == positive) + np.sum(labels == positive)
    return float(2 * hits / named) if named else 0.0


def macro_f1(predictions, labels):
    """Plain mean of `f1` over the classes that occur among predictions or labels: for any task."""
    return float(np.mean([f1(predictions, labels, c) for c in np.union1d(predictions, labels)]))


def matthews(predictions, labels):
    """Matthews' correlation of two classes, 0 and 1: their linear correlation."""
    return pearson(predictions, labels) or 0.0


def pearson(predictions, labels):
    """Linear correlation of two lists of finite numbers; None where one of them is constant."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return None
    return float(np.corrcoef(predictions, labels)[0, 1])


def spearman(predictions, labels):
    """`pearson` of the ranks; equal values share the mean of the ranks that they cover."""
    import pandas  # here, because it takes half a second that classes need not pay

    return pearson(pandas.Series(predictions).rank(), pandas.Series(labels).rank())


METRICS = {
    "accuracy": accuracy,
    "f1": f1,
    "macro-f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def chance(metric, labels):
    """The score of whoever has not read the texts: the best that any constant answer gets.

    The share of the largest class for accuracy, F1 of always answering "positive" for f1; 0 for
    every correlation.
    """
    if metric in ("matthews", "pearson", "spearman"):
        return 0.0
    labels = np.asarray(labels)
    return max(METRICS[metric](np.full_like(labels, c), labels) for c in np.unique(labels))
