"""Conformal sets: classes that hold the true one with a chosen probability, whatever the classifier (arXiv 2107.07511).

Split conformal prediction with the score 1 - p(true class) ("LAC", Sadinle et al., JASA 2019): exact for images that
are exchangeable with those of the calibration. How often a set did hold the true class is measured beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keepfit_clip.evaluate.metrics.classification import Answers

__all__ = ["ConformalScores", "conformal_level", "conformal_sets", "measured_over_folds"]


@dataclass(frozen=True)
class ConformalScores:
    """What sets reached.

    Args:
        asked: the probability that was asked for.
        coverage: share of images whose set holds the true class.
        size: mean number of classes in a set.
        single: share of sets of one class.
    """

    asked: float
    coverage: float
    size: float
    single: float


def conformal_level(labels: np.ndarray, probabilities: np.ndarray, coverage: float = 0.9) -> float:
    """From which probability on a class belongs to the set.

    Args:
        labels: (N,) class numbers of calibration images, which were not learnt from.
        probabilities: (N, K).
        coverage: how often sets shall hold the true class.

    Returns:
        The level; 0, with which every class belongs, where N is too small for the coverage.
    """
    scores = 1 - np.take_along_axis(np.float64(probabilities), labels[:, None], axis=1)[:, 0]
    rank = int(np.ceil((len(scores) + 1) * coverage))
    return 0.0 if rank > len(scores) else float(1 - np.sort(scores)[rank - 1])


def conformal_sets(probabilities: np.ndarray, level: float) -> np.ndarray:
    """(N, K) bool, which classes belong to each image's set: those from the level on."""
    return np.float64(probabilities) >= level - 1e-12  # the level is one minus a score, both rounded


def measured_over_folds(folds: Sequence[Answers], coverage: float = 0.9) -> ConformalScores | None:
    """Coverage and size of sets, each fold calibrated on the answers of the other folds, whose patients are others.

    Args:
        folds: answers for their test images, none of which is in two folds.
        coverage: how often sets shall hold the true class.

    Returns:
        None for a single fold, and where an image may have several classes.
    """
    if len(folds) < 2 or folds[0].labels.ndim == 2:
        return None
    held, sizes = [], []
    for number, fold in enumerate(folds):
        others = Answers.joined([other for other in folds if other is not folds[number]])
        sets = conformal_sets(fold.probabilities, conformal_level(others.labels, others.probabilities, coverage))
        held.append(sets[np.arange(len(sets)), fold.labels])
        sizes.append(sets.sum(axis=1))
    size = np.concatenate(sizes)
    return ConformalScores(coverage, float(np.concatenate(held).mean()), float(size.mean()), float((size == 1).mean()))
