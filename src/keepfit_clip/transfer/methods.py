"""Ways to learn a classifier over image features, as FLAIR and KeepFIT set them up.

    zero-shot        compares with the texts of the classes: names, and the statement that they are there
    zero-shot-names  compares with the canonical names alone
    zero-shot-findings  compares with what is visible of them too
    linear-probe     logistic regression on the backbone's features (C 0.316, classes balanced)
    text-probe       a linear layer that begins as the classes' texts and mean images (after LP++, arXiv 2404.02285)
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
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.errors import CategoryError
from keepfit_clip.transfer.classifiers import (
    AdapterClassifier,
    CacheClassifier,
    Classifier,
    Features,
    LinearClassifier,
    TextClassifier,
    TextProbeClassifier,
)

__all__ = ["METHODS", "Fold", "Method", "TextClasses", "linear_head", "probe_out_of_fold"]

_C = 0.316
_REDUCTION = 4
_EPOCHS, _LR, _EPS = 40, 1e-3, 1e-4
_STEPS = 64  # in an epoch, at most
_PROBE_STEPS, _PROBE_PENALTY = 100, 1e-3  # of the text probe
_INNER = 3  # parts of the training images, to choose thresholds by


@dataclass(frozen=True)
class TextClasses:
    """The texts of K classes in M wordings, one for each modality.

    Args:
        features: (M, K, D), L2-normalised.
        logit_scale: the factor of their similarities.
        absent: (M, K, D) of what is said where a class is absent, for images that may have several.
        cache_scale: that factor in Tip-Adapter's logits; None is `logit_scale`.
    """

    features: np.ndarray
    logit_scale: float
    absent: np.ndarray | None = None
    cache_scale: float | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The features and the factor."""
        return torch.from_numpy(self.features), torch.tensor(self.logit_scale)


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
        learn: the classifier that a fold's training images give.
        texts: what the images are compared with: "descriptions" of the classes, their "names", "findings" too, or "".
        learns: whether it learns from training images.
        several: whether an image may have several classes.
        trains_tower: whether it trains the tower itself, which takes long.
    """

    name: str
    learn: Callable[[Fold], Classifier]
    texts: str = "descriptions"
    learns: bool = True
    several: bool = False
    trains_tower: bool = False

    def run(self, fold: Fold) -> np.ndarray:
        """Probabilities (N, K) of a fold's test images."""
        return self.learn(fold).answer(fold.test)


def zero_shot(fold: Fold) -> TextClassifier:
    """The similarity with the classes' texts; nothing is learnt.

    Where an image may have several classes, each is compared with its absence.
    """
    absent = torch.empty(0) if fold.texts.absent is None else torch.from_numpy(fold.texts.absent)
    return TextClassifier(*fold.texts.tensors, absent)


def linear_probe(fold: Fold) -> LinearClassifier:
    """A logistic regression; see `linear_head`."""
    return linear_head(fold.train, fold.labels, fold.seed)


def linear_head(train: Features, labels: np.ndarray, seed: int = 0) -> LinearClassifier:
    """A logistic regression on the backbone's features; (N, K) labels are learnt one against the rest.

    Raises:
        CategoryError: all, or none, of the training images have a class.
    """
    _check_both(labels)
    fitted = _probe(labels, seed).fit(np.float64(train.pooled), labels)
    parts = fitted.estimators_ if labels.ndim == 2 else [fitted]
    weight, bias = (np.concatenate([getattr(part, name) for part in parts]) for name in ("coef_", "intercept_"))
    if labels.ndim == 1 and len(weight) == 1:  # of two classes scikit-learn keeps the second alone
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return LinearClassifier(torch.from_numpy(weight), torch.from_numpy(bias), torch.tensor(labels.ndim == 2))


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


def text_probe(fold: Fold) -> TextProbeClassifier:
    """A linear layer over projected features, of learnt vectors and so much of each class's text, both learnt.

    As in LP++ (Huang et al., CVPR 2024) the vectors begin as the classes' mean images and the shares as the factor of
    similarities. It is fitted here by L-BFGS on all images at once, each class weighing alike, with a penalty on how
    far it goes from where it began; LP++ itself chooses step sizes in place of a penalty.
    """
    (inputs, wording), targets = fold.train.tensors, torch.from_numpy(fold.labels)
    classes, scale = fold.texts.tensors
    count = torch.bincount(targets, minlength=classes.shape[1]).clamp(min=1)
    means = F.one_hot(targets, classes.shape[1]).float().T @ inputs / count[:, None]  # (K, D)
    start = scale * (means - means.mean(dim=0))
    weight, share = nn.Parameter(start.clone()), nn.Parameter(scale.repeat(classes.shape[1]))
    learnt = TextProbeClassifier(weight, share, classes)
    balanced = len(targets) / (len(count) * count.float())
    optimizer = torch.optim.LBFGS([weight, share], max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        moved = (weight - start).square().sum() + (share - scale).square().sum()
        value = F.cross_entropy(learnt.logits(inputs, wording), targets, balanced) + _PROBE_PENALTY * moved
        value.backward()
        return value

    optimizer.step(loss)
    return learnt


def clip_adapter(fold: Fold) -> AdapterClassifier:
    """A learnt residual bottleneck."""
    width = fold.train.projected.shape[1]
    with _seeded(fold.seed):
        down = nn.Linear(width, width // _REDUCTION, bias=False).weight
        up = nn.Linear(width // _REDUCTION, width, bias=False).weight
        learnt = AdapterClassifier(down, up, *fold.texts.tensors)
        _learn(learnt, [down, up], fold.train, fold.labels, cosine=True)
        return learnt


def tip_adapter(fold: Fold) -> CacheClassifier:
    """The texts and the classes of near training images; nothing is learnt."""
    return CacheClassifier(torch.from_numpy(fold.train.projected), *_cached(fold))


def tip_adapter_f(fold: Fold) -> CacheClassifier:
    """The same, after the training images' features were fine-tuned."""
    with _seeded(fold.seed):
        keys = nn.Parameter(torch.from_numpy(fold.train.projected).clone())
        learnt = CacheClassifier(keys, *_cached(fold))
        _learn(learnt, [keys], fold.train, fold.labels)
        return learnt


# Name -> method, of those that work on features.
METHODS = {
    method.name: method
    for method in (
        Method("zero-shot", zero_shot, learns=False, several=True),
        Method("zero-shot-names", zero_shot, texts="names", learns=False, several=True),
        Method("zero-shot-findings", zero_shot, texts="findings", learns=False, several=True),
        Method("linear-probe", linear_probe, texts="", several=True),
        Method("text-probe", text_probe),
        Method("clip-adapter", clip_adapter),
        Method("tip-adapter", tip_adapter),
        Method("tip-adapter-f", tip_adapter_f),
    )
}


def _cached(fold: Fold) -> tuple[Tensor, Tensor, Tensor]:
    """Classes of the training images (T, K), those of the texts (M, K, D), and the factor of similarities."""
    classes, scale = fold.texts.tensors
    if fold.texts.cache_scale is not None:
        scale = torch.tensor(fold.texts.cache_scale)
    return F.one_hot(torch.from_numpy(fold.labels), classes.shape[1]).float(), classes, scale


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _learn(classifier: Classifier, parameters, train: Features, labels: np.ndarray, cosine: bool = False) -> None:
    """Cross-entropy, the images always in the same shuffled order."""
    optimizer = torch.optim.AdamW(parameters, lr=_LR, eps=_EPS)
    order = torch.randperm(len(labels)).split(math.ceil(len(labels) / _STEPS))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS * len(order)) if cosine else None
    (inputs, wording), targets = train.tensors, torch.from_numpy(labels)
    for _ in range(_EPOCHS):
        for rows in order:
            loss = F.cross_entropy(classifier.logits(inputs[rows], wording[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
