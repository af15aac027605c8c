"""Classifiers over image features, as FLAIR and KeepFIT set them up. Each takes arrays and gives class probabilities.

    zero-shot        compares with the texts of the classes: names, and the statement that they are there
    zero-shot-names  compares with the canonical names alone
    zero-shot-findings  compares with what is visible of them too
    linear-probe     logistic regression on the backbone's features (C 0.316, classes balanced)
    clip-adapter     a small bottleneck, mixed with the feature (CLIP-Adapter, arXiv 2110.04544)
    tip-adapter      the training images as a cache beside the texts (Tip-Adapter, arXiv 2207.09519)
    tip-adapter-f    the same, its keys fine-tuned

CLIP-Adapter and Tip-Adapter keep the constants of FLAIR's experiments: reduction 4, ratio 0.2, alpha 1, beta 5, 40
epochs in one shuffled order, AdamW with learning rate 0.001 and eps 0.0001. FLAIR learns from single images; so do
these up to 64 images, and from more in 64 steps an epoch.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.errors import CategoryError

__all__ = ["METHODS", "Features", "Fold", "Method", "TextClasses", "linear_head", "probe_out_of_fold"]

_C = 0.316
_REDUCTION, _RATIO = 4, 0.2
_ALPHA, _BETA = 1.0, 5.0
_EPOCHS, _LR, _EPS = 40, 1e-3, 1e-4
_STEPS = 64  # in an epoch, at most
_INNER = 3  # parts of the training images, to choose thresholds by


@dataclass(frozen=True)
class Features:
    """Features of N images: `pooled` (N, C) and `projected` (N, D), L2-normalised.

    `wording` (N,) says in which words each is compared with the classes, by its number; None is the first for all.
    """

    pooled: np.ndarray
    projected: np.ndarray
    wording: np.ndarray | None = None

    def __getitem__(self, rows: np.ndarray) -> "Features":
        return Features(self.pooled[rows], self.projected[rows], None if self.wording is None else self.wording[rows])


@dataclass(frozen=True)
class TextClasses:
    """The texts of K classes in M wordings, one for each modality.

    Args:
        features: (M, K, D), L2-normalised.
        logit_scale: the factor of their similarities.
        absent: (M, K, D) of what is said where a class is absent, for images that may have several.
    """

    features: np.ndarray
    logit_scale: float
    absent: np.ndarray | None = None


@dataclass(frozen=True)
class Fold:
    """What a method may learn from, and what it is to answer.

    Args:
        train: features of the T training images.
        labels: (T,) their class numbers, or (T, K) of 0 and 1.
        test: features of the N test images.
        texts: of the classes, in the words that the method wants; None where it wants none.
        seed: of whatever it draws.
        images: the images themselves, for a method that learns from them (`finetune.TowerImages`).
    """

    train: Features
    labels: np.ndarray
    test: Features
    texts: TextClasses | None
    seed: int = 0
    images: Any = None


@dataclass(frozen=True)
class Method:
    """A way to classify.

    Args:
        name: as it is asked for.
        run: probabilities (N, K) of a fold's test images.
        texts: what the images are compared with: "descriptions" of the classes, their "names", "findings" too, or "".
        learns: whether it learns from training images.
        several: whether an image may have several classes.
        trains_tower: whether it trains the tower itself, which takes long.
    """

    name: str
    run: Callable[[Fold], np.ndarray]
    texts: str = "descriptions"
    learns: bool = True
    several: bool = False
    trains_tower: bool = False


def zero_shot(fold: Fold) -> np.ndarray:
    """Probabilities (N, K) by the similarity with the classes' texts; nothing is learnt.

    Where an image may have several classes, each is compared with its absence.
    """
    classes = fold.texts.features if fold.texts.absent is None else fold.texts.features - fold.texts.absent
    logits = fold.texts.logit_scale * _similarity(*_inputs(fold.test), torch.from_numpy(classes)).numpy()
    return softmax(logits, axis=1) if fold.texts.absent is None else expit(logits)


def linear_probe(fold: Fold) -> np.ndarray:
    """Probabilities (N, K) of a logistic regression; (N, K) labels are learnt one against the rest.

    Raises:
        CategoryError: all, or none, of the training images have a class.
    """
    _check_both(fold.labels)
    fitted = _probe(fold.labels, fold.seed).fit(np.float64(fold.train.pooled), fold.labels)
    return fitted.predict_proba(np.float64(fold.test.pooled))


def linear_head(train: Features, labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The linear probe as weight (K, C) and bias (K,) of a layer, in float32."""
    _check_both(labels)
    fitted = _probe(labels, seed).fit(np.float64(train.pooled), labels)
    parts = fitted.estimators_ if labels.ndim == 2 else [fitted]
    weight, bias = (np.concatenate([getattr(part, name) for part in parts]) for name in ("coef_", "intercept_"))
    if labels.ndim == 1 and len(weight) == 1:  # of two classes scikit-learn keeps the second alone
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight.astype(np.float32), bias.astype(np.float32)


def probe_out_of_fold(train: Features, labels: np.ndarray, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """Probabilities (N, K) of training images by linear probes that did not learn from them, to choose thresholds by.

    Args:
        train: features of the training images.
        labels: (N, K) of 0 and 1.
        groups: (N,) what belongs together, or None.
        seed: of the folds.

    Returns:
        NaN in the column of a class too rare to be parted.
    """
    answers = np.full(labels.shape, np.nan)
    single = np.arange(len(labels)) if groups is None else groups
    for number, truth in enumerate(labels.T):
        if min(len(np.unique(single[truth == value])) for value in (0, 1)) >= _INNER:
            folds = StratifiedGroupKFold(_INNER, shuffle=True, random_state=seed).split(truth, truth, single)
            probe = _probe(truth, seed)
            pooled = np.float64(train.pooled)
            answers[:, number] = cross_val_predict(probe, pooled, truth, cv=list(folds), method="predict_proba")[:, 1]
    return answers


def _check_both(labels: np.ndarray) -> None:
    several = labels.ndim == 2
    for number, truth in enumerate(labels.T if several else ()):
        if truth.min() == truth.max():
            whose = "all" if truth[0] else "none"
            raise CategoryError(
                f"{whose} of the {len(truth)} training images of a fold have class {number + 1}: more shots"
            )


def _probe(labels: np.ndarray, seed: int):
    # newton-cg reaches the optimum of these features in a fiftieth of lbfgs's time.
    probe = LogisticRegression(C=_C, class_weight="balanced", solver="newton-cg", max_iter=1000, random_state=seed)
    return OneVsRestClassifier(probe) if labels.ndim == 2 else probe


def clip_adapter(fold: Fold) -> np.ndarray:
    """Probabilities (N, K) after a learnt residual bottleneck."""
    width = fold.train.projected.shape[1]
    with _seeded(fold.seed):
        adapter = nn.Sequential(
            nn.Linear(width, width // _REDUCTION, bias=False), nn.ReLU(),
            nn.Linear(width // _REDUCTION, width, bias=False), nn.ReLU(),
        )  # fmt: skip
        classes = torch.from_numpy(fold.texts.features)

        def logits(features: Tensor, wording: Tensor) -> Tensor:
            adapted = _RATIO * adapter(features) + (1 - _RATIO) * features
            return fold.texts.logit_scale * _similarity(F.normalize(adapted, dim=-1), wording, classes)

        _learn(logits, adapter.parameters(), fold.train, fold.labels, cosine=True)
        return _probabilities(logits, fold.test)


def tip_adapter(fold: Fold) -> np.ndarray:
    """Probabilities (N, K) from the texts and the classes of near training images; nothing is learnt."""
    keys = torch.from_numpy(fold.train.projected)
    return _probabilities(_tip_logits(keys, fold.labels, fold.texts), fold.test)


def tip_adapter_f(fold: Fold) -> np.ndarray:
    """The same, after the training images' features were fine-tuned."""
    with _seeded(fold.seed):
        keys = nn.Parameter(torch.from_numpy(fold.train.projected).clone())
        logits = _tip_logits(keys, fold.labels, fold.texts)
        _learn(logits, [keys], fold.train, fold.labels)
        return _probabilities(logits, fold.test)


# Name -> method, of those that work on features.
METHODS = {
    method.name: method
    for method in (
        Method("zero-shot", zero_shot, learns=False, several=True),
        Method("zero-shot-names", zero_shot, texts="names", learns=False, several=True),
        Method("zero-shot-findings", zero_shot, texts="findings", learns=False, several=True),
        Method("linear-probe", linear_probe, texts="", several=True),
        Method("clip-adapter", clip_adapter),
        Method("tip-adapter", tip_adapter),
        Method("tip-adapter-f", tip_adapter_f),
    )
}


def _inputs(features: Features) -> tuple[Tensor, Tensor]:
    """Projected features (N, D) and wordings (N,)."""
    wording = np.zeros(len(features.projected), dtype=int) if features.wording is None else features.wording
    return torch.from_numpy(features.projected), torch.from_numpy(wording)


def _similarity(features: Tensor, wording: Tensor, classes: Tensor) -> Tensor:
    """Products (N, K) of features (N, D) with the classes (M, K, D) in each image's own wording (N,)."""
    return torch.einsum("nd,mkd->nmk", features, classes)[torch.arange(len(features)), wording]


def _tip_logits(keys: Tensor, labels: np.ndarray, texts: TextClasses) -> Callable[[Tensor, Tensor], Tensor]:
    classes = torch.from_numpy(texts.features)
    values = F.one_hot(torch.from_numpy(labels), classes.shape[1]).float()  # (T, K) of the T training images

    def logits(features: Tensor, wording: Tensor) -> Tensor:
        affinity = torch.exp(_BETA * (features @ keys.T - 1))  # (N, T)
        return texts.logit_scale * _similarity(features, wording, classes) + _ALPHA * affinity @ values

    return logits


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _learn(logits, parameters, train: Features, labels: np.ndarray, cosine: bool = False) -> None:
    """Cross-entropy, the images always in the same shuffled order."""
    optimizer = torch.optim.AdamW(parameters, lr=_LR, eps=_EPS)
    order = torch.randperm(len(labels)).split(math.ceil(len(labels) / _STEPS))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS * len(order)) if cosine else None
    (inputs, wording), targets = _inputs(train), torch.from_numpy(labels)
    for _ in range(_EPOCHS):
        for rows in order:
            loss = F.cross_entropy(logits(inputs[rows], wording[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()


@torch.no_grad()
def _probabilities(logits: Callable[[Tensor, Tensor], Tensor], test: Features) -> np.ndarray:
    return logits(*_inputs(test)).softmax(dim=-1).numpy()
