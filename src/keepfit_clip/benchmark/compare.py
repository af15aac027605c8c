"""Models beside each other: ranks over data sets, and differences over the same resampled images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from keepfit_clip.evaluate.metrics.classification import Answers, bootstrap_scores

__all__ = ["Difference", "mean_ranks", "paired_difference"]


@dataclass(frozen=True)
class Difference:
    """How much better a model is than another on the same images.

    Args:
        mean: difference of the means over the folds.
        low, high: of its 95 % bootstrap interval.
    """

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_difference(
    first: Sequence[Answers], other: Sequence[Answers], resamples: int = 500, seed: int = 0
) -> dict[str, Difference]:
    """What `other` reaches beyond `first`, metric by metric, where it is defined.

    Both answer the images of the same folds; each fold's images, or whole groups of them, are drawn with replacement,
    the same ones for both.

    Args:
        first, other: answers of each fold.
        resamples: number of draws.
        seed: of the draws.
    """
    points, drawn = [], []
    for fold, pair in enumerate(zip(first, other, strict=True)):
        before, after = (answers.score() for answers in pair)
        points.append([after.aca - before.aca, after.auc - before.auc])
        scores = bootstrap_scores(pair, shared=True, resamples=resamples, seed=seed + fold)  # (2, 2, resamples)
        drawn.append(scores[1] - scores[0])
    found = {}
    for row, metric in enumerate(("aca", "auc")):
        values, draws = np.array(points)[:, row], np.array(drawn)[:, row]  # (folds,), (folds, resamples)
        defined = np.isfinite(values)
        means = draws[defined].mean(axis=0) if defined.any() else np.empty(0)
        if np.isfinite(means).any():
            low, high = np.nanpercentile(means, [2.5, 97.5])
            found[metric] = Difference(float(values[defined].mean()), float(low), float(high))
    return found


def mean_ranks(scores: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, float], list[str]]:
    """The mean rank of each model over the data sets that all of them have; 1 is the best, equal ones share.

    Args:
        scores: model -> data set -> score.

    Returns:
        Model -> mean rank, and the data sets; both empty where they have none in common.
    """
    have = [{name for name, score in of_model.items() if np.isfinite(score)} for of_model in scores.values()]
    common = [name for name in next(iter(scores.values()), {}) if all(name in names for names in have)]
    if not common:
        return {}, []
    table = np.array([[of_model[name] for name in common] for of_model in scores.values()])
    ranks = rankdata(-table, axis=0).mean(axis=1)
    return dict(zip(scores, map(float, ranks), strict=True)), common
