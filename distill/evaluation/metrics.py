"""Scores of a task: accuracy, F1, Matthews, Pearson, Spearman; equal to scikit-learn's or scipy's.

Each takes (predictions, labels), both (M,). Where F1 or Matthews divide 0 by 0 the score is 0.0, as
in scikit-learn. The linear or rank correlation with a constant is not defined: None.
"""

import numpy as np
import pandas as pd


def accuracy(predictions, labels):
    return float(np.mean(predictions == labels))


def f1(predictions, labels):
    """F1 of class 1, as GLUE has it for MRPC and QQP: 2 TP / (2 TP + FP + FN)."""
    hits = np.sum((predictions == 1) & (labels == 1))
    named = np.sum(predictions == 1) + np.sum(labels == 1)
    return float(2 * hits / named) if named else 0.0


def matthews(predictions, labels):
    """Matthews' correlation of two classes, 0 and 1: their linear correlation."""
    return pearson(predictions, labels) or 0.0


def pearson(predictions, labels):
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return None
    return float(np.corrcoef(predictions, labels)[0, 1])


def spearman(predictions, labels):
    """`pearson` of the ranks; equal values share the mean of the ranks that they cover."""
    return pearson(pd.Series(predictions).rank(), pd.Series(labels).rank())


METRICS = {f.__name__: f for f in (accuracy, f1, matthews, pearson, spearman)}


def chance(metric, labels):
    """The best score of a constant answer, such as the largest class' share for accuracy."""
    if metric not in ("accuracy", "f1"):
        return 0.0
    labels = np.asarray(labels)
    return max(METRICS[metric](np.full_like(labels, c), labels) for c in np.unique(labels))
