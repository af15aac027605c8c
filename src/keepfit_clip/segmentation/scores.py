"""Dice and IoU of masks: of each class in each image, over folds, with bootstrap intervals over patients.

Counts are segmentation-models-pytorch's. A class that stands neither in the truth nor in the answer of an image has no
score there (NaN), rather than a perfect one; the background is not scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["METRICS", "Score", "count_pixels", "dice", "draw_weights", "iou", "score_folds"]


@dataclass(frozen=True)
class Score:
    """A metric of a class, or a difference of two.

    Args:
        mean: over the folds in which it is defined; NaN where it is in none.
        sd: standard deviation over them; NaN of a single one.
        interval: 95 % of the bootstrap's means.
    """

    mean: float
    sd: float
    interval: tuple[float, float]


def count_pixels(predicted: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """Pixels rightly and wrongly taken for each class, and missed: (K, 3) int64.

    Args:
        predicted, true: (H, W), 0 to K.
        classes: K.
    """
    from segmentation_models_pytorch.metrics import get_stats

    parts = [torch.from_numpy(mask.astype(np.int64))[None] for mask in (predicted, true)]
    right, wrong, missed, _ = get_stats(*parts, mode="multiclass", num_classes=classes + 1)
    return torch.stack([right, wrong, missed], dim=2)[0, 1:].numpy()


def dice(counts: np.ndarray) -> np.ndarray:
    """Dice (...,) of counts (..., 3) of `count_pixels`; NaN where there is nothing to find and nothing was found."""
    right, wrong, missed = np.moveaxis(counts, -1, 0)
    return _ratio(2 * right, 2 * right + wrong + missed)


def iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union, the same way."""
    right, wrong, missed = np.moveaxis(counts, -1, 0)
    return _ratio(right, right + wrong + missed)


METRICS = {"dice": dice, "iou": iou}


def draw_weights(
    folds: Sequence[np.ndarray], groups: np.ndarray | None, count: int, resamples: int, seed: int
) -> np.ndarray:
    """How often each of `count` images stands in each resample, (R, N): whole groups of a fold, with replacement.

    Args:
        folds: rows that each tests.
        groups: (N,) patients, or None.
        count: number of images.
        resamples: R.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, count))
    for rows in folds:
        numbers = np.arange(len(rows)) if groups is None else np.unique(groups[rows], return_inverse=True)[1]
        patients = numbers.max() + 1
        drawn = rng.integers(patients, size=(resamples, patients))
        times = np.stack([np.bincount(row, minlength=patients) for row in drawn])
        weights[:, rows] = times[:, numbers]
    return weights


def score_folds(
    values: np.ndarray, folds: Sequence[np.ndarray], weights: np.ndarray, beside: np.ndarray | None = None
) -> list[Score]:
    """Scores of the classes, and as the last one their mean.

    Args:
        values: (N, K) of the images, NaN where a class is not scored.
        folds: rows that each tests.
        weights: (R, N) of `draw_weights`.
        beside: values of another model for the same images, whose scores are taken off: each fold's from its own, each
            resample's from the same resample.
    """
    once = np.ones((1, len(values)))
    own, drawn = (_fold_means(values, folds, part) for part in (once, weights))  # (F, 1, K + 1), (F, R, K + 1)
    if beside is not None:
        own = own - _fold_means(beside, folds, once)
        drawn = drawn - _fold_means(beside, folds, weights)
    resampled = _mean(drawn)  # (R, K + 1)
    return [_score(own[:, 0, k], resampled[:, k]) for k in range(own.shape[2])]


def _fold_means(values: np.ndarray, folds: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(F, R, K + 1): of each fold and resample the classes' means over images, and the mean of those."""
    there = ~np.isnan(values)
    filled = np.where(there, values, 0)
    means = np.stack([_ratio(weights[:, r] @ filled[r], weights[:, r] @ there[r]) for r in folds])
    return np.concatenate([means, _mean(np.moveaxis(means, 2, 0))[..., None]], axis=2)


def _score(folds: np.ndarray, resampled: np.ndarray) -> Score:
    defined, drawn = folds[~np.isnan(folds)], resampled[~np.isnan(resampled)]
    if not len(defined) or not len(drawn):
        return Score(np.nan, np.nan, (np.nan, np.nan))
    low, high = np.quantile(drawn, (0.025, 0.975))
    sd = float(defined.std(ddof=1)) if len(defined) > 1 else np.nan
    return Score(float(defined.mean()), sd, (float(low), float(high)))


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis, of what is no NaN; NaN where all is."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0).sum(axis=0), there.sum(axis=0))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)
