"""Classification metrics as the retinal papers report them, from scikit-learn and torchmetrics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.metrics import (
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    multilabel_confusion_matrix,
    roc_auc_score,
)

__all__ = [
    "ClassificationScores",
    "abstention_curve",
    "bootstrap_intervals",
    "score_classification",
    "score_multi_label",
]

_BINS = 15


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of a classifier on one data set. What cannot be computed is NaN, never a number made up.

    Args:
        aca: average class accuracy (balanced accuracy), over the classes that have images; where an image may have
            several classes, the mean of the classes' own balanced accuracies.
        auc: area under the ROC curve; over more than two classes the mean of one-versus-rest. NaN where only one
            class has images.
        kappa: quadratic-weighted Cohen's kappa; it reads the order of the classes as their grade. NaN where an image
            may have several.
        f1: mean of the classes' F1, over the classes that have images.
        sensitivity: (K,) share of a class's images that are found; NaN for a class without images.
        specificity: (K,) share of the other images that are not taken for it; NaN where there are none.
        ece: expected calibration error of the likeliest class over 15 even bins; NaN where an image may have several.
        confusion: (K, K) counts, true class by row, predicted by column; (K, 2, 2), each class against the rest, where
            an image may have several.
    """

    aca: float
    auc: float
    kappa: float
    f1: float
    sensitivity: np.ndarray
    specificity: np.ndarray
    ece: float
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
    one_versus_rest = multilabel_confusion_matrix(labels, predicted, labels=range(class_count))
    return ClassificationScores(
        aca,
        _auc(labels, probabilities, present),
        float(kappa),
        float(f1_score(labels, predicted, labels=np.flatnonzero(present), average="macro", zero_division=0)),
        *_sensitivity_and_specificity(one_versus_rest),
        _calibration_error(labels, probabilities),
        confusion,
    )


def score_multi_label(labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> ClassificationScores:
    """Scores the probabilities of classes of which an image may have several, or none.

    Args:
        labels: (N, K) of 0 and 1.
        probabilities: (N, K), each between 0 and 1.
        threshold: from which on an image has a class.
    """
    predicted = (probabilities >= threshold).astype(int)
    confusion = multilabel_confusion_matrix(labels, predicted)
    sensitivity, specificity = _sensitivity_and_specificity(confusion)
    both = np.flatnonzero((labels.min(axis=0) == 0) & (labels.max(axis=0) == 1))
    balanced = (sensitivity[both] + specificity[both]) / 2
    present = np.flatnonzero(labels.any(axis=0))
    return ClassificationScores(
        float(balanced.mean()) if len(both) else math.nan,
        float(roc_auc_score(labels[:, both], probabilities[:, both], average="macro")) if len(both) else math.nan,
        math.nan,
        float(f1_score(labels[:, present], predicted[:, present], average="macro", zero_division=0)),
        sensitivity,
        specificity,
        math.nan,
        confusion,
    )


def bootstrap_intervals(
    folds: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    shared: bool = False,
    threshold: float = 0.5,
    resamples: int = 500,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """The 95 % intervals of the mean `aca` and `auc` of some folds.

    Each fold's test images are drawn with replacement, whole patients where these are known.

    Args:
        folds: labels (N,) or (N, K), probabilities (N, K) and patients (N,) or None of each.
        shared: the folds test the same images, which are then drawn once for all.
        threshold: see `score_multi_label`.
        resamples: number of draws.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    members = [_rows_by_group(len(labels), groups) for labels, _, groups in folds]
    values = []
    for _ in range(resamples):
        drawn = [_draw(rows, rng) for rows in (members[:1] if shared else members)] * (len(folds) if shared else 1)
        parts = [
            _aca_and_auc(labels[rows], probabilities[rows], threshold)
            for (labels, probabilities, _), rows in zip(folds, drawn, strict=True)
        ]
        values.append(np.mean(parts, axis=0))
    return {
        name: tuple(map(float, np.nanpercentile(column, [2.5, 97.5])))
        for name, column in zip(("aca", "auc"), np.array(values).T, strict=True)
        if not np.isnan(column).all()
    }


def _rows_by_group(count: int, groups: np.ndarray | None) -> list[np.ndarray]:
    if groups is None:
        return list(np.arange(count)[:, None])
    return [np.flatnonzero(groups == group) for group in np.unique(groups)]


def _draw(members: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])


def _aca_and_auc(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> tuple[float, float]:
    """Both scores as `score_classification` and `score_multi_label` give them, fast: the AUC from ranks."""
    count, classes = probabilities.shape
    true = (labels if labels.ndim == 2 else np.eye(classes, dtype=int)[labels]).astype(bool)
    positives = true.sum(axis=0)
    negatives = count - positives
    ranks = (rankdata(probabilities, axis=0) * true).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = (ranks - positives * (positives + 1) / 2) / (positives * negatives)
        if labels.ndim == 2:
            predicted = probabilities >= threshold
            found, spared = (predicted & true).sum(axis=0), (~predicted & ~true).sum(axis=0)
            aca = (found / positives + spared / negatives) / 2
        else:
            predicted = np.eye(classes, dtype=bool)[probabilities.argmax(axis=1)]
            aca = (predicted & true).sum(axis=0) / positives
    return tuple(float(x[~np.isnan(x)].mean()) if not np.isnan(x).all() else math.nan for x in (aca, auc))


def abstention_curve(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[float, float]]:
    """Accuracy over the images that a classifier is surest of.

    Args:
        labels: (N,).
        probabilities: (N, K).

    Returns:
        (share of images answered, their accuracy) for shares of 0.1 to 1.
    """
    surest = np.argsort(-probabilities.max(axis=1), kind="stable")
    right = (probabilities.argmax(axis=1) == labels)[surest]
    counts = [max(1, round(share * len(right))) for share in np.linspace(0.1, 1, 10)]
    return [(count / len(right), float(right[:count].mean())) for count in counts]


def _sensitivity_and_specificity(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the tables (K, 2, 2) of each class against the rest."""
    with np.errstate(invalid="ignore"):
        return confusion[:, 1, 1] / confusion[:, 1].sum(axis=1), confusion[:, 0, 0] / confusion[:, 0].sum(axis=1)


def _calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    from torchmetrics.functional.classification import multiclass_calibration_error  # takes a second to import

    count = max(2, probabilities.shape[1])
    error = multiclass_calibration_error(
        torch.from_numpy(np.asarray(probabilities, dtype=np.float32)), torch.from_numpy(labels).long(), count, _BINS
    )
    return float(error)


def _auc(labels: np.ndarray, probabilities: np.ndarray, present: np.ndarray) -> float:
    if present.sum() < 2:
        return math.nan
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    one_versus_rest = [roc_auc_score(labels == k, probabilities[:, k]) for k in np.flatnonzero(present)]
    return float(np.mean(one_versus_rest))
