"""Classification metrics as the retinal papers report them, from scikit-learn and torchmetrics."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    multilabel_confusion_matrix,
    roc_auc_score,
    roc_curve,
)

from keepfit_clip.finite import require_finite

__all__ = [
    "Answers",
    "ClassificationScores",
    "abstention_curve",
    "bootstrap_intervals",
    "bootstrap_scores",
    "reliability",
    "score_classification",
    "score_multi_label",
    "tuned_thresholds",
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
        ece: expected calibration error of the likeliest class over 15 even bins (arXiv 1706.04599); NaN where an image
            may have several.
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

    Raises:
        NonFiniteError: a probability is NaN or infinite.
    """
    require_finite(probabilities, "images' probabilities")
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


def score_multi_label(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float | np.ndarray = 0.5
) -> ClassificationScores:
    """Scores the probabilities of classes of which an image may have several, or none.

    Args:
        labels: (N, K) of 0 and 1.
        probabilities: (N, K), each between 0 and 1.
        threshold: from which on an image has a class: one, (K,) or (N, K).

    Raises:
        NonFiniteError: a probability is NaN or infinite.
    """
    require_finite(probabilities, "images' probabilities")
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


@dataclass(frozen=True)
class Answers:
    """What a classifier said of N images of K classes.

    Args:
        labels: (N,) class numbers, or (N, K) of 0 and 1.
        probabilities: (N, K).
        groups: (N,) what belongs together, such as a patient's images, or None.
        threshold: see `score_multi_label`.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray | None = None
    threshold: float | np.ndarray = 0.5

    def score(self) -> ClassificationScores:
        """Scores as the form of the labels asks for."""
        if self.labels.ndim == 2:
            return score_multi_label(self.labels, self.probabilities, self.threshold)
        return score_classification(self.labels, self.probabilities)

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """The answers of several folds as one; groups are left out, for those of other folds may have their numbers."""
        thresholds = [np.broadcast_to(part.threshold, part.probabilities.shape) for part in parts]
        labels, probabilities = ([getattr(part, name) for part in parts] for name in ("labels", "probabilities"))
        return cls(np.concatenate(labels), np.concatenate(probabilities), None, np.concatenate(thresholds))


def bootstrap_intervals(
    folds: Sequence[Answers], shared: bool = False, resamples: int = 500, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The 95 % intervals of the mean `aca` and `auc` of some folds, see `bootstrap_scores`."""
    means = bootstrap_scores(folds, shared, resamples, seed).mean(axis=0)
    return {
        name: tuple(map(float, np.nanpercentile(column, [2.5, 97.5])))
        for name, column in zip(("aca", "auc"), means, strict=True)
        if not np.isnan(column).all()
    }


def bootstrap_scores(folds: Sequence[Answers], shared: bool = False, resamples: int = 500, seed: int = 0) -> np.ndarray:
    """ACA and AUC of each fold, (folds, 2, resamples), NaN where they are not defined.

    Each fold's test images are drawn with replacement, whole groups where these are known.

    Args:
        folds: the answers of each.
        shared: the folds test the same images, which are then drawn once for all.
        resamples: number of draws.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    groups = [
        np.unique(f.groups, return_inverse=True)[1] if f.groups is not None else np.arange(len(f.labels)) for f in folds
    ]
    weights = [np.empty((resamples, len(rows))) for rows in groups]
    for resample in range(resamples):
        for fold, rows in enumerate(groups):
            count = rows.max() + 1
            if not (shared and fold):
                times = np.bincount(rng.integers(count, size=count), minlength=count)
            weights[fold][resample] = times[rows]
    return np.array([_weighted_aca_and_auc(f, w) for f, w in zip(folds, weights, strict=True)])


def _weighted_aca_and_auc(answers: Answers, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both scores (R,) as `Answers.score` gives them where each image stands there so many times.

    Args:
        answers: for N images.
        weights: (R, N) how often each image was drawn.
    """
    probabilities = answers.probabilities
    classes = probabilities.shape[1]
    several = answers.labels.ndim == 2
    true = (answers.labels if several else np.eye(classes, dtype=int)[answers.labels]).astype(bool)
    predicted = np.eye(classes, dtype=bool)[probabilities.argmax(axis=1)]
    if several:
        predicted = probabilities >= np.broadcast_to(answers.threshold, probabilities.shape)
    positives = weights @ true  # (R, K)
    negatives = weights.sum(axis=1, keepdims=True) - positives
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        aca = weights @ (true & predicted) / positives
        if several:
            aca = (aca + weights @ (~true & ~predicted) / negatives) / 2
        ranked = [_pairs_in_order(probabilities[:, k], true[:, k], weights) for k in range(classes)]
        auc = np.stack(ranked, axis=1) / (positives * negatives)
        return np.nanmean(aca, axis=1), np.nanmean(auc, axis=1)


def _pairs_in_order(probability: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) pairs of a true and another image of which the true one is likelier; ties count half."""
    values, index = np.unique(probability, return_inverse=True)
    others = np.zeros((len(weights), len(values)))
    np.add.at(others.T, index, (weights * ~true).T)
    below = np.cumsum(others, axis=1) - others / 2
    return ((weights * true) * below[:, index]).sum(axis=1)


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


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = _BINS) -> list[tuple[float, float]]:
    """How sure a classifier is of its answers and how often they are right, in even bins of the former.

    Args:
        labels: (N,).
        probabilities: (N, K).
        bins: number of them, as of the ECE; empty ones are left out.

    Returns:
        (mean probability of the likeliest class, accuracy) of each bin.
    """
    right = probabilities.argmax(axis=1) == labels
    accuracy, confidence = calibration_curve(right, np.clip(probabilities.max(axis=1), 0, 1), n_bins=bins)
    return list(zip(confidence.tolist(), accuracy.tolist(), strict=True))


def tuned_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The threshold of each class with the highest balanced accuracy (Youden's J); 0.5 where a class says nothing.

    Args:
        labels: (N, K) of 0 and 1, of images that are not tested.
        probabilities: (N, K); NaN in the column of a class without an answer.

    Returns:
        (K,).
    """
    thresholds = np.full(labels.shape[1], 0.5)
    for number, (truth, answer) in enumerate(zip(labels.T, probabilities.T, strict=True)):
        if truth.min() < truth.max() and np.isfinite(answer).all():
            fpr, tpr, at = roc_curve(truth, answer)
            best = int(np.argmax(tpr - fpr))
            if np.isfinite(at[best]):
                thresholds[number] = at[best]
    return thresholds


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
