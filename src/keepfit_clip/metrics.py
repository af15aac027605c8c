"""Classification metrics as the retinal papers report them, from scikit-learn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, confusion_matrix, roc_auc_score

__all__ = ["ClassificationScores", "score_classification"]


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of a classifier on one data set.

    Args:
        aca: average class accuracy (balanced accuracy), over the classes that have images.
        auc: area under the ROC curve; over more than two classes the mean of one-versus-rest. NaN where only one
            class has images.
        kappa: quadratic-weighted Cohen's kappa; it reads the order of the classes as their grade.
        confusion: (K, K) counts, true class by row, predicted by column.
    """

    aca: float
    auc: float
    kappa: float
    confusion: np.ndarray


def score_classification(labels: Sequence[int], probabilities: np.ndarray) -> ClassificationScores:
    """Scores class probabilities.

    Args:
        labels: (N,) class numbers below K.
        probabilities: (N, K), rows summing to 1.
    """
    labels = np.asarray(labels)
    class_count = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, labels=range(class_count))
    present = confusion.sum(axis=1) > 0
    recall = np.diag(confusion)[present] / confusion.sum(axis=1)[present]
    # balanced_accuracy_score is the same mean, but warns about predictions of classes that have no images.
    aca = float(recall.mean()) if not present.all() else float(balanced_accuracy_score(labels, predicted))
    kappa = cohen_kappa_score(labels, predicted, labels=list(range(class_count)), weights="quadratic")
    return ClassificationScores(aca, _auc(labels, probabilities, present), float(kappa), confusion)


def _auc(labels: np.ndarray, probabilities: np.ndarray, present: np.ndarray) -> float:
    if present.sum() < 2:
        return math.nan
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    one_versus_rest = [roc_auc_score(labels == k, probabilities[:, k]) for k in np.flatnonzero(present)]
    return float(np.mean(one_versus_rest))
