"""From answers about images to answers about volumes, eyes or patients."""

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from keepfit_clip.data.records import Record
from keepfit_clip.errors import ConfigError
from keepfit_clip.evaluate.metrics.classification import ClassificationScores, score_classification

__all__ = ["POOLS", "PooledScores", "check_pooling", "keys_of", "pool_answers"]

POOLS = ("volume", "eye", "patient")
_TOP = re.compile(r"top-([1-9]\d*)$")


@dataclass(frozen=True)
class PooledScores:
    """Scores of what images belong to.

    Args:
        scores: of those that have one label.
        count: how many these are.
        mixed: how many were left out, whose images have several labels.
        pool: "volume", "eye" or "patient".
        by: see `pool_answers`.
    """

    scores: ClassificationScores
    count: int
    mixed: int
    pool: str
    by: str

    @classmethod
    def of(
        cls, labels: np.ndarray, probabilities: np.ndarray, keys: Sequence[Hashable], pool: str, by: str
    ) -> "PooledScores":
        """Scores of what images belong to, see `pool_answers`.

        Raises:
            ConfigError: the images of each have several labels.
        """
        pooled_labels, pooled, mixed = pool_answers(labels, probabilities, keys, by)
        if not len(pooled_labels):
            raise ConfigError(f"--pool {pool}: the images of each {pool} have several labels")
        return cls(score_classification(pooled_labels, pooled), len(pooled_labels), mixed, pool, by)

    @property
    def line(self) -> str:
        """What a person reads."""
        left_out = f"; {self.mixed} left out, whose images have several labels" if self.mixed else ""
        return (
            f"by {self.pool} ({self.by}): ACA {self.scores.aca:.3f}   AUC {self.scores.auc:.3f}   "
            f"(over {self.count} {self.pool}s{left_out})"
        )

    @property
    def figures(self) -> dict:
        """For JSON."""
        aca, auc = (None if math.isnan(value) else float(value) for value in (self.scores.aca, self.scores.auc))
        return {"pool": self.pool, "by": self.by, "count": self.count, "mixed": self.mixed, "aca": aca, "auc": auc}


def check_pooling(pool: str | None, by: str) -> None:
    """Raises ConfigError where there is no such pooling."""
    if pool is not None and pool not in POOLS:
        raise ConfigError(f"--pool {pool}: {', '.join(POOLS)}")
    if by not in ("mean", "max") and not _TOP.match(by):
        raise ConfigError(f"--pool-by {by}: mean, max, or top-K such as top-3")


def keys_of(records: Sequence[Record], pool: str) -> list[Hashable]:
    """What each record belongs to.

    Args:
        records: of images.
        pool: "volume", "eye" (at each visit, where visits are known) or "patient".

    Raises:
        ConfigError: a record does not say.
    """
    keys = [_key(record, pool) for record in records]
    unknown = [record.row for record, key in zip(records, keys, strict=True) if key is None]
    if unknown:
        missing = {"volume": "volume", "eye": "patient or eye", "patient": "patient"}[pool]
        raise ConfigError(
            f"--pool {pool}: {len(unknown)} rows say no {missing} (first: row {unknown[0]}); name the column with "
            f"--{'patient' if pool == 'eye' else pool}-column"
        )
    return keys


def _key(record: Record, pool: str) -> Hashable:
    if pool == "volume":
        return None if record.volume is None else (record.dataset, record.patient, record.volume)
    if record.patient is None or (pool == "eye" and record.eye is None):
        return None
    patient = (record.dataset, record.patient)
    return (*patient, record.eye, record.visit) if pool == "eye" else patient


def pool_answers(
    labels: np.ndarray, probabilities: np.ndarray, keys: Sequence[Hashable], by: str = "mean"
) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels and probabilities of what images belong to.

    Args:
        labels: (N,) class numbers of the images.
        probabilities: (N, K).
        keys: what each image belongs to.
        by: "mean", "max", or "top-K": the mean of the K largest probabilities of each class. The classes' values are
            then made to add up to 1.

    Returns:
        (G,) labels, (G, K) probabilities, and how many were left out because their images have several labels.
    """
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = np.array([numbers[key] for key in keys])
    pooled_labels, pooled, mixed = [], [], 0
    for number in range(len(numbers)):
        members = group == number
        if len(set(labels[members].tolist())) > 1:
            mixed += 1
            continue
        values = _pooled(probabilities[members], by)
        pooled_labels.append(int(labels[members][0]))
        pooled.append(values / values.sum())
    shape = (0, probabilities.shape[1])
    return np.array(pooled_labels, dtype=int), np.array(pooled).reshape(-1, *shape[1:]), mixed


def _pooled(values: np.ndarray, by: str) -> np.ndarray:
    """(n, K) to (K,)."""
    if by == "mean":
        return values.mean(axis=0)
    count = 1 if by == "max" else min(int(_TOP.match(by)[1]), len(values))
    return np.sort(values, axis=0)[-count:].mean(axis=0)
